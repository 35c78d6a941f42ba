#include "base/safetensors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/fault.h"

struct safetensors {
	json_t *header; /* owns the names */
	size_t n;
	struct safetensor *tensors; /* in the header's order */
};

enum {
	LENGTH_BYTES = 8,
	/* The limit that the reference implementation sets. */
	HEADER_BYTES_MAX = 100000000,
	DATA_ALIGNMENT = 64,
};

static const struct {
	const char *name;
	uint32_t bytes;
} types[] = {
	[SAFETENSORS_F16] = {"F16", 2},
	[SAFETENSORS_BF16] = {"BF16", 2},
	[SAFETENSORS_F32] = {"F32", 4},
	[SAFETENSORS_F64] = {"F64", 8},
	[SAFETENSORS_U8] = {"U8", 1},
	[SAFETENSORS_U16] = {"U16", 2},
	[SAFETENSORS_I32] = {"I32", 4},
	[SAFETENSORS_I64] = {"I64", 8},
};

enum { N_TYPES = sizeof types / sizeof types[0] };

static uint64_t read_u64(const uint8_t *bytes)
{
	uint64_t value = 0;

	for (int i = LENGTH_BYTES - 1; i >= 0; i--)
		value = value << 8 | bytes[i];
	return value;
}

/* A JSON integer that is not negative. */
static int natural(const json_t *value, uint64_t *out)
{
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return -EBADMSG;
	*out = (uint64_t)json_integer_value(value);
	return 0;
}

/* Bytes that type and dims ask for. */
static int tensor_bytes(const struct safetensor *t, uint64_t *out)
{
	uint64_t bytes = types[t->type].bytes;

	for (uint32_t i = 0; i < t->n_dims; i++)
		if (__builtin_mul_overflow(bytes, t->dims[i], &bytes))
			return -EBADMSG;
	*out = bytes;
	return 0;
}

static int parse_type(const json_t *value, enum safetensors_type *out)
{
	const char *name = json_string_value(value);

	for (int i = 0; name && i < N_TYPES; i++) {
		if (strcmp(name, types[i].name) == 0) {
			*out = (enum safetensors_type)i;
			return 0;
		}
	}
	return -EBADMSG;
}

static int parse_tensor(const char *name, const json_t *entry, const uint8_t *data, uint64_t data_len,
	struct safetensor *t, struct fault f)
{
	const json_t *shape = json_object_get(entry, "shape");
	const json_t *offsets = json_object_get(entry, "data_offsets");
	uint64_t begin, end, bytes;

	t->name = name;
	if (!json_is_object(entry))
		return fault_say(-EBADMSG, f.why, f.why_len, "tensor %.60s: not an object", name);
	if (parse_type(json_object_get(entry, "dtype"), &t->type) < 0)
		return fault_say(-EBADMSG, f.why, f.why_len, "tensor %.60s: missing or unknown dtype", name);
	if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_DIMS_MAX)
		return fault_say(-EBADMSG, f.why, f.why_len,
			"tensor %.60s: shape is not a list of at most %d numbers", name,
			SAFETENSORS_DIMS_MAX);
	t->n_dims = (uint32_t)json_array_size(shape);
	for (uint32_t i = 0; i < t->n_dims; i++)
		if (natural(json_array_get(shape, i), &t->dims[i]) < 0)
			return fault_say(-EBADMSG, f.why, f.why_len,
				"tensor %.60s: dimension %u is not a natural number", name, i);
	if (json_array_size(offsets) != 2 || natural(json_array_get(offsets, 0), &begin) < 0 ||
		natural(json_array_get(offsets, 1), &end) < 0)
		return fault_say(-EBADMSG, f.why, f.why_len,
			"tensor %.60s: data_offsets is not a pair of natural numbers", name);
	if (begin > end || end > data_len)
		return fault_say(-EBADMSG, f.why, f.why_len,
			"tensor %.60s: data_offsets reach outside the file", name);
	if (tensor_bytes(t, &bytes) < 0 || bytes != end - begin)
		return fault_say(
			-EBADMSG, f.why, f.why_len, "tensor %.60s: shape and data_offsets disagree", name);
	t->data = data + begin;
	t->len_bytes = bytes;
	return 0;
}

