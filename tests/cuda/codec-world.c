#include "tests/cuda/codec-world.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/formula.h"
#include "policy/levels-model.h"

enum { RUNGS = 3 };

static void must(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "codec world: %s\n", what);
	abort();
}

float codec_world_gauss(struct codec_world *w)
{
	float sum = 0;

	for (int i = 0; i < 12; i++) {
		w->random = w->random * 6364136223846793005u + 1442695040888963407u;
		sum += (float)(w->random >> 40) / 16777216.0f;
	}
	return sum - 6;
}

static float *floats(size_t n)
{
	float *p = calloc(n, sizeof *p);

	must(p != NULL, "memory");
	return p;
}

/* Rows orthonormal, by Gram and Schmidt. */
static float *make_basis(struct codec_world *w, size_t r, size_t p)
{
	float *basis = floats(r * p);

	for (size_t i = 0; i < r; i++) {
		double norm = 0;

		for (size_t k = 0; k < p; k++)
			basis[i * p + k] = codec_world_gauss(w);
		for (size_t j = 0; j < i; j++) {
			double dot = 0;

			for (size_t k = 0; k < p; k++)
				dot += (double)basis[i * p + k] * (double)basis[j * p + k];
			for (size_t k = 0; k < p; k++)
				basis[i * p + k] -= (float)dot * basis[j * p + k];
		}
		for (size_t k = 0; k < p; k++)
			norm += (double)basis[i * p + k] * (double)basis[i * p + k];
		for (size_t k = 0; k < p; k++)
			basis[i * p + k] /= (float)sqrt(norm);
	}
	return basis;
}

/* Weights are equal over a head, so that rotated features may be weighed. The first deviation is 300 finest
 * steps: wide components are among them. */
static void make_transform(struct codec_world *w, const struct codec_shape *shape)
{
	const uint32_t n_groups = (shape->n_layers + shape->group - 1) / shape->group;
	struct transform_part *parts = calloc(n_groups * shape->n_planes, sizeof *parts);
	struct levels_tables tables[2];
	struct levels_model model;
	struct transform t = {.n_rungs = RUNGS,
		.rung_ratio = {4, 8, 12},
		.step = {0.1f, 0.3f, 0.8f},
		.n_planes = shape->n_planes,
		.tables = tables,
		.n_parts = n_groups * shape->n_planes,
		.parts = parts};
	char why[200] = "";
	void *data;
	size_t len;

	levels_model_default(&model);
	tables[0] = tables[1] = model.tables;
	geometry_fingerprint(&w->g, t.fingerprint);
	for (uint32_t i = 0; i < t.n_parts; i++) {
		const uint32_t first = i % n_groups * shape->group;
		const uint32_t n =
			first + shape->group > shape->n_layers ? shape->n_layers - first : shape->group;
		const uint32_t p = n * shape->n_heads * shape->dim;
		const uint32_t r = shape->n_components < p ? shape->n_components : p;
		float *mean = floats(p), *weight = floats(p), *deviation = floats(r);

		for (uint32_t k = 0; k < p; k++) {
			mean[k] = 0.5f * codec_world_gauss(w);
			weight[k] = 0.7f + 0.2f * (float)(k / shape->dim % 4);
		}
		for (uint32_t k = 0; k < r; k++)
			deviation[k] = 30.0f * powf(0.2f / 30.0f, (float)k / (float)r);
		parts[i] = (struct transform_part){.plane = i / n_groups,
			.first_layer = first,
			.n_layers = n,
			.n_features = p,
			.n_components = r,
			.mean = mean,
			.weight = weight,
			.basis = make_basis(w, r, p),
			.deviation = deviation};
	}
	must(!transform_serialise(&t, 1000, NULL, &data, &len), "serialise");
	must(!transform_parse(data, len, &w->t, why, sizeof why), why);
	for (uint32_t i = 0; i < t.n_parts; i++) {
		free((void *)parts[i].mean);
		free((void *)parts[i].weight);
		free((void *)parts[i].basis);
		free((void *)parts[i].deviation);
	}
	free(parts);
	free(data);
}

