#include "tools/plan.h"

#include <math.h>

#include "policy/calibrate.h"

enum {
	PLANES = 2,
	BASIS_BYTES = 2,
	FEATURE_BYTES = 4 + 4, /* mean and weight */
	COMPONENT_BYTES = 4,   /* deviation */
	/* docs/frame-format.md: frequencies and biases of a plane. */
	PLANE_BYTES = LEVELS_TABLES * LEVELS_SETS * (2 * LEVELS_SYMBOLS + 4 * 2),
};

/* Layers, heads and widths: table 3 of "The Llama 3 Herd of Models", arXiv 2407.21783, and the models'
 * published config.json. Parameters follow from these: vocabulary 128256, not tied; a layer has 2 h^2 + 2 h w
 * for attention (w = 1024, keys and values), 3 h f for its feed-forward part and 2 h for norms, with h =
 * 4096, f = 14336 and h = 8192, f = 28672. */
const struct plan_model plan_models[] = {
	{"Llama-3.1-8B", 32, 8, 128, 8030261248},
	{"Llama-3.3-70B", 80, 8, 128, 70553706496},
	{0},
};

static uint32_t width(const struct plan_model *m)
{
	return m->n_kv_heads * m->head_dim;
}

uint32_t plan_layers_per_group(const struct plan_model *m)
{
	const uint32_t n = CALIBRATE_GROUP_FEATURES_MAX / width(m);

	return n < 1 ? 1 : n > m->n_layers ? m->n_layers : n;
}

void plan_cost(const struct plan_model *m, uint32_t layers_per_group, double kept, struct plan_cost *out)
{
	*out = (struct plan_cost){
		.n_groups = (m->n_layers + layers_per_group - 1) / layers_per_group,
		.group_features = layers_per_group * width(m),
		.transform_bytes = (uint64_t)PLANES * PLANE_BYTES,
	};
	for (uint32_t first = 0; first < m->n_layers; first += layers_per_group) {
		const uint32_t left = m->n_layers - first;
		const uint64_t p = (uint64_t)(left < layers_per_group ? left : layers_per_group) * width(m);
		const uint64_t r = (uint64_t)ceil(kept * (double)p);

		out->components += PLANES * r;
		out->transform_bytes +=
			PLANES * (r * p * BASIS_BYTES + p * FEATURE_BYTES + r * COMPONENT_BYTES);
		out->decode_flops += PLANES * 2.0 * (double)r * (double)p;
	}
	out->share = (double)out->transform_bytes / (2.0 * (double)m->n_parameters);
	out->recompute_share = out->decode_flops / (2.0 * (double)m->n_parameters);
}

double plan_kept_within(const struct plan_model *m, uint32_t layers_per_group, double share)
{
	double low = 0, high = 1;
	struct plan_cost cost;

	plan_cost(m, layers_per_group, 1, &cost);
	if (cost.share <= share)
		return 1;
	for (int i = 0; i < 60; i++) {
		const double kept = (low + high) / 2;

		plan_cost(m, layers_per_group, kept, &cost);
		if (cost.share <= share)
			low = kept;
		else
			high = kept;
	}
	return low;
}