static int by_place(const void *a, const void *b)
{
	const struct safetensor *const *x = a, *const *y = b;
	uintptr_t p = (uintptr_t)(*x)->data, q = (uintptr_t)(*y)->data;

	if (p != q)
		return p < q ? -1 : 1;
	return ((*x)->len_bytes > (*y)->len_bytes) - ((*x)->len_bytes < (*y)->len_bytes);
}

/* The format allows neither gaps nor overlaps nor bytes after the last tensor. A reader that insists notices
 * a damaged offset that is still in range. */
static int check_cover(const struct safetensors *s, const uint8_t *data, uint64_t data_len, struct fault f)
{
	const struct safetensor **order = calloc(s->n + 1, sizeof *order);
	uint64_t at = 0;
	int r = 0;

	if (!order)
		return -ENOMEM;
	for (size_t i = 0; i < s->n; i++)
		order[i] = &s->tensors[i];
	qsort(order, s->n, sizeof *order, by_place);
	for (size_t i = 0; i < s->n && r == 0; i++) {
		if ((const uint8_t *)order[i]->data != data + at)
			r = fault_say(-EBADMSG, f.why, f.why_len,
				"tensor %.60s: gap or overlap before its data", order[i]->name);
		at += order[i]->len_bytes;
	}
	if (r == 0 && at != data_len)
		r = fault_say(-EBADMSG, f.why, f.why_len, "bytes that belong to no tensor at the end");
	free(order);
	return r;
}

static int check_metadata(const json_t *metadata, struct fault f)
{
	const char *key;
	json_t *value;

	if (!metadata)
		return 0;
	if (!json_is_object(metadata))
		return fault_say(-EBADMSG, f.why, f.why_len, "__metadata__ is not an object");
	json_object_foreach((json_t *)metadata, key, value)
	{
		if (!json_is_string(value))
			return fault_say(-EBADMSG, f.why, f.why_len, "metadata %.60s is not a string", key);
	}
	return 0;
}

int safetensors_parse(const void *data, size_t len, struct safetensors **out, char *why, size_t why_len)
{
	struct fault f = {why, why_len};
	const uint8_t *bytes = data;
	struct safetensors *s;
	json_error_t error;
	uint64_t header_len;
	const char *name;
	json_t *entry;
	int r;

	if (len < LENGTH_BYTES)
		return fault_say(
			-EBADMSG, f.why, f.why_len, "%zu bytes are too few for a safetensors file", len);
	header_len = read_u64(bytes);
	if (header_len > HEADER_BYTES_MAX || header_len > len - LENGTH_BYTES)
		return fault_say(-EBADMSG, f.why, f.why_len, "header length reaches past the end");
	s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	s->header = json_loadb(
		(const char *)bytes + LENGTH_BYTES, (size_t)header_len, JSON_REJECT_DUPLICATES, &error);
	if (!json_is_object(s->header)) {
		r = fault_say(-EBADMSG, f.why, f.why_len, "header is not a JSON object: %s",
			s->header ? "another type" : error.text);
		goto fail;
	}
	r = check_metadata(json_object_get(s->header, "__metadata__"), f);
	if (r < 0)
		goto fail;
	s->tensors = calloc(json_object_size(s->header) + 1, sizeof *s->tensors);
	if (!s->tensors) {
		r = -ENOMEM;
		goto fail;
	}
	bytes += LENGTH_BYTES + header_len;
	len -= LENGTH_BYTES + (size_t)header_len;
	json_object_foreach(s->header, name, entry)
	{
		if (strcmp(name, "__metadata__") == 0)
			continue;
		r = parse_tensor(name, entry, bytes, len, &s->tensors[s->n], f);
		if (r < 0)
			goto fail;
		s->n++;
	}
	r = check_cover(s, bytes, len, f);
	if (r < 0)
		goto fail;
	*out = s;
	return 0;
fail:
	safetensors_free(s);
	return r;
}

struct safetensors *safetensors_free(struct safetensors *s)
{
	if (s) {
		json_decref(s->header);
		free(s->tensors);
		free(s);
	}
	return NULL;
}

