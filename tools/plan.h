/*
 * What a transform costs a model before any is learned: bytes beside the parameters, and arithmetic a token.
 * Pure.
 */
#ifndef TOOLS_PLAN_H
#define TOOLS_PLAN_H

#include <stddef.h>
#include <stdint.h>

struct plan_model {
	const char *name;
	uint32_t n_layers, n_kv_heads, head_dim;
	uint64_t n_parameters;
};

/* Models whose figures are public; ends with a NULL name. */
extern const struct plan_model plan_models[];

/* The layers that calibration decorrelates together when it is not told otherwise. */
uint32_t plan_layers_per_group(const struct plan_model *m);

struct plan_cost {
	uint32_t n_groups;        /* of each plane; the last may be smaller */
	uint32_t group_features;  /* of the largest */
	uint64_t components;      /* kept, over all groups and both planes */
	uint64_t transform_bytes; /* f16 basis; f32 mean, weights and deviations; the planes' tables */
	double share;             /* of the parameters at 16 bits */
	double decode_flops;      /* a token: reconstruction of keys and values from all kept components */
	double recompute_share;   /* of the 2 n_parameters that computing a token takes at least */
};

/* kept: share of each group's components, over 0 to 1. layers_per_group: 1 to n_layers. */
void plan_cost(const struct plan_model *m, uint32_t layers_per_group, double kept, struct plan_cost *out);

/* The largest share of components whose transform takes at most `share` of the parameters' bytes; 1 at most.
 */
double plan_kept_within(const struct plan_model *m, uint32_t layers_per_group, double share);

#endif