static void make_memory(struct codec_world *w, const struct codec_shape *shape)
{
	const size_t es = dtype_bytes(shape->dtype);
	const size_t token = shape->n_heads * shape->dim * es, block = token * shape->block_tokens;
	const uint32_t n = shape->n_layers * shape->n_planes;
	const struct cuda_driver *d = device_driver(w->device);

	w->block_tokens = shape->block_tokens;
	w->n_blocks = 512 / shape->block_tokens;
	w->size = block * w->n_blocks * n;
	w->memory = malloc(w->size);
	w->device_copy = malloc(w->size);
	w->pages = calloc(n, sizeof *w->pages);
	w->device_pages = calloc(n, sizeof *w->device_pages);
	must(w->memory && w->device_copy && w->pages && w->device_pages, "memory");
	must(d->cuMemAlloc(&w->device_memory, w->size) == CUDA_SUCCESS, "device memory");
	for (uint32_t i = 0; i < n; i++) {
		w->pages[i] = (struct kv_pages){.base = w->memory + i * block * w->n_blocks,
			.block_stride = block,
			.token_stride = shape->heads_outside ? shape->dim * es : token,
			.head_stride = shape->heads_outside ? shape->dim * es * shape->block_tokens
							    : shape->dim * es};
		w->device_pages[i] = w->pages[i];
		w->device_pages[i].base = (uint8_t *)(w->device_memory + i * block * w->n_blocks);
	}
	must(w->n_blocks <= sizeof w->blocks / sizeof *w->blocks, "blocks");
	for (uint32_t i = 0; i < w->n_blocks; i++)
		w->blocks[i] = (i * 7 + 3) % w->n_blocks;
}

struct codec_world *codec_world_new(const struct device *d, const struct codec_shape *shape, uint64_t seed)
{
	struct codec_world *w = calloc(1, sizeof *w);
	struct plane *first;
	char why[200] = "";

	must(w != NULL, "memory");
	w->device = d;
	w->random = seed;
	w->g = (struct geometry){
		.name = "made-up", .n_layers = shape->n_layers, .n_planes = shape->n_planes, .tp_size = 1};
	for (uint32_t i = 0; i < shape->n_planes; i++)
		w->g.planes[i] = (struct plane){
			.n_heads = shape->n_heads, .dim = shape->dim, .dtype = shape->dtype, .rope_scale = 1};
	first = &w->g.planes[0];
	first->rope_kind = shape->rope_kind;
	first->rope_offset = shape->rope_offset;
	first->rope_dim = shape->rope_dim;
	if (shape->rope_kind != ROPE_NONE)
		first->rope_scale = shape->rope_scale;
	for (uint32_t i = 0; i < shape->rope_dim / 2; i++)
		first->inv_freq[i] = powf(10000, -2.0f * (float)i / (float)shape->rope_dim);
	must(!geometry_check(&w->g, why, sizeof why), why);
	make_transform(w, shape);
	make_memory(w, shape);
	w->host = codec_new(kernels_cpu(), 1 << 20);
	must(w->host != NULL, "codec");
	codec_world_fill(w);
	return w;
}

void codec_world_free(struct codec_world *w)
{
	device_driver(w->device)->cuMemFree(w->device_memory);
	codec_free(w->host);
	transform_unref(w->t);
	free(w->memory);
	free(w->device_copy);
	free(w->pages);
	free(w->device_pages);
	free(w);
}

void codec_world_send(struct codec_world *w)
{
	const struct cuda_driver *d = device_driver(w->device);

	must(d->cuMemcpyHtoDAsync(w->device_memory, w->memory, w->size, NULL) == CUDA_SUCCESS, "copy");
	must(d->cuStreamSynchronize(NULL) == CUDA_SUCCESS, "copy");
}

void codec_world_fetch(struct codec_world *w)
{
	const struct cuda_driver *d = device_driver(w->device);

	must(d->cuMemcpyDtoHAsync(w->device_copy, w->device_memory, w->size, NULL) == CUDA_SUCCESS, "copy");
	must(d->cuStreamSynchronize(NULL) == CUDA_SUCCESS, "copy");
}