size_t safetensors_count(const struct safetensors *s)
{
	return s->n;
}

const struct safetensor *safetensors_at(const struct safetensors *s, size_t i)
{
	return &s->tensors[i];
}

const struct safetensor *safetensors_find(const struct safetensors *s, const char *name)
{
	for (size_t i = 0; i < s->n; i++)
		if (strcmp(s->tensors[i].name, name) == 0)
			return &s->tensors[i];
	return NULL;
}

const char *safetensors_metadata(const struct safetensors *s, const char *key)
{
	return json_string_value(json_object_get(json_object_get(s->header, "__metadata__"), key));
}

static json_t *describe(const struct safetensor *t, uint64_t offset)
{
	json_t *shape = json_array();

	for (uint32_t i = 0; shape && i < t->n_dims; i++)
		json_array_append_new(shape, json_integer((json_int_t)t->dims[i]));
	return json_pack("{s:s, s:o, s:[I, I]}", "dtype", types[t->type].name, "shape", shape, "data_offsets",
		(json_int_t)offset, (json_int_t)(offset + t->len_bytes));
}

/* The header as text; *data_len gets the bytes of all tensors. */
static int make_header(const struct safetensor *tensors, size_t n, const char *const *metadata, char **text,
	uint64_t *data_len)
{
	json_t *header = json_object(), *pairs = json_object();
	uint64_t at = 0, bytes;
	int r = -EINVAL;

	if (!header || !pairs) {
		r = -ENOMEM;
		goto out;
	}
	for (size_t i = 0; metadata && metadata[i]; i += 2)
		if (!metadata[i + 1] || json_object_set_new(pairs, metadata[i], json_string(metadata[i + 1])))
			goto out;
	if (json_object_size(pairs) && json_object_set(header, "__metadata__", pairs))
		goto out;
	for (size_t i = 0; i < n; i++) {
		const struct safetensor *t = &tensors[i];

		if ((unsigned)t->type >= N_TYPES || t->n_dims > SAFETENSORS_DIMS_MAX ||
			tensor_bytes(t, &bytes) < 0 || bytes != t->len_bytes || bytes > INT64_MAX - at)
			goto out;
		if (json_object_get(header, t->name) || strcmp(t->name, "__metadata__") == 0 ||
			json_object_set_new(header, t->name, describe(t, at)))
			goto out;
		at += bytes;
	}
	*text = json_dumps(header, JSON_COMPACT);
	*data_len = at;
	r = *text ? 0 : -ENOMEM;
out:
	json_decref(pairs);
	json_decref(header);
	return r;
}

int safetensors_write(
	const struct safetensor *tensors, size_t n, const char *const *metadata, void **data, size_t *len)
{
	uint64_t data_len = 0, header_len;
	size_t text_len;
	uint8_t *bytes;
	char *text = NULL;
	int r = make_header(tensors, n, metadata, &text, &data_len);

	if (r < 0)
		return r;
	text_len = strlen(text);
	header_len = (text_len + LENGTH_BYTES + DATA_ALIGNMENT - 1) / DATA_ALIGNMENT * DATA_ALIGNMENT -
		     LENGTH_BYTES;
	bytes = malloc(LENGTH_BYTES + (size_t)header_len + (size_t)data_len);
	if (!bytes) {
		free(text);
		return -ENOMEM;
	}
	for (int i = 0; i < LENGTH_BYTES; i++)
		bytes[i] = (uint8_t)(header_len >> (8 * i));
	memcpy(bytes + LENGTH_BYTES, text, text_len);
	memset(bytes + LENGTH_BYTES + text_len, ' ', (size_t)header_len - text_len);
	*data = bytes;
	*len = LENGTH_BYTES + (size_t)header_len + (size_t)data_len;
	bytes += LENGTH_BYTES + header_len;
	for (size_t i = 0; i < n; i++) {
		if (tensors[i].len_bytes)
			memcpy(bytes, tensors[i].data, (size_t)tensors[i].len_bytes);
		bytes += tensors[i].len_bytes;
	}
	free(text);
	return 0;
}
