/*
 * What the codecs learn from captures of the calibration text, made once for all of them: the daemon's own
 * calibration makes Cistern's transform, and a principal component analysis of the same tokens in the same
 * layer groups serves plain KVTC and the Gaussian bound. Read-only once made.
 */
#ifndef BENCH_RATE_LEARNING_H
#define BENCH_RATE_LEARNING_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#include "policy/transform.h"
#include "tools/bench-rate/codecs/layer-group.h"

struct learned_group {
	struct layer_group group;
	float *mean;   /* [p] */
	float *basis;  /* [p, p], rows by falling variance */
	float *sample; /* [p, n_sample]: coefficients of calibration tokens, spread evenly */
	size_t n_sample;
};

struct learning {
	const struct kernels *kernels;
	struct geometry geometry;
	struct transform *transform; /* Cistern's */
	size_t transform_bytes;
	uint64_t n_tokens; /* learned from */
	size_t n_groups;
	struct learned_group *groups; /* plane-major, as in the transform */
	size_t n_whole;
	struct learned_group
		*whole; /* one over all layers of each plane; none where the groups are just that */
};

struct learning_options {
	uint32_t layers_per_group;   /* 0: as many as Cistern takes unasked */
	uint64_t skip_positions;     /* sinks do not take part, as in `cistern calibrate` */
	volatile sig_atomic_t *stop; /* may be NULL */
};

/* From captures (tools/capture.h) of one model. -errno, with a sentence on stderr. */
int learning_new(const struct learning_options *o, char *const *paths, size_t n_paths, struct learning **out);
struct learning *learning_free(struct learning *l);

#endif
