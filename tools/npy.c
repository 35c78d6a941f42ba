#include "tools/npy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PREFIX_BYTES = 8, HEADER_BYTES_MAX = 4096 };

static int refuse(char *why, size_t why_len, const char *sentence)
{
	if (why && why_len)
		snprintf(why, why_len, "%s", sentence);
	return -EBADMSG;
}

/* What follows "'key':" in the header, a Python dictionary that numpy always writes in the same form. */
static const char *find_value(const char *header, const char *key)
{
	char quoted[32];
	const char *at;

	snprintf(quoted, sizeof quoted, "'%s':", key);
	at = strstr(header, quoted);
	if (!at)
		return NULL;
	at += strlen(quoted);
	return at + strspn(at, " ");
}

/* '<f4' and the like; '|' is for types that have no byte order. */
static int parse_type(const char *text, struct npy *out)
{
	char *end;
	unsigned long bytes;

	if (!text || text[0] != '\'' || !strchr("<|", text[1]) || !text[1] || !strchr("fiuV", text[2]) ||
		!text[2])
		return -EBADMSG;
	bytes = strtoul(text + 3, &end, 10);
	if (*end != '\'' || !(bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8))
		return -EBADMSG;
	out->type = text[2];
	out->bytes = (uint32_t)bytes;
	return 0;
}

/* (2, 3), (2,) or (). */
static int parse_shape(const char *text, struct npy *out)
{
	out->n_dims = 0;
	if (!text || *text++ != '(')
		return -EBADMSG;
	for (;;) {
		char *end;

		text += strspn(text, " ,");
		if (*text == ')')
			return 0;
		if (*text < '0' || *text > '9' || out->n_dims == NPY_DIMS_MAX)
			return -EBADMSG;
		errno = 0;
		out->dims[out->n_dims++] = strtoull(text, &end, 10);
		if (errno)
			return -EBADMSG;
		text = end;
	}
}

static int parse_header(const char *header, struct npy *out, char *why, size_t why_len)
{
	const char *order = find_value(header, "fortran_order");

	if (!order || strncmp(order, "False", 5) != 0)
		return refuse(why, why_len, "array is not row-major");
	if (parse_type(find_value(header, "descr"), out) < 0)
		return refuse(why, why_len, "elements are not little-endian numbers");
	if (parse_shape(find_value(header, "shape"), out) < 0)
		return refuse(why, why_len, "shape is not a tuple of at most 6 numbers");
	return 0;
}

int npy_parse(const void *data, size_t len, struct npy *out, char *why, size_t why_len)
{
	const uint8_t *bytes = data;
	struct npy found = {0};
	char header[HEADER_BYTES_MAX + 1];
	size_t header_len, at;
	uint64_t need;
	int r;

	if (len < PREFIX_BYTES + 4 || memcmp(bytes, "\x93NUMPY", 6) != 0 || bytes[6] < 1 || bytes[6] > 3)
		return refuse(why, why_len, "not a .npy file");
	/* Version 1 has two bytes of length, later ones four. */
	header_len = (size_t)bytes[8] | (size_t)bytes[9] << 8;
	at = PREFIX_BYTES + 2;
	if (bytes[6] > 1) {
		header_len |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
		at += 2;
	}
	if (header_len > HEADER_BYTES_MAX || header_len > len - at)
		return refuse(why, why_len, "header is cut short or too long");
	memcpy(header, bytes + at, header_len);
	header[header_len] = 0;
	r = parse_header(header, &found, why, why_len);
	if (r < 0)
		return r;
	at += header_len;
	need = found.bytes;
	for (uint32_t i = 0; i < found.n_dims; i++)
		if (__builtin_mul_overflow(need, found.dims[i], &need))
			return refuse(why, why_len, "array is larger than any memory");
	if (need > len - at)
		return refuse(why, why_len, "array is cut short");
	found.data = bytes + at;
	found.len_bytes = need;
	*out = found;
	return 0;
}
