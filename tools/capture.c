#include "tools/capture.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/file.h"
#include "base/safetensors.h"
#include "tools/npy.h"

#define FORMAT "cistern-capture-1"

enum { TENSOR_NAME_BYTES = 24, NUMBER_BYTES = 24 };

static const char *const rope_names[] = {
	[ROPE_NONE] = "none", [ROPE_HALF] = "half", [ROPE_INTERLEAVED] = "interleaved"};

struct capture *capture_free(struct capture *c)
{
	if (c) {
		free(c->positions);
		free(c->pages);
		free(c->files[0]);
		free(c->files[1]);
		free(c);
	}
	return NULL;
}

struct kv_run capture_run(const struct capture *c, uint32_t first_token)
{
	static const uint32_t block = 0;

	return (struct kv_run){.blocks = &block, .block_tokens = c->n_tokens, .offset = first_token};
}

/* Room for the tokens that geometry and n_tokens announce. */
static int make_room(struct capture *c)
{
	c->positions = calloc(c->n_tokens, sizeof *c->positions);
	c->pages = calloc((size_t)c->geometry.n_layers * c->geometry.n_planes, sizeof *c->pages);
	return c->positions && c->pages ? 0 : -ENOMEM;
}

/* [tokens, heads, dim] without gaps, at data. */
static void set_pages(struct capture *c, uint32_t layer, uint32_t plane, const void *data)
{
	const struct plane *p = &c->geometry.planes[plane];
	size_t head = p->dim * dtype_bytes(p->dtype);

	c->pages[layer * c->geometry.n_planes + plane] = (struct kv_pages){.base = (uint8_t *)data,
		.block_stride = 0,
		.token_stride = p->n_heads * head,
		.head_stride = head};
}

static int parse_u32(const char *text, uint32_t *out)
{
	char *end;
	unsigned long value;

	if (!text)
		return 0;
	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || *end || end == text || text[0] < '0' || text[0] > '9' || value > UINT32_MAX)
		return -EBADMSG;
	*out = (uint32_t)value;
	return 0;
}

static int parse_f32(const char *text, float *out)
{
	char *end;

	if (!text)
		return 0;
	*out = strtof(text, &end);
	return *end || end == text ? -EBADMSG : 0;
}

static const struct safetensor *layer_tensor(const struct safetensors *s, uint32_t layer, uint32_t plane)
{
	char name[TENSOR_NAME_BYTES];

	snprintf(name, sizeof name, "layers.%u.%c", layer, plane ? 'v' : 'k');
	return safetensors_find(s, name);
}

static int plane_of(const struct safetensor *t, struct plane *out)
{
	if (t->n_dims != 3 || t->dims[0] == 0 || t->dims[0] > INT32_MAX || t->dims[1] > GEOMETRY_HEADS_MAX ||
		t->dims[2] > GEOMETRY_DIM_MAX)
		return -EBADMSG;
	switch (t->type) {
	case SAFETENSORS_F16: out->dtype = DTYPE_F16; break;
	case SAFETENSORS_BF16: out->dtype = DTYPE_BF16; break;
	case SAFETENSORS_F32: out->dtype = DTYPE_F32; break;
	default: return -EBADMSG;
	}
	out->n_heads = (uint32_t)t->dims[1];
	out->dim = (uint32_t)t->dims[2];
	return 0;
}

static int read_rope(const struct safetensors *s, struct plane *p, struct fault f)
{
	const char *kind = safetensors_metadata(s, "rope_kind");
	const struct safetensor *inv_freq = safetensors_find(s, "inv_freq");

	p->rope_kind = ROPE_NONE;
	while (kind && p->rope_kind <= ROPE_INTERLEAVED && strcmp(kind, rope_names[p->rope_kind]) != 0)
		p->rope_kind++;
	if (!kind || p->rope_kind > ROPE_INTERLEAVED)
		return fault_say(
			-EBADMSG, f.why, f.why_len, "metadata rope_kind is not none, half or interleaved");
	if (p->rope_kind == ROPE_NONE)
		return 0;
	if (!inv_freq || inv_freq->type != SAFETENSORS_F32 || inv_freq->n_dims != 1 ||
		inv_freq->dims[0] > GEOMETRY_ROPE_MAX / 2)
		return fault_say(-EBADMSG, f.why, f.why_len,
			"inv_freq missing, or not a vector of at most %d f32", GEOMETRY_ROPE_MAX / 2);
	p->rope_dim = 2 * (uint32_t)inv_freq->dims[0];
	memcpy(p->inv_freq, inv_freq->data, (size_t)inv_freq->len_bytes);
	p->rope_scale = 1;
	if (parse_u32(safetensors_metadata(s, "rope_offset"), &p->rope_offset) < 0 ||
		parse_f32(safetensors_metadata(s, "rope_scale"), &p->rope_scale) < 0)
		return fault_say(
			-EBADMSG, f.why, f.why_len, "metadata rope_offset or rope_scale is not a number");
	return 0;
}

