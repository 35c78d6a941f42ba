/*
 * Makes a folder of frames that show every feature of the format:
 *
 *     frame-examples FOLDER [originals]
 *
 * For each geometry NAME.json and NAME.transform; for each example NAME-WHAT.frame and NAME-WHAT.decoded,
 * what cistern's own decoder makes of it ([planes][n_tokens][layers][heads][dim]); NAME-WHAT.original, what
 * it was made from, when asked for. tests/reference/decode_frame.py reads them, and says when a feature is
 * missing; tests/golden is such a folder.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/half.h"
#include "policy/levels-model.h"
#include "policy/policy.h"
#include "tests/format/small-cache.h"

/* Classes of the coded tokens, a letter each, from the start again where the chunk is longer: salient, plain,
 * redundant. */
static const char every_class[] = "sspsspppprrpppppppprrrrrr"
				  "pppppppppppppppppppppppppppppppppp";

static const struct example {
	const char *name;
	const char *classes;
	int with_transform;
	enum codec_entropy entropy;
	uint8_t rungs[3]; /* plain, salient, redundant */
	uint32_t n_tokens;
	uint32_t n_sinks, n_window;
	uint64_t position;
} examples[] = {
	{"gqa-plain", "p", 0, CODEC_RANS, {0, 0, 0}, 53, 4, 7, 3},
	{"gqa-rans", every_class, 1, CODEC_RANS, {1, 0, 2}, 79, 4, 5, 5120},
	{"gqa-deflate", every_class, 1, CODEC_DEFLATE, {1, 0, 2}, 79, 4, 5, 5120},
	{"gqa-one", "p", 1, CODEC_RANS, {2, 0, 0}, 1, 0, 0, 77},
	{"partial-plain", "p", 0, CODEC_RANS, {0, 0, 0}, 29, 0, 1, 100},
	{"partial-rans", "pppps", 1, CODEC_RANS, {2, 1, 0}, 71, 4, 0, 1234567},
	{"partial-deflate", "ppprr", 1, CODEC_DEFLATE, {0, 0, 1}, 69, 0, 2, 0},
	{"partial-raw", "p", 1, CODEC_RANS, {1, 0, 0}, 20, 4, 16, 256},
	{"latent-rans", every_class, 1, CODEC_RANS, {1, 0, 2}, 67, 2, 3, 40},
	{"latent-deflate", "p", 1, CODEC_DEFLATE, {1, 0, 0}, 33, 2, 0, 1310720},
};

enum { BAND = 16 };

static uint64_t random_state;

static double uniform(void)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (double)(random_state >> 40) / 16777216.0;
}

static float gauss(void)
{
	double sum = 0;

	for (int i = 0; i < 12; i++)
		sum += uniform();
	return (float)(sum - 6);
}

static void must(int holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "frame-examples: %s\n", what);
	exit(EXIT_FAILURE);
}

static void put(const char *folder, const char *name, const char *suffix, const void *data, size_t len)
{
	char path[512];

	snprintf(path, sizeof path, "%s/%s%s", folder, name, suffix);
	must(!file_write(path, data, len), path);
}

static void put_geometry(const char *folder, const struct geometry *g)
{
	static const char *const types[] = {"", "f16", "bf16", "f32"};
	static const char *const ropes[] = {"none", "half", "interleaved"};
	char text[4096];
	int n = snprintf(text, sizeof text,
		"{\"name\": \"%s\", \"layers\": %u, \"tp_rank\": %u, \"tp_size\": %u, \"planes\": [", g->name,
		g->n_layers, g->tp_rank, g->tp_size);

	for (uint32_t i = 0; i < g->n_planes; i++) {
		const struct plane *p = &g->planes[i];

		n += snprintf(text + n, sizeof text - (size_t)n,
			"%s\n  {\"heads\": %u, \"dim\": %u, \"dtype\": \"%s\", \"rope_kind\": \"%s\", "
			"\"rope_offset\": %u, \"rope_dim\": %u, \"rope_scale\": %.9g, \"inv_freq\": [",
			i ? "," : "", p->n_heads, p->dim, types[p->dtype], ropes[p->rope_kind],
			p->rope_offset, p->rope_dim, (double)p->rope_scale);
		for (uint32_t k = 0; k < p->rope_dim / 2; k++)
			n += snprintf(text + n, sizeof text - (size_t)n, "%s%.9g", k ? ", " : "",
				(double)p->inv_freq[k]);
		n += snprintf(text + n, sizeof text - (size_t)n, "]}");
	}
	n += snprintf(text + n, sizeof text - (size_t)n, "\n]}\n");
	must((size_t)n < sizeof text, "geometry too long");
	put(folder, g->name, ".json", text, (size_t)n);
}

/* Row i of the discrete cosine transform, which is orthonormal; every other row a little too long and the
 * others too short, so that a reader who leaves the rows as the file has them is found out. */
