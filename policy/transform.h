/*
 * A transform: what calibration learned of one model, and all that a decoder needs beside the frame. Per part
 * (one layer group of one plane): mean, weights, an orthonormal basis with its components in order of falling
 * deviation, and the deviations; per plane the tables that levels are coded with (base/levels.h); and the
 * rate ladder, a quantiser step for each rung. Immutable, named by the hash of its serialised bytes, shared
 * by reference count; any thread may read it.
 *
 * Weights are the transform's metric: the codec works on z = weight * (x - mean), feature by feature, and
 * squared errors of z are what it minimises, bounds and states. They make features count for what they do to
 * attention; with all of them equal the metric is plain L2, relative to the plane's variance.
 *
 * Serialised form: a .safetensors file (docs/frame-format.md), so that other tools can read it too.
 */
#ifndef POLICY_TRANSFORM_H
#define POLICY_TRANSFORM_H

#include <stddef.h>
#include <stdint.h>

#include "base/geometry.h"
#include "base/levels.h"

enum { TRANSFORM_RUNGS_MAX = 16 };

struct transform_part {
	uint32_t plane;
	uint32_t first_layer;
	uint32_t n_layers;
	uint32_t n_features;    /* p = n_layers * width of the plane */
	uint32_t n_components;  /* r <= p: what the finest rung uses */
	const float *mean;      /* [p] */
	const float *weight;    /* [p], over 0 */
	const float *inverse;   /* [p], one over weight */
	const float *basis;     /* [r, p], rows orthonormal */
	const float *deviation; /* [r] of the components of z, falling */
	/* Of weight * mean: itself [p], its components [r], its squared norm. */
	const float *centre;
	const float *centre_part;
	float centre_energy;
};

struct transform {
	uint8_t id[16];          /* XXH3-128 of the serialised bytes */
	uint8_t fingerprint[16]; /* of the geometry it was made for */
	uint32_t n_rungs;
	float rung_ratio[TRANSFORM_RUNGS_MAX]; /* nominal ratio of coded tokens, 16-bit source over frame,
						  rising */
	float step[TRANSFORM_RUNGS_MAX];       /* the quantiser's, rising */
	uint32_t n_planes;
	const struct levels_tables *tables; /* [n_planes] */
	uint32_t n_parts;
	struct transform_part
		*parts; /* plane-major, then layer order: every layer of every plane exactly once */
};

/* Reads a serialised transform; data may be freed afterwards. The new transform has one reference.
 * -EBADMSG: not a transform, or damaged (why says what); -ENOMEM. */
int transform_parse(const void *data, size_t len, struct transform **out, char *why, size_t why_len);

/* Writes one; *data is malloc'd and the caller's. t->id and the parts' inverse and what follows from the mean
 * are not read. n_calibration_tokens and note (may be NULL) are kept as metadata. */
int transform_serialise(
	const struct transform *t, uint64_t n_calibration_tokens, const char *note, void **data, size_t *len);

struct transform *transform_ref(struct transform *t);
/* Drops a reference; the last one frees. Accepts NULL, returns NULL. */
struct transform *transform_unref(struct transform *t);

/* Whether t is made for g: fingerprints equal and every part in range. 0 or -EINVAL with a sentence in why.
 */
int transform_fits(const struct transform *t, const struct geometry *g, char *why, size_t why_len);

/* Components of a part that are coded at a step: the first so many, whose class (levels_class) is not below
 * LEVELS_CLASS_MIN. */
uint32_t transform_active(const struct transform_part *part, float step);

/* The rung whose nominal ratio is nearest to ratio (in log distance). */
uint32_t transform_rung(const struct transform *t, double ratio);

#endif
