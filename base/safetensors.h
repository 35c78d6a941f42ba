/*
 * Reading and writing the .safetensors container (8-byte little-endian header length, JSON header, tensor
 * data). A reader is a checked view over memory that the caller keeps alive; nothing is copied but the names.
 * Pure, any thread. Used for model weights, captured KV, and transforms.
 */
#ifndef BASE_SAFETENSORS_H
#define BASE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

enum { SAFETENSORS_DIMS_MAX = 6 };

enum safetensors_type {
	SAFETENSORS_F16,
	SAFETENSORS_BF16,
	SAFETENSORS_F32,
	SAFETENSORS_F64,
	SAFETENSORS_U8,
	SAFETENSORS_U16,
	SAFETENSORS_I32,
	SAFETENSORS_I64
};

struct safetensor {
	const char *name;
	enum safetensors_type type;
	uint32_t n_dims;
	uint64_t dims[SAFETENSORS_DIMS_MAX];
	const void *data; /* not necessarily aligned */
	uint64_t len_bytes;
};

struct safetensors;

/* Parses data; every offset is checked. -EBADMSG with a sentence in why. data must outlive *out. */
int safetensors_parse(const void *data, size_t len, struct safetensors **out, char *why, size_t why_len);
struct safetensors *safetensors_free(struct safetensors *s);

size_t safetensors_count(const struct safetensors *s);
const struct safetensor *safetensors_at(const struct safetensors *s, size_t i);
/* NULL: no such tensor. */
const struct safetensor *safetensors_find(const struct safetensors *s, const char *name);
/* A string of the __metadata__ object, or NULL. */
const char *safetensors_metadata(const struct safetensors *s, const char *key);

/* Serialises tensors (in the given order) and metadata (pairs: key, value, ..., NULL; NULL: none). The data
 * part begins on a 64-byte boundary and has no gaps, as the format demands: what needs aligned tensors orders
 * them so that their sizes allow it. The same arguments always give the same bytes. *data is malloc'd and the
 * caller's. -EINVAL: names or text that repeat or are not UTF-8, sizes that disagree; -ENOMEM. */
int safetensors_write(
	const struct safetensor *tensors, size_t n, const char *const *metadata, void **data, size_t *len);

#endif