static void fill_basis(float *basis, size_t r, size_t p)
{
	const double pi = 3.14159265358979323846;

	for (size_t i = 0; i < r; i++)
		for (size_t k = 0; k < p; k++) {
			const double scale = sqrt((i ? 2.0 : 1.0) / (double)p) * (i % 2 ? 1.001 : 0.999);

			basis[i * p + k] =
				(float)(scale * cos(pi * (double)i * ((double)k + 0.5) / (double)p));
		}
}

/* Parts of one and of two layers, with deviations from wide (levels far beyond the table) to what the finest
 * rung leaves out; of the second part the coarsest rung codes nothing. */
static struct transform *make_transform(const char *folder, const struct geometry *g)
{
	struct transform_part parts[2 * GEOMETRY_PLANES_MAX];
	struct levels_model model;
	struct levels_tables tables[GEOMETRY_PLANES_MAX];
	struct transform t = {.n_rungs = 3,
		.rung_ratio = {4, 8, 12},
		.step = {0.1f, 0.3f, 0.8f},
		.n_planes = g->n_planes,
		.tables = tables,
		.n_parts = 2 * g->n_planes,
		.parts = parts};
	struct transform *parsed;
	float *memory[2 * GEOMETRY_PLANES_MAX];
	char why[200] = "";
	void *data;
	size_t len;

	levels_model_default(&model);
	geometry_fingerprint(g, t.fingerprint);
	for (uint32_t i = 0; i < t.n_parts; i++) {
		const uint32_t plane = i / 2, n_layers = 1 + i % 2;
		const size_t p = n_layers * plane_width(&g->planes[plane]), r = p * 3 / 4;
		float *mean = malloc((2 * p + r + r * p) * sizeof *mean), *weight = mean + p,
		      *deviation = weight + p, *basis = deviation + r;

		must(mean != NULL, "memory");
		for (size_t k = 0; k < p; k++) {
			mean[k] = 0.5f * gauss();
			/* The same for the features of a head, so that rotated ones may be weighed. */
			weight[k] = 0.75f + 0.25f * (float)(k / g->planes[plane].dim % 3);
		}
		for (size_t k = 0; k < r; k++)
			deviation[k] = i % 2 ? 0.38f * powf(0.96f, (float)k)
					     : 30 * powf(0.001f, (float)k / (float)r);
		fill_basis(basis, r, p);
		memory[i] = mean;
		tables[plane] = model.tables;
		parts[i] = (struct transform_part){.plane = plane,
			.first_layer = i % 2,
			.n_layers = n_layers,
			.n_features = (uint32_t)p,
			.n_components = (uint32_t)r,
			.mean = mean,
			.weight = weight,
			.basis = basis,
			.deviation = deviation};
	}
	must(!transform_serialise(&t, 1000, NULL, &data, &len), "serialise");
	must(!transform_parse(data, len, &parsed, why, sizeof why), why);
	put(folder, g->name, ".transform", data, len);
	for (uint32_t i = 0; i < t.n_parts; i++)
		free(memory[i]);
	free(data);
	return parsed;
}

/* Coefficients as the transform expects them, but for three things: bands of components are quieter or louder
 * than it says, so that offsets pay; some tokens are outliers; and tokens are unlike in energy. */
static void fill_part(
	struct small_cache *cache, const struct transform_part *part, uint32_t n_tokens, uint64_t position)
{
	static const float loudness[] = {1, 0.4f, 2.5f};
	const struct kernels *kernels = kernels_cpu();
	const struct plane *plane = &cache->g.planes[part->plane];
	const struct codec_chunk chunk = small_cache_chunk(cache, n_tokens, position);
	const size_t p = part->n_features, r = part->n_components, width = plane_width(plane);
	float *x = calloc(n_tokens * p, sizeof *x);
	float *cosines = malloc((size_t)n_tokens * (plane->rope_dim + 2) * sizeof *cosines);
	float *sines = cosines + (size_t)n_tokens * (plane->rope_dim / 2 + 1);
	const struct rope_table rope = {cosines, sines};
	uint16_t tokens[SMALL_TOKENS_MAX];
	uint64_t positions[SMALL_TOKENS_MAX];

	must(x && cosines, "memory");
	for (uint32_t t = 0; t < n_tokens; t++) {
		tokens[t] = (uint16_t)t;
		positions[t] = position + t;
		for (size_t i = 0; i < r; i++) {
			const float outlier = t % 23 == 19 && i % 5 == 0 ? 9 : 1;
			const float c = part->deviation[i] * loudness[i / BAND % 3] * outlier * gauss();

			for (size_t k = 0; k < p; k++)
				x[t * p + k] += c * part->basis[i * p + k];
		}
	}
	if (plane->rope_kind != ROPE_NONE)
		kernels->rope_fill(plane, positions, n_tokens, cosines, sines);
	for (uint32_t l = 0; l < part->n_layers; l++)
		kernels->scatter(plane,
			&cache->pages[(part->first_layer + l) * cache->g.n_planes + part->plane], &chunk.run,
			tokens, n_tokens, plane->rope_kind != ROPE_NONE ? &rope : NULL,
			part->mean + l * width, part->inverse + l * width, x + l * width, p);
	free(x);
	free(cosines);
}

