#include "policy/levels-model.h"
#include "tests/runtime/made-up-cache.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/formula.h"

static void must(int holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "made-up cache: %s\n", what);
	abort();
}

static float gauss(struct world *w)
{
	float sum = 0;

	for (int i = 0; i < 12; i++) {
		w->random = w->random * 6364136223846793005u + 1442695040888963407u;
		sum += (float)(w->random >> 40) / 16777216.0f;
	}
	return sum - 6;
}

/* An orthonormal basis by Gram and Schmidt, deviations falling from what memory holds to a fifth of that,
 * weights that are not all one, the default tables. */
static void make_transform(struct world *w)
{
	struct transform_part parts[2];
	struct levels_model model;
	struct levels_tables tables[2];
	struct transform t = {.n_rungs = RUNGS,
		.rung_ratio = {4, 8, 12},
		.step = {0.1f, 0.3f, 0.8f},
		.n_planes = 2,
		.tables = tables,
		.n_parts = 2,
		.parts = parts};
	float *basis = malloc(sizeof(float) * R * P), mean[P], weight[P], deviation[R];
	char why[200] = "";

	levels_model_default(&model);
	tables[0] = tables[1] = model.tables;
	geometry_fingerprint(&w->g, t.fingerprint);
	for (size_t i = 0; i < R; i++) {
		double norm = 0;

		for (size_t k = 0; k < P; k++)
			basis[i * P + k] = gauss(w);
		for (size_t j = 0; j < i; j++) {
			double dot = 0;

			for (size_t k = 0; k < P; k++)
				dot += (double)basis[i * P + k] * basis[j * P + k];
			for (size_t k = 0; k < P; k++)
				basis[i * P + k] -= (float)dot * basis[j * P + k];
		}
		for (size_t k = 0; k < P; k++)
			norm += (double)basis[i * P + k] * basis[i * P + k];
		for (size_t k = 0; k < P; k++)
			basis[i * P + k] /= (float)sqrt(norm);
		deviation[i] = 1.5f * powf(0.975f, (float)i);
	}
	for (size_t k = 0; k < P; k++) {
		mean[k] = 0.5f * gauss(w);
		weight[k] = (float)world_weight((uint32_t)k / WIDTH, k % WIDTH);
	}
	for (uint32_t plane = 0; plane < 2; plane++)
		parts[plane] = (struct transform_part){.plane = plane,
			.n_layers = LAYERS,
			.n_features = P,
			.n_components = R,
			.mean = mean,
			.weight = weight,
			.basis = basis,
			.deviation = deviation};
	must(!transform_serialise(&t, 1000, NULL, &w->transform_data, &w->transform_len), "serialise");
	must(!transform_parse(w->transform_data, w->transform_len, &w->t, why, sizeof why), why);
	free(basis);
}

/* Every token: mean + sum of components of falling size, rotated as a cache holds it. */
void world_fill(struct world *w)
{
	for (size_t i = 0; i < (size_t)LAYERS * 2 * BLOCKS * BLOCK * WIDTH; i++)
		w->memory[i] = f16_from_f32(gauss(w));
}

struct world *world_new(enum rope_kind rope_kind)
{
	struct world *w = calloc(1, sizeof *w);
	const size_t layer_elements = (size_t)BLOCKS * BLOCK * WIDTH;

	must(w != NULL, "memory");
	w->random = 42;
	w->g = (struct geometry){.name = "test", .n_layers = LAYERS, .n_planes = 2, .tp_size = 1};
	for (int i = 0; i < 2; i++)
		w->g.planes[i] =
			(struct plane){.n_heads = HEADS, .dim = DIM, .dtype = DTYPE_F16, .rope_scale = 1};
	w->g.planes[0].rope_kind = rope_kind;
	w->g.planes[0].rope_dim = DIM;
	for (int i = 0; i < DIM / 2; i++)
		w->g.planes[0].inv_freq[i] = powf(10000, -2.0f * (float)i / DIM);
	must(!geometry_check(&w->g, NULL, 0), "geometry");
	make_transform(w);
	w->memory = malloc(layer_elements * LAYERS * 2 * 2);
	for (size_t i = 0; i < LAYERS * 2; i++)
		w->pages[i] = (struct kv_pages){.base = (uint8_t *)(w->memory + i * layer_elements),
			.block_stride = BLOCK * WIDTH * 2,
			.token_stride = WIDTH * 2,
			.head_stride = DIM * 2};
	for (uint32_t i = 0; i < BLOCKS; i++)
		w->blocks[i] = (i * 7 + 3) % BLOCKS;
	w->codec = codec_new(kernels_cpu(), 1 << 20);
	must(w->codec != NULL, "codec");
	world_fill(w);
	return w;
}

void world_free(struct world *w)
{
	codec_free(w->codec);
	transform_unref(w->t);
	free(w->transform_data);
	free(w->memory);
	free(w);
}

uint16_t *world_element(
	const struct world *w, uint32_t layer, uint32_t plane, uint32_t offset, uint32_t token)
{
	const uint32_t at = offset + token;
	const struct kv_pages *p = &w->pages[layer * 2 + plane];

	return (uint16_t *)(void *)(p->base + w->blocks[at / BLOCK] * p->block_stride +
				    at % BLOCK * p->token_stride);
}

struct codec_chunk world_chunk(struct world *w, uint32_t offset, uint32_t n, uint64_t position)
{
	return (struct codec_chunk){.geometry = &w->g,
		.pages = w->pages,
		.run = {.blocks = w->blocks, .block_tokens = BLOCK, .offset = offset},
		.n_tokens = n,
		.position = position};
}
