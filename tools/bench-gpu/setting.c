#include "tools/bench-gpu/setting.h"

#include <cblas.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "policy/levels-model.h"

enum { GROUP_FEATURES_MAX = 2048 };

static const double decay = 14; /* of variances, over a part's components */

/* Rows of the orthonormal cosine transform. */
static float *make_basis(uint32_t p)
{
	float *basis = malloc((size_t)p * p * sizeof *basis);
	const double scale = sqrt(2.0 / p);

	for (uint32_t i = 0; basis && i < p; i++)
		for (uint32_t k = 0; k < p; k++)
			basis[(size_t)i * p + k] =
				(float)(i ? scale * cos(M_PI * (k + 0.5) * i / p) : sqrt(1.0 / p));
	return basis;
}

static float deviation_of(uint32_t i, uint32_t p)
{
	return (float)exp(-decay / 2 * i / p);
}

/* At high rates entropy-coded levels take log2(deviation / step) + 1.05 bits: (1/2) log2(2 pi e), less the
 * trellis' two sets. Where that is little, no less than a tenth of a bit. */
static double bits_at(double step, uint32_t p)
{
	double bits = 0;

	for (uint32_t i = 0; i < p; i++) {
		const double ratio = (double)deviation_of(i, p) / step;

		if (ratio >= 0.65)
			bits += fmax(0.1, log2(ratio) + 1.05);
	}
	return bits;
}

static double find_step(double ratio, uint32_t p)
{
	double low = 1e-6, high = 1;

	for (int i = 0; i < 60; i++) {
		const double middle = sqrt(low * high);

		if (bits_at(middle, p) > 16.0 / ratio * p)
			low = middle;
		else
			high = middle;
	}
	return low;
}

static int make_transform(struct setting *s, uint32_t group, const float *basis, double ratio)
{
	const uint32_t width = (uint32_t)plane_width(&s->g.planes[0]), n_groups = s->g.n_layers / group;
	const uint32_t p = group * width, n_parts = 2 * n_groups;
	struct transform_part *parts = calloc(n_parts, sizeof *parts);
	float *ones = malloc(p * sizeof *ones), *zeros = calloc(p, sizeof *zeros),
	      *deviation = malloc(p * sizeof *deviation);
	struct levels_tables tables[2];
	struct levels_model model;
	struct transform t = {.n_rungs = 1,
		.rung_ratio = {(float)ratio},
		.step = {(float)find_step(ratio, p)},
		.n_planes = 2,
		.tables = tables,
		.n_parts = n_parts,
		.parts = parts};
	struct transform_part whole = {.n_components = p, .deviation = deviation};
	void *data = NULL;
	size_t len;
	int r = parts && ones && zeros && deviation ? 0 : -ENOMEM;

	levels_model_default(&model);
	tables[0] = tables[1] = model.tables;
	geometry_fingerprint(&s->g, t.fingerprint);
	for (uint32_t i = 0; !r && i < p; i++) {
		ones[i] = 1;
		deviation[i] = deviation_of(i, p);
	}
	if (!r)
		whole.n_components = transform_active(&whole, t.step[0]);
	for (uint32_t i = 0; !r && i < n_parts; i++)
		parts[i] = (struct transform_part){.plane = i / n_groups,
			.first_layer = i % n_groups * group,
			.n_layers = group,
			.n_features = p,
			.n_components = whole.n_components,
			.mean = zeros,
			.weight = ones,
			.basis = basis,
			.deviation = deviation};
	if (!r)
		r = transform_serialise(&t, 0, NULL, &data, &len);
	if (!r)
		r = transform_parse(data, len, &s->t, NULL, 0);
	free(data);
	free(parts);
	free(ones);
	free(zeros);
	free(deviation);
	return r;
}

static float gauss(uint64_t *state)
{
	float sum = 0;

	for (int i = 0; i < 4; i++) {
		*state = *state * 6364136223846793005u + 1442695040888963407u;
		sum += (float)(*state >> 40) / 16777216.0f;
	}
	return (sum - 2) * 1.7320508f;
}

/* One chunk's features of every part: [n_parts][SETTING_CHUNK][p]. All chunks have the same, each rotated for
 * where it stands: a thousand million numbers at random take the host too long. */
static float *make_features(const struct setting *s, const float *basis, uint32_t p)
{
	float *x = malloc((size_t)s->t->n_parts * SETTING_CHUNK * p * sizeof *x);
	float *c = malloc((size_t)SETTING_CHUNK * p * sizeof *c);
	uint64_t random = 4711;

	for (uint32_t i = 0; x && c && i < s->t->n_parts; i++) {
		for (uint32_t t = 0; t < SETTING_CHUNK; t++)
			for (uint32_t k = 0; k < p; k++)
				c[(size_t)t * p + k] = gauss(&random) * deviation_of(k, p);
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, SETTING_CHUNK, (int)p, (int)p, 1, c,
			(int)p, basis, (int)p, 0, x + (size_t)i * SETTING_CHUNK * p, (int)p);
	}
	free(c);
	return x;
}