static int read_geometry(const struct safetensors *s, struct geometry *g, struct fault f)
{
	const char *format = safetensors_metadata(s, "format"), *model = safetensors_metadata(s, "model");
	char why[128];

	if (!format || strcmp(format, FORMAT) != 0)
		return fault_say(-EBADMSG, f.why, f.why_len, "metadata format is not " FORMAT);
	if (!model || strlen(model) >= GEOMETRY_NAME_MAX)
		return fault_say(-EBADMSG, f.why, f.why_len, "metadata model is missing or too long");
	strcpy(g->name, model);
	g->tp_size = 1;
	if (parse_u32(safetensors_metadata(s, "tp_rank"), &g->tp_rank) < 0 ||
		parse_u32(safetensors_metadata(s, "tp_size"), &g->tp_size) < 0)
		return fault_say(-EBADMSG, f.why, f.why_len, "metadata tp_rank or tp_size is not a number");
	while (g->n_layers <= GEOMETRY_LAYERS_MAX && layer_tensor(s, g->n_layers, 0))
		g->n_layers++;
	if (g->n_layers == 0)
		return fault_say(-EBADMSG, f.why, f.why_len, "no tensor layers.0.k");
	g->n_planes = layer_tensor(s, 0, 1) ? 2 : 1;
	for (uint32_t plane = 0; plane < g->n_planes; plane++)
		if (plane_of(layer_tensor(s, 0, plane), &g->planes[plane]) < 0)
			return fault_say(-EBADMSG, f.why, f.why_len,
				"layers.0.%c is not [tokens, heads, dim] of f16, bf16 or f32",
				plane ? 'v' : 'k');
	if (read_rope(s, &g->planes[0], f) < 0)
		return -EBADMSG;
	if (geometry_check(g, why, sizeof why) < 0)
		return fault_say(-EBADMSG, f.why, f.why_len, "%s", why);
	return 0;
}

static int read_positions(const struct safetensors *s, struct capture *c, struct fault f)
{
	const struct safetensor *positions = safetensors_find(s, "positions");

	if (!positions || positions->type != SAFETENSORS_I64 || positions->n_dims != 1 ||
		positions->dims[0] != c->n_tokens)
		return fault_say(
			-EBADMSG, f.why, f.why_len, "positions missing, or not i64 [%u]", c->n_tokens);
	memcpy(c->positions, positions->data, (size_t)positions->len_bytes);
	for (uint32_t t = 0; t < c->n_tokens; t++)
		if (c->positions[t] > INT64_MAX)
			return fault_say(-EBADMSG, f.why, f.why_len, "position of token %u is negative", t);
	return 0;
}

static int read_queries(const struct safetensors *s, struct capture *c, struct fault f)
{
	const struct safetensor *queries = safetensors_find(s, "queries");
	const struct safetensor *positions = safetensors_find(s, "query_positions");
	const struct plane *k = &c->geometry.planes[0];

	if (!queries)
		return 0;
	if (queries->type != SAFETENSORS_F16 || queries->n_dims != 4 ||
		queries->dims[0] != c->geometry.n_layers || queries->dims[1] == 0 ||
		queries->dims[1] > INT32_MAX || queries->dims[2] == 0 ||
		queries->dims[2] > GEOMETRY_HEADS_MAX || queries->dims[2] % k->n_heads ||
		queries->dims[3] != k->dim)
		return fault_say(-EBADMSG, f.why, f.why_len,
			"queries are not f16 [%u, n, a multiple of %u, %u]", c->geometry.n_layers, k->n_heads,
			k->dim);
	if (!positions || positions->type != SAFETENSORS_I64 || positions->n_dims != 1 ||
		positions->dims[0] != queries->dims[1] || (uintptr_t)positions->data % 8)
		return fault_say(
			-EBADMSG, f.why, f.why_len, "query_positions missing, or not one i64 a query");
	c->queries = (struct capture_queries){.n = (uint32_t)queries->dims[1],
		.n_heads = (uint32_t)queries->dims[2],
		.positions = positions->data,
		.values = queries->data};
	for (uint32_t i = 0; i < c->queries.n; i++)
		if (c->queries.positions[i] > INT64_MAX)
			return fault_say(-EBADMSG, f.why, f.why_len, "position of query %u is negative", i);
	return 0;
}

