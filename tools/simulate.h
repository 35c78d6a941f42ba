/*
 * What a policy would do to captured KV, without a daemon: sinks are searched for, rungs chosen and chunks
 * encoded as the daemon would, one capture after the other. One thread.
 */
#ifndef TOOLS_SIMULATE_H
#define TOOLS_SIMULATE_H

#include "kernels/kernels.h"
#include "policy/policy.h"
#include "policy/transform.h"
#include "tools/capture.h"

enum { SIMULATE_CLASSES = 6, SIMULATE_CHUNK = 256 };

struct simulation {
	uint64_t n_chunks, n_tokens;
	uint64_t n_class[SIMULATE_CLASSES]; /* as encoded, promotions included, by enum token_class */
	uint64_t n_found;                   /* sinks that are not among the first ones */
	uint64_t n_rung[TRANSFORM_RUNGS_MAX];
	double raw_bytes, frame_bytes, coded_raw_bytes, coded_bytes;
	double error[2], worst[2]; /* mean over chunks, of each plane; and the worst token's */
	double achieved;           /* over the last window: what mode holds */
};

/* transform: NULL for the plain codec. fill: how full the pool is, for mode=pressure. Every capture must be
 * of the geometry the transform is for. -EINVAL with a sentence in why; -errno of a file; -ENOMEM. */
int simulate(const struct kernels *kernels, const struct policy *policy, const struct transform *transform,
	double fill, const struct capture_options *options, char *const *paths, size_t n_paths,
	struct simulation *out, char *why, size_t why_len);

#endif