uint8_t *codec_world_at(struct codec_world *w, uint8_t *memory, uint32_t layer, uint32_t plane, uint32_t head,
	uint32_t offset, uint32_t token)
{
	const struct kv_pages *p = &w->pages[layer * w->g.n_planes + plane];
	const uint32_t at = offset + token;

	return memory + (p->base - w->memory) + w->blocks[at / w->block_tokens] * p->block_stride +
	       at % w->block_tokens * p->token_stride + head * p->head_stride;
}

struct codec_chunk codec_world_chunk(
	struct codec_world *w, bool on_device, uint32_t offset, uint32_t n, uint64_t position)
{
	return (struct codec_chunk){.geometry = &w->g,
		.pages = on_device ? w->device_pages : w->pages,
		.run = {.blocks = w->blocks, .block_tokens = w->block_tokens, .offset = offset},
		.n_tokens = n,
		.position = position};
}

/* The kernels' scatter puts features where they belong, rotated for position 0 + token. */
void codec_world_fill(struct codec_world *w)
{
	const struct kernels *k = kernels_cpu();
	const uint32_t n = w->n_blocks * w->block_tokens;

	for (uint32_t i = 0; i < w->t->n_parts; i++) {
		const struct transform_part *part = &w->t->parts[i];
		const struct plane *plane = &w->g.planes[part->plane];
		const size_t width = plane_width(plane), half = plane->rope_dim / 2;
		float *x = floats(part->n_features), *table = floats(2 * half + 1);

		for (uint32_t t = 0; t < n; t++) {
			const struct kv_run run = {w->blocks, w->block_tokens, t};
			const struct rope_table rope = {table, table + half};
			const uint64_t position = t;
			const uint16_t zero = 0;

			for (uint32_t f = 0; f < part->n_features; f++)
				x[f] = 0.05f * codec_world_gauss(w);
			for (uint32_t c = 0; c < part->n_components; c++) {
				const float a = part->deviation[c] * codec_world_gauss(w);

				for (uint32_t f = 0; f < part->n_features; f++)
					x[f] += a * part->basis[(size_t)c * part->n_features + f];
			}
			if (plane->rope_kind != ROPE_NONE)
				k->rope_fill(plane, &position, 1, table, table + half);
			for (uint32_t l = 0; l < part->n_layers; l++)
				k->scatter(plane,
					&w->pages[(part->first_layer + l) * w->g.n_planes + part->plane],
					&run, &zero, 1, plane->rope_kind != ROPE_NONE ? &rope : NULL,
					part->mean + l * width, part->inverse + l * width, x + l * width,
					part->n_features);
		}
		free(x);
		free(table);
	}
	codec_world_send(w);
}

static float element(uint32_t dtype, const uint8_t *p, uint32_t i)
{
	uint16_t h;
	float x;

	if (dtype == DTYPE_F32) {
		memcpy(&x, p + 4 * i, 4);
		return x;
	}
	memcpy(&h, p + 2 * i, 2);
	return dtype == DTYPE_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

double codec_world_norm(
	struct codec_world *w, uint8_t *a, uint8_t *b, uint32_t plane, uint32_t offset, uint32_t token)
{
	const struct plane *p = &w->g.planes[plane];
	double sum = 0;

	for (uint32_t i = 0; i < w->t->n_parts; i++) {
		const struct transform_part *part = &w->t->parts[i];

		if (part->plane != plane)
			continue;
		for (uint32_t f = 0; f < part->n_features; f++) {
			const uint32_t layer = part->first_layer + f / (uint32_t)plane_width(p);
			const uint32_t head = f % (uint32_t)plane_width(p) / p->dim, at = f % p->dim;
			const bool rotated = p->rope_kind != ROPE_NONE && at >= p->rope_offset &&
					     at < p->rope_offset + p->rope_dim;
			double x = (double)element(
				p->dtype, codec_world_at(w, a, layer, plane, head, offset, token), at);

			if (b)
				x -= (double)element(p->dtype,
					codec_world_at(w, b, layer, plane, head, offset, token), at);
			/* A rotation keeps a pair's norm, but for its scale. */
			x *= (double)part->weight[f] / (rotated ? (double)p->rope_scale : 1);
			sum += x * x;
		}
	}
	return sum;
}
