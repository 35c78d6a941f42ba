/*
 * From features of many tokens to a transform. Features come as plain arrays, rotation undone, one layer
 * group of one plane (a part) at a time: parts can be fed one after the other, so that only one covariance is
 * held, or side by side. One owner, one thread at a time.
 *
 *     calibrate_new; for each part: calibrate_add..., calibrate_learn; calibrate_finish; calibrate_free
 *
 * Every seventh chunk is held out: the basis is learned from the others, its variances are measured on these.
 * Otherwise the last components would look quieter than they are, as they were chosen for being quiet on the
 * very tokens they are measured with, and get too few bits.
 */
#ifndef POLICY_CALIBRATE_H
#define POLICY_CALIBRATE_H

#include <stddef.h>
#include <stdint.h>

#include "base/geometry.h"
#include "policy/levels-model.h"
#include "policy/transform.h"

enum {
	CALIBRATE_GROUP_FEATURES_MAX = 2048, /* widest layer group chosen unasked */
	CALIBRATE_FEATURES_MAX = 16384,      /* and at all: the covariance takes 24 p^2 bytes meanwhile */
};

struct calibrate_options {
	uint32_t layers_per_group; /* 0: as many as fit CALIBRATE_GROUP_FEATURES_MAX, one at least */
	uint32_t chunk_tokens;     /* tokens that share a frame; at most 4096 */
	uint32_t n_rungs;
	float rungs[TRANSFORM_RUNGS_MAX]; /* ratios of 16-bit source over frame, rising */
	/* What a plane's squared error counts for, relative to its variance; over 0. */
	double plane_weight[GEOMETRY_PLANES_MAX];
	/* calibrate_learn lets the covariances stay: more may be added then, and learned again, from where
	 * the last time ended (pca_refine). For a source that never ends. */
	int keep;
};

/* Groups chosen by size, chunks of 256, rungs 4 6 8 12 16 20 32 40; the values' squared error counts for half
 * of the keys' (docs/codec-notes.md). */
void calibrate_options_init(struct calibrate_options *o);

struct calibrate;

/* -EINVAL with a sentence in why: options out of range, a group over CALIBRATE_FEATURES_MAX; -ENOMEM. */
int calibrate_new(const struct geometry *g, const struct calibrate_options *options, struct calibrate **out,
	char *why, size_t why_len);
struct calibrate *calibrate_free(struct calibrate *c);

uint32_t calibrate_n_parts(const struct calibrate *c);
/* Plane and layers of a part; part->n_features floats make a token. The other fields are not set. */
void calibrate_part(const struct calibrate *c, uint32_t i, struct transform_part *part);

/* Adds tokens to a part, x: [n_tokens, n_features], in the order of their sequence; order of features: layer,
 * head, dim. Tokens with values that are not finite are left out. -ENOMEM. */
int calibrate_add(struct calibrate *c, uint32_t part, const float *x, size_t x_stride, size_t n_tokens);
/* Tokens taken, without those left out. */
uint64_t calibrate_count(const struct calibrate *c, uint32_t part);

/* Makes a part's features count by weight [p], all over 0 and finite: the transform's metric (transform.h),
 * up to a factor for the plane that calibrate_finish finds. Copied; not set: 1. Before calibrate_learn.
 * -ENOMEM. */
int calibrate_set_weight(struct calibrate *c, uint32_t part, const float *weight);

/* Turns what was added into mean, basis and variances and lets the covariance go. No more may be added,
 * unless options.keep. -ENODATA: fewer than 2 tokens, or learned before; -EDOM: the decomposition failed;
 * -ENOMEM; then what was learned before holds, with options.keep. */
int calibrate_learn(struct calibrate *c, uint32_t part);

/* With options.keep. What was added to a part so far counts as n_tokens from here on, if it was more; the
 * next calibrate_learn starts from nothing. */
void calibrate_fade(struct calibrate *c, uint32_t part, uint64_t n_tokens);
/* Bytes that a calibration with options.keep comes to hold, and while it learns. */
uint64_t calibrate_bytes(const struct calibrate *c);

struct calibrate_report {
	uint64_t n_tokens;                           /* of the part that has least */
	int held_out;                                /* 0: too few tokens to hold any out */
	double variance[GEOMETRY_PLANES_MAX];        /* of a token, over all layers, in the metric */
	double energy[GEOMETRY_PLANES_MAX];          /* the same without subtracting the mean */
	uint32_t n_features[GEOMETRY_PLANES_MAX];    /* of a token, over all layers */
	uint32_t components_99[GEOMETRY_PLANES_MAX]; /* that hold 99% of the variance */
	struct {
		double ratio;                             /* predicted, side information counted */
		double error[GEOMETRY_PLANES_MAX];        /* predicted relative error, as the codec counts */
		uint32_t components[GEOMETRY_PLANES_MAX]; /* coded */
	} rungs[TRANSFORM_RUNGS_MAX];
};

/* Finds the step of every rung and writes the transform (transform.h: serialised form). Every part must have
 * been learned. note: for the file's metadata, or NULL. *data is malloc'd and the caller's; report may be
 * NULL. -EINVAL: a part was not learned, a note that is not UTF-8; -ENOMEM. May be called again. */
int calibrate_finish(
	struct calibrate *c, const char *note, void **data, size_t *len, struct calibrate_report *report);

/* What levels are found to be, when chunks are encoded with a transform that calibrate_finish wrote
 * (codec_options.counts), makes the next one's tables better: [n_planes]. Until then the default model holds.
 * calibrate_finish has to be called again. */
void calibrate_count_levels(struct calibrate *c, const struct levels_counts *counts);

#endif