/* Writes one layer of one plane, all chunks, into host, as it will lie on the device. */
static void lay_plane(const struct setting *s, uint32_t layer, uint32_t plane, const float *x, uint32_t p,
	float *table, uint8_t *host)
{
	const struct plane *pl = &s->g.planes[plane];
	const struct kernels *k = kernels_cpu();
	const size_t width = plane_width(pl), half = pl->rope_dim / 2;
	const struct kv_pages pages = {.base = host,
		.block_stride = SETTING_BLOCK * width * 2,
		.token_stride = width * 2,
		.head_stride = pl->dim * 2};
	const struct transform_part *part = s->t->parts;
	uint64_t positions[SETTING_CHUNK];
	uint16_t tokens[SETTING_CHUNK];

	while (part->plane != plane || layer < part->first_layer ||
		layer >= part->first_layer + part->n_layers)
		part++;
	x += (size_t)(part - s->t->parts) * SETTING_CHUNK * p + (layer - part->first_layer) * width;
	for (uint32_t i = 0; i < s->n_chunks; i++) {
		const struct kv_run run = {s->blocks, SETTING_BLOCK, i * SETTING_CHUNK};
		const struct rope_table rope = {table, table + SETTING_CHUNK * half};

		for (uint32_t t = 0; t < SETTING_CHUNK; t++) {
			positions[t] = (uint64_t)i * SETTING_CHUNK + t;
			tokens[t] = (uint16_t)t;
		}
		if (pl->rope_kind != ROPE_NONE)
			k->rope_fill(pl, positions, SETTING_CHUNK, table, table + SETTING_CHUNK * half);
		k->scatter(pl, &pages, &run, tokens, SETTING_CHUNK, pl->rope_kind != ROPE_NONE ? &rope : NULL,
			NULL, NULL, x, p);
	}
}

static int fill(struct setting *s, const float *x, uint32_t p)
{
	const struct cuda_driver *d = device_driver(s->device);
	const size_t plane_bytes = (size_t)s->n_tokens * plane_width(&s->g.planes[0]) * 2;
	float *table = malloc((size_t)SETTING_CHUNK * s->g.planes[0].rope_dim * sizeof *table);
	uint8_t *host = malloc(plane_bytes);
	int r = host && table ? 0 : -ENOMEM;

	for (uint32_t i = 0; !r && i < 2 * s->g.n_layers; i++) {
		lay_plane(s, i / 2, i % 2, x, p, table, host);
		r = device_status(d->cuMemcpyHtoDAsync(s->memory + i * plane_bytes, host, plane_bytes, NULL));
		if (!r)
			r = device_status(d->cuStreamSynchronize(NULL));
	}
	free(host);
	free(table);
	return r;
}

static void describe(struct setting *s, const struct setting_shape *shape)
{
	s->g = (struct geometry){.name = "bench", .n_layers = shape->n_layers, .n_planes = 2, .tp_size = 1};
	for (int i = 0; i < 2; i++)
		s->g.planes[i] = (struct plane){
			.n_heads = shape->n_heads, .dim = shape->dim, .dtype = DTYPE_BF16, .rope_scale = 1};
	s->g.planes[0].rope_kind = ROPE_HALF;
	s->g.planes[0].rope_dim = shape->dim;
	for (uint32_t i = 0; i < shape->dim / 2; i++)
		s->g.planes[0].inv_freq[i] = powf(500000, -2 * (float)i / (float)shape->dim);
}

int setting_init(struct setting *s, const struct device *d, const struct setting_shape *shape)
{
	const uint32_t width = shape->n_heads * shape->dim;
	uint32_t group = width < GROUP_FEATURES_MAX ? GROUP_FEATURES_MAX / width : 1;
	const size_t plane_bytes = (size_t)shape->n_tokens * width * 2;
	float *basis = NULL, *x = NULL;
	int r;

	*s = (struct setting){.device = d,
		.n_tokens = shape->n_tokens,
		.n_chunks = shape->n_tokens / SETTING_CHUNK,
		.n_blocks = shape->n_tokens / SETTING_BLOCK,
		.bytes = 2 * shape->n_layers * plane_bytes};
	describe(s, shape);
	if (geometry_check(&s->g, NULL, 0) || shape->n_tokens % SETTING_CHUNK || shape->dim % 16 ||
		!s->n_chunks || s->n_chunks > DEVICE_BATCH_MAX)
		return -EINVAL;
	while (shape->n_layers % group)
		group--;
	s->pages = calloc(2 * shape->n_layers, sizeof *s->pages);
	s->blocks = malloc(s->n_blocks * sizeof *s->blocks);
	basis = make_basis(group * width);
	r = s->pages && s->blocks && basis ? 0 : -ENOMEM;
	if (!r)
		r = device_status(device_driver(d)->cuMemAlloc(&s->memory, s->bytes));
	for (uint32_t i = 0; !r && i < s->n_blocks; i++)
		s->blocks[i] = (uint32_t)((uint64_t)i * 7919 % s->n_blocks); /* a prime, so each once */
	for (uint32_t i = 0; !r && i < 2 * shape->n_layers; i++)
		s->pages[i] = (struct kv_pages){.base = (uint8_t *)(s->memory + i * plane_bytes),
			.block_stride = (size_t)SETTING_BLOCK * width * 2,
			.token_stride = (size_t)width * 2,
			.head_stride = (size_t)shape->dim * 2};
	if (!r)
		r = make_transform(s, group, basis, shape->ratio);
	if (!r) {
		x = make_features(s, basis, group * width);
		r = x ? fill(s, x, group * width) : -ENOMEM;
	}
	free(basis);
	free(x);
	return r;
}

void setting_fini(struct setting *s)
{
	if (s->memory)
		device_status(device_driver(s->device)->cuMemFree(s->memory));
	transform_unref(s->t);
	free(s->pages);
	free(s->blocks);
}

struct codec_chunk setting_chunk(const struct setting *s, uint32_t i)
{
	return (struct codec_chunk){.geometry = &s->g,
		.pages = s->pages,
		.run = {.blocks = s->blocks, .block_tokens = SETTING_BLOCK, .offset = i * SETTING_CHUNK},
		.n_tokens = SETTING_CHUNK,
		.position = (uint64_t)i * SETTING_CHUNK};
}