static int read_safetensors(const struct safetensors *s, struct capture *c, struct fault f)
{
	const struct safetensor *first;
	int r = read_geometry(s, &c->geometry, f);

	if (r < 0)
		return r;
	first = layer_tensor(s, 0, 0);
	c->n_tokens = (uint32_t)first->dims[0];
	r = make_room(c);
	if (r < 0)
		return r;
	for (uint32_t layer = 0; layer < c->geometry.n_layers; layer++) {
		for (uint32_t plane = 0; plane < c->geometry.n_planes; plane++) {
			const struct safetensor *t = layer_tensor(s, layer, plane);
			const struct plane *want = &c->geometry.planes[plane];
			struct plane found;

			if (!t || plane_of(t, &found) < 0 || t->dims[0] != c->n_tokens ||
				found.n_heads != want->n_heads || found.dim != want->dim ||
				found.dtype != want->dtype)
				return fault_say(-EBADMSG, f.why, f.why_len,
					"layers.%u.%c missing, or not of layer 0's shape and type", layer,
					plane ? 'v' : 'k');
			set_pages(c, layer, plane, t->data);
		}
	}
	r = read_positions(s, c, f);
	return r ? r : read_queries(s, c, f);
}

static int open_safetensors(const char *path, struct capture *c, struct fault f)
{
	struct safetensors *s;
	size_t len;
	int r = file_read(path, &c->files[0], &len);

	if (r < 0)
		return r;
	r = safetensors_parse(c->files[0], len, &s, f.why, f.why_len);
	if (r < 0)
		return r;
	r = read_safetensors(s, c, f);
	safetensors_free(s);
	return r;
}

static int npy_dtype(const struct npy *a, uint32_t *out)
{
	if (a->type == 'f' && (a->bytes == 2 || a->bytes == 4))
		*out = a->bytes == 2 ? DTYPE_F16 : DTYPE_F32;
	else if (a->type == 'V' && a->bytes == 2)
		*out = DTYPE_BF16;
	else
		return -EBADMSG;
	return 0;
}

/* The geometry of arrays [layers, (2,) tokens, heads, dim]: dims without the 2. */
static int npy_geometry(const struct capture_options *o, const uint64_t dims[4], uint32_t dtype,
	struct capture *c, struct fault f)
{
	struct geometry *g = &c->geometry;
	struct plane *k = &g->planes[0];
	char why[128];

	if (!o->model || strlen(o->model) >= GEOMETRY_NAME_MAX)
		return fault_say(-EBADMSG, f.why, f.why_len,
			"an array does not say which model it is of, and no name was given");
	if (dims[0] > GEOMETRY_LAYERS_MAX || dims[1] == 0 || dims[1] > INT32_MAX ||
		dims[2] > GEOMETRY_HEADS_MAX || dims[3] > GEOMETRY_DIM_MAX)
		return fault_say(-EBADMSG, f.why, f.why_len, "shape out of range");
	strcpy(g->name, o->model);
	g->n_layers = (uint32_t)dims[0];
	g->n_planes = 2;
	g->tp_size = 1;
	c->n_tokens = (uint32_t)dims[1];
	*k = (struct plane){.n_heads = (uint32_t)dims[2], .dim = (uint32_t)dims[3], .dtype = dtype};
	g->planes[1] = *k;
	k->rope_kind = o->rope_kind;
	if (k->rope_kind != ROPE_NONE) {
		k->rope_offset = o->rope_offset;
		k->rope_dim = o->rope_dim ? o->rope_dim : k->dim - o->rope_offset;
		k->rope_scale = o->rope_scale != 0 ? o->rope_scale : 1;
		for (uint32_t i = 0; i < k->rope_dim / 2 && i < GEOMETRY_ROPE_MAX / 2; i++)
			k->inv_freq[i] = (float)pow(o->theta, -(double)(2 * i) / k->rope_dim);
	}
	if (geometry_check(g, why, sizeof why) < 0)
		return fault_say(-EBADMSG, f.why, f.why_len, "%s", why);
	return 0;
}

static int read_npy(const struct npy *keys, const struct npy *values, const struct capture_options *o,
	struct capture *c, struct fault f)
{
	uint32_t shift = values ? 0 : 1, dtype, other = 0;
	uint64_t dims[4], layer_bytes;
	int r;