/* What the plain codec's sections can look like: one layer with values spread evenly, whose codes DEFLATE
 * makes no smaller; one that is constant, whose steps it does; one that reaches to the end of f16, where
 * rounding saturates. */
static void fill_plain(struct small_cache *cache, uint32_t n_tokens)
{
	const size_t width = plane_width(&cache->g.planes[1]);

	for (uint32_t t = 0; t < n_tokens; t++) {
		uint16_t *even = (uint16_t *)(void *)small_cache_element(cache, 0, 1, t);
		uint16_t *constant = (uint16_t *)(void *)small_cache_element(cache, 1, 1, t);
		uint16_t *large = (uint16_t *)(void *)small_cache_element(cache, 2, 1, t);

		for (size_t k = 0; k < width; k++) {
			even[k] = half_from_float((float)uniform() - 0.5f);
			constant[k] = half_from_float(1);
			/* The largest finite f16, of either sign. */
			large[k] = uniform() * (double)width < (double)k ? 0
				   : uniform() < 0.5                     ? 0x7BFF
									 : 0xFBFF;
		}
	}
}

static uint8_t class_of(const struct example *e, uint32_t t)
{
	const char letter = e->classes[t % strlen(e->classes)];

	if (t < e->n_sinks)
		return TOKEN_SINK;
	if (t >= e->n_tokens - e->n_window)
		return TOKEN_WINDOW;
	return letter == 's' ? TOKEN_SALIENT : letter == 'r' ? TOKEN_REDUNDANT : TOKEN_PLAIN;
}

static void put_values(
	const char *folder, const struct example *e, const char *suffix, const struct small_cache *cache)
{
	size_t len;
	uint8_t *values = small_cache_copy(cache, e->n_tokens, &len);

	put(folder, e->name, suffix, values, len);
	free(values);
}

static void make(const char *folder, const struct example *e, const struct transform *t, int originals)
{
	struct codec *codec = codec_new(kernels_cpu(), 1 << 20);
	struct small_cache cache;
	struct codec_chunk chunk;
	uint8_t classes[SMALL_TOKENS_MAX], *frame;
	const struct codec_options options = {.transform = e->with_transform ? t : NULL,
		.rung = e->rungs[0],
		.rung_salient = e->rungs[1],
		.rung_redundant = e->rungs[2],
		.entropy = e->entropy,
		.classes = classes};
	size_t len;

	random_state = 42; /* so that an example does not depend on those before it */
	must(codec && !small_cache_init(&cache, e->name), e->name);
	chunk = small_cache_chunk(&cache, e->n_tokens, e->position);
	for (uint32_t i = 0; i < e->n_tokens; i++)
		classes[i] = class_of(e, i);
	for (uint32_t i = 0; i < t->n_parts; i++)
		fill_part(&cache, &t->parts[i], e->n_tokens, e->position);
	if (!strcmp(e->name, "gqa-plain"))
		fill_plain(&cache, e->n_tokens);
	if (!strcmp(e->classes, every_class)) /* a NaN: the token is kept as it is */
		memset(small_cache_element(&cache, 1, 0, 12), 0xFF, 4);
	if (originals)
		put_values(folder, e, ".original", &cache);
	must(!codec_encode(codec, &chunk, &options, &frame, &len, NULL), e->name);
	must(!codec_decode(codec, frame, len, options.transform, &chunk, 0, SMALL_LAYERS), e->name);
	put(folder, e->name, ".frame", frame, len);
	put_values(folder, e, ".decoded", &cache);
	free(frame);
	small_cache_fini(&cache);
	codec_free(codec);
}

static void make_geometry(const char *folder, const char *name, int originals)
{
	struct small_cache cache;
	struct transform *t;

	must(!small_cache_init(&cache, name), name);
	random_state = 42;
	put_geometry(folder, &cache.g);
	t = make_transform(folder, &cache.g);
	for (size_t i = 0; i < sizeof examples / sizeof *examples; i++)
		if (!strncmp(examples[i].name, name, strlen(name)))
			make(folder, &examples[i], t, originals);
	transform_unref(t);
	small_cache_fini(&cache);
}

int main(int argc, char **argv)
{
	const int originals = argc == 3 && !strcmp(argv[2], "originals");

	if (argc != 2 && !originals)
		return 2;
	make_geometry(argv[1], "gqa", originals);
	make_geometry(argv[1], "partial", originals);
	make_geometry(argv[1], "latent", originals);
	return 0;
}
