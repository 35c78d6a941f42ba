/*
 * A model as the cache sees it: layers, planes, element type, rotation. Immutable once made; made from a
 * client's registration, from a capture's metadata or by a test, checked in one place (geometry_check). Plain
 * data, no thread. The inverse frequencies live inside the struct, so a geometry can be copied by assignment.
 */
#ifndef BASE_GEOMETRY_H
#define BASE_GEOMETRY_H

#include <stddef.h>
#include <stdint.h>

enum {
	GEOMETRY_PLANES_MAX = 2,
	GEOMETRY_LAYERS_MAX = 512,
	GEOMETRY_HEADS_MAX = 1024,
	GEOMETRY_DIM_MAX = 4096,
	GEOMETRY_ROPE_MAX = 1024, /* rope_dim at most */
	GEOMETRY_NAME_MAX = 128,
};

/* Same values as enum cistern_dtype and enum cistern_rope in the public header. */
enum dtype { DTYPE_F16 = 1, DTYPE_BF16 = 2, DTYPE_F32 = 3 };
enum rope_kind { ROPE_NONE = 0, ROPE_HALF = 1, ROPE_INTERLEAVED = 2 };

struct plane {
	uint32_t n_heads;
	uint32_t dim; /* features of one head */
	uint32_t dtype;
	uint32_t rope_kind;
	uint32_t rope_offset; /* first rotated feature of a head */
	uint32_t rope_dim;    /* rotated features of a head, even */
	float rope_scale;     /* cos and sin are multiplied by it; 1 but for YaRN and its kin */
	float inv_freq[GEOMETRY_ROPE_MAX / 2];
};

struct geometry {
	char name[GEOMETRY_NAME_MAX]; /* NUL-terminated */
	uint32_t n_layers;
	uint32_t n_planes;
	uint32_t tp_rank;
	uint32_t tp_size;
	struct plane planes[GEOMETRY_PLANES_MAX];
};

/* 0, or -EINVAL with the first fault, as a sentence, in why (if not NULL). Out-of-range numbers, odd
 * rope_dim, a rotation that reaches past dim, frequencies or scales that are not finite, names with control
 * characters. */
int geometry_check(const struct geometry *g, char *why, size_t why_len);

/* 16 bytes that name the geometry: XXH3-128 over a fixed little-endian serialisation of every field that
 * matters. */
void geometry_fingerprint(const struct geometry *g, uint8_t out[16]);

/* Bytes of one element. */
static inline size_t dtype_bytes(uint32_t dtype)
{
	return dtype == DTYPE_F32 ? 4 : 2;
}

/* Features of one token in one layer of a plane. */
static inline size_t plane_width(const struct plane *p)
{
	return (size_t)p->n_heads * p->dim;
}

/* Bytes of one token over all layers and planes, uncompressed. */
size_t geometry_token_bytes(const struct geometry *g);

#endif