	if (keys->n_dims != 4 + shift || (shift && keys->dims[1] != 2))
		return fault_say(-EBADMSG, f.why, f.why_len, "shape is not [layers, %stokens, heads, dim]",
			shift ? "2, " : "");
	if (npy_dtype(keys, &dtype) < 0 || (values && (npy_dtype(values, &other) < 0 || other != dtype)))
		return fault_say(-EBADMSG, f.why, f.why_len,
			"elements are not f2, f4 or V2 (bf16), or keys and values differ");
	if (values && (values->n_dims != 4 || memcmp(values->dims, keys->dims, 4 * sizeof dims[0]) != 0))
		return fault_say(-EBADMSG, f.why, f.why_len, "keys and values differ in shape");
	dims[0] = keys->dims[0];
	for (uint32_t i = 1; i < 4; i++)
		dims[i] = keys->dims[i + shift];
	r = npy_geometry(o, dims, dtype, c, f);
	if (r == 0)
		r = make_room(c);
	if (r < 0)
		return r;
	layer_bytes = keys->len_bytes / c->geometry.n_layers / (shift + 1);
	for (uint32_t layer = 0; layer < c->geometry.n_layers; layer++) {
		const uint8_t *k = keys->data, *v = values ? values->data : k + layer_bytes;

		set_pages(c, layer, 0, k + layer * (shift + 1) * layer_bytes);
		set_pages(c, layer, 1, v + layer * (shift + 1) * layer_bytes);
	}
	for (uint32_t t = 0; t < c->n_tokens; t++)
		c->positions[t] = o->first_position + t;
	return 0;
}

static int open_npy(const char *path, const struct capture_options *o, struct capture *c, struct fault f)
{
	static const char keys_end[] = ".k.npy";
	size_t path_len = strlen(path), end_len = sizeof keys_end - 1, len;
	struct npy arrays[2];
	char other[PATH_MAX];
	int n_files = 1, r;

	if (path_len >= sizeof other)
		return -ENAMETOOLONG;
	strcpy(other, path);
	if (path_len > end_len && strcmp(path + path_len - end_len, keys_end) == 0) {
		other[path_len - end_len + 1] = 'v';
		n_files = 2;
	}
	for (int i = 0; i < n_files; i++) {
		r = file_read(i ? other : path, &c->files[i], &len);
		if (r < 0 && i)
			fault_say(-EBADMSG, f.why, f.why_len, "its other half, %s: %s", other, strerror(-r));
		if (r == 0)
			r = npy_parse(c->files[i], len, &arrays[i], f.why, f.why_len);
		if (r < 0)
			return r;
	}
	return read_npy(&arrays[0], n_files == 2 ? &arrays[1] : NULL, o, c, f);
}

int capture_open(const char *path, const struct capture_options *options, struct capture **out, char *why,
	size_t why_len)
{
	struct fault f = {why, why_len};
	size_t len = strlen(path);
	struct capture *c = calloc(1, sizeof *c);
	int r;

	if (!c)
		return -ENOMEM;
	if (len > 4 && strcmp(path + len - 4, ".npy") == 0)
		r = open_npy(path, options, c, f);
	else
		r = open_safetensors(path, c, f);
	if (r < 0)
		capture_free(c);
	else
		*out = c;
	return r;
}

/* One layer of one plane, copied out of the pages into [tokens, heads, dim]. */
static void copy_plane(const struct plane *p, const struct kv_pages *pages, const struct kv_run *run,
	uint32_t n_tokens, uint8_t *out)
{
	size_t head = p->dim * dtype_bytes(p->dtype);

	for (uint32_t t = 0; t < n_tokens; t++) {
		uint32_t at = run->offset + t;
		const uint8_t *token = pages->base +
				       run->blocks[at / run->block_tokens] * pages->block_stride +
				       at % run->block_tokens * pages->token_stride;

		for (uint32_t h = 0; h < p->n_heads; h++, out += head)
			memcpy(out, token + h * pages->head_stride, head);
	}
}

