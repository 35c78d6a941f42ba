/*
 * A transform: what calibration learned of one model, and all that a decoder needs beside the frame. Per part
 * (one layer group of one plane): the mean, an orthonormal basis with its components in order of falling
 * variance, the variances, and for every rung of the rate ladder how many bits each component gets.
 * Immutable, named by the hash of its serialised bytes, shared by reference count; any thread may read it.
 *
 * Serialised form: a .safetensors file (docs/frame-format.md), so that other tools can read it too.
 */
#ifndef POLICY_TRANSFORM_H
#define POLICY_TRANSFORM_H

#include <stddef.h>
#include <stdint.h>

#include "base/geometry.h"

enum { TRANSFORM_RUNGS_MAX = 16, TRANSFORM_BITS_MAX = 8 };

struct transform_part {
	uint32_t plane;
	uint32_t first_layer;
	uint32_t n_layers;
	uint32_t n_features;   /* p = n_layers * width of the plane */
	uint32_t n_components; /* r <= p: what the finest rung uses */
	const float *mean;     /* [p] */
	const float *basis;    /* [r, p], rows orthonormal (to f16 rounding) */
	const float *variance; /* [r], falling */
	const uint8_t *bits;   /* [n_rungs, r], 0 to 8, non-increasing along r */
};

struct transform {
	uint8_t id[16];          /* XXH3-128 of the serialised bytes */
	uint8_t fingerprint[16]; /* of the geometry it was made for */
	uint32_t n_rungs;
	float rung_ratio[TRANSFORM_RUNGS_MAX]; /* nominal ratio of coded tokens, 16-bit source over frame,
						  rising */
	uint32_t n_parts;
	struct transform_part
		*parts; /* plane-major, then layer order: every layer of every plane exactly once */
};

/* Reads a serialised transform; data may be freed afterwards. The new transform has one reference.
 * -EBADMSG: not a transform, or damaged (why says what); -ENOMEM. */
int transform_parse(const void *data, size_t len, struct transform **out, char *why, size_t why_len);

/* Writes one; *data is malloc'd and the caller's. t->id is not read. n_calibration_tokens and note (may be
 * NULL) are kept as metadata. */
int transform_serialise(
	const struct transform *t, uint64_t n_calibration_tokens, const char *note, void **data, size_t *len);

struct transform *transform_ref(struct transform *t);
/* Drops a reference; the last one frees. Accepts NULL, returns NULL. */
struct transform *transform_unref(struct transform *t);

/* Whether t is made for g: fingerprints equal and every part in range. 0 or -EINVAL with a sentence in why.
 */
int transform_fits(const struct transform *t, const struct geometry *g, char *why, size_t why_len);

/* The rung whose nominal ratio is nearest to ratio (in log distance). */
uint32_t transform_rung(const struct transform *t, double ratio);

#endif