/* Metadata as pairs; texts holds the numbers. */
static void describe(const struct geometry *g, char texts[4][NUMBER_BYTES], const char **metadata)
{
	const struct plane *k = &g->planes[0];
	size_t n = 0;

	snprintf(texts[0], NUMBER_BYTES, "%u", g->tp_rank);
	snprintf(texts[1], NUMBER_BYTES, "%u", g->tp_size);
	snprintf(texts[2], NUMBER_BYTES, "%u", k->rope_offset);
	snprintf(texts[3], NUMBER_BYTES, "%.9g", (double)k->rope_scale);
	metadata[n++] = "format";
	metadata[n++] = FORMAT;
	metadata[n++] = "model";
	metadata[n++] = g->name;
	metadata[n++] = "tp_rank";
	metadata[n++] = texts[0];
	metadata[n++] = "tp_size";
	metadata[n++] = texts[1];
	metadata[n++] = "rope_kind";
	metadata[n++] = rope_names[k->rope_kind];
	if (k->rope_kind != ROPE_NONE) {
		metadata[n++] = "rope_offset";
		metadata[n++] = texts[2];
		metadata[n++] = "rope_scale";
		metadata[n++] = texts[3];
	}
	metadata[n] = NULL;
}

int capture_write(const char *path, const struct geometry *g, const uint64_t *positions, uint32_t n_tokens,
	const struct kv_pages *pages, const struct kv_run *run, const struct capture_queries *queries)
{
	static const enum safetensors_type types[] = {[DTYPE_F16] = SAFETENSORS_F16,
		[DTYPE_BF16] = SAFETENSORS_BF16,
		[DTYPE_F32] = SAFETENSORS_F32};
	const struct plane *k = &g->planes[0];
	const char *metadata[16];
	char texts[4][NUMBER_BYTES];
	struct safetensor *tensors = NULL;
	char(*names)[TENSOR_NAME_BYTES] = NULL;
	uint8_t *copy = NULL;
	void *data = NULL;
	size_t n = 0, at = 0, len;
	int r = geometry_check(g, NULL, 0);

	if (r == 0 && (n_tokens == 0 || (g->n_planes > 1 && g->planes[1].rope_kind != ROPE_NONE)))
		r = -EINVAL;
	if (r < 0)
		return r;
	tensors = calloc((size_t)g->n_layers * g->n_planes + 4, sizeof *tensors);
	names = calloc((size_t)g->n_layers * g->n_planes, sizeof *names);
	copy = malloc(geometry_token_bytes(g) * n_tokens);
	r = -ENOMEM;
	if (!tensors || !names || !copy)
		goto out;
	describe(g, texts, metadata);
	for (uint32_t layer = 0; layer < g->n_layers; layer++) {
		for (uint32_t plane = 0; plane < g->n_planes; plane++, n++) {
			const struct plane *p = &g->planes[plane];

			snprintf(names[n], sizeof names[n], "layers.%u.%c", layer, plane ? 'v' : 'k');
			copy_plane(p, &pages[n], run, n_tokens, copy + at);
			tensors[n] = (struct safetensor){.name = names[n],
				.type = types[p->dtype],
				.n_dims = 3,
				.dims = {n_tokens, p->n_heads, p->dim},
				.data = copy + at,
				.len_bytes = n_tokens * plane_width(p) * dtype_bytes(p->dtype)};
			at += (size_t)tensors[n].len_bytes;
		}
	}
	tensors[n++] = (struct safetensor){.name = "positions",
		.type = SAFETENSORS_I64,
		.n_dims = 1,
		.dims = {n_tokens},
		.data = positions,
		.len_bytes = 8 * (uint64_t)n_tokens};
	if (k->rope_kind != ROPE_NONE)
		tensors[n++] = (struct safetensor){.name = "inv_freq",
			.type = SAFETENSORS_F32,
			.n_dims = 1,
			.dims = {k->rope_dim / 2},
			.data = k->inv_freq,
			.len_bytes = 4 * (uint64_t)(k->rope_dim / 2)};
	if (queries && queries->n) {
		tensors[n++] = (struct safetensor){.name = "query_positions",
			.type = SAFETENSORS_I64,
			.n_dims = 1,
			.dims = {queries->n},
			.data = queries->positions,
			.len_bytes = 8 * (uint64_t)queries->n};
		tensors[n++] = (struct safetensor){.name = "queries",
			.type = SAFETENSORS_F16,
			.n_dims = 4,
			.dims = {g->n_layers, queries->n, queries->n_heads, k->dim},
			.data = queries->values,
			.len_bytes = 2 * (uint64_t)g->n_layers * queries->n * queries->n_heads * k->dim};
	}
	r = safetensors_write(tensors, n, metadata, &data, &len);
	if (r == 0)
		r = file_write(path, data, len);
out:
	free(data);
	free(copy);
	free(names);
	free(tensors);
	return r;
}
