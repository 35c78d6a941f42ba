/* The codec on made-up caches: raw tokens come back bit for bit, coded ones within the error that the encoder
 * announced, and damaged frames write nothing that is not sound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/formula.h"
#include "policy/policy.h"
#include "runtime/codec.h"

enum { LAYERS = 3, HEADS = 2, DIM = 16, WIDTH = HEADS * DIM, P = LAYERS * WIDTH, R = 80, RUNGS = 2 };
enum { BLOCK = 16, BLOCKS = 24, TOKENS_MAX = 256 };

struct world {
	struct geometry g;
	struct transform *t;
	uint16_t *memory; /* [LAYERS][2][BLOCKS][BLOCK][HEADS][DIM] */
	struct kv_pages pages[LAYERS * 2];
	uint32_t blocks[BLOCKS];
	struct codec *codec;
};

static uint64_t random_state = 1;

static float gauss(void)
{
	float sum = 0;

	for (int i = 0; i < 12; i++) {
		random_state = random_state * 6364136223846793005u + 1442695040888963407u;
		sum += (float)(random_state >> 40) / 16777216.0f;
	}
	return sum - 6;
}

/* An orthonormal basis by Gram and Schmidt, bits falling from 6 to 0. */
static struct transform *make_transform(const struct geometry *g)
{
	struct transform_part parts[2];
	struct transform t = {.n_rungs = RUNGS, .rung_ratio = {4, 12}, .n_parts = 2, .parts = parts}, *parsed;
	float *basis = malloc(sizeof(float) * R * P), mean[P], variance[R];
	uint8_t bits[RUNGS * R];
	char why[200];
	void *data;
	size_t len;

	geometry_fingerprint(g, t.fingerprint);
	for (size_t i = 0; i < R; i++) {
		double norm = 0;

		for (size_t k = 0; k < P; k++)
			basis[i * P + k] = gauss();
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
		variance[i] = 100.0f * powf(0.93f, (float)i);
		bits[i] = (uint8_t)(i < 4 ? 6 : i < 70 ? 5 : 4);
		bits[R + i] = (uint8_t)(i < 4 ? 4 : i < 10 ? 3 : i < 20 ? 2 : i < 40 ? 1 : 0);
	}
	for (size_t k = 0; k < P; k++)
		mean[k] = 0.5f * gauss();
	for (uint32_t plane = 0; plane < 2; plane++)
		parts[plane] = (struct transform_part){.plane = plane,
			.n_layers = LAYERS,
			.n_features = P,
			.n_components = R,
			.mean = mean,
			.basis = basis,
			.variance = variance,
			.bits = bits};
	assert_int_equal(transform_serialise(&t, 1000, NULL, &data, &len), 0);
	if (transform_parse(data, len, &parsed, why, sizeof why))
		fail_msg("%s", why);
	free(data);
	free(basis);
	return parsed;
}

/* Every token: mean + sum of components of falling size, rotated as a cache holds it. */
static void fill_memory(struct world *w)
{
	for (size_t i = 0; i < (size_t)LAYERS * 2 * BLOCKS * BLOCK * WIDTH; i++)
		w->memory[i] = f16_from_f32(gauss());
}

static int set_up(void **state)
{
	struct world *w = calloc(1, sizeof *w);
	const size_t layer_elements = (size_t)BLOCKS * BLOCK * WIDTH;

	w->g = (struct geometry){.name = "test", .n_layers = LAYERS, .n_planes = 2, .tp_size = 1};
	for (int i = 0; i < 2; i++)
		w->g.planes[i] =
			(struct plane){.n_heads = HEADS, .dim = DIM, .dtype = DTYPE_F16, .rope_scale = 1};
	w->g.planes[0].rope_kind = ROPE_HALF;
	w->g.planes[0].rope_dim = DIM;
	for (int i = 0; i < DIM / 2; i++)
		w->g.planes[0].inv_freq[i] = powf(10000, -2.0f * (float)i / DIM);
	assert_int_equal(geometry_check(&w->g, NULL, 0), 0);
	w->t = make_transform(&w->g);
	w->memory = malloc(layer_elements * LAYERS * 2 * 2);
	for (size_t i = 0; i < LAYERS * 2; i++)
		w->pages[i] = (struct kv_pages){.base = (uint8_t *)(w->memory + i * layer_elements),
			.block_stride = BLOCK * WIDTH * 2,
			.token_stride = WIDTH * 2,
			.head_stride = DIM * 2};
	for (uint32_t i = 0; i < BLOCKS; i++)
		w->blocks[i] = (i * 7 + 3) % BLOCKS;
	w->codec = codec_new(kernels_cpu(), 1 << 20);
	assert_non_null(w->codec);
	random_state = 42;
	fill_memory(w);
	*state = w;
	return 0;
}

static int tear_down(void **state)
{
	struct world *w = *state;

	codec_free(w->codec);
	transform_unref(w->t);
	free(w->memory);
	free(w);
	return 0;
}

static uint16_t *element(
	const struct world *w, uint32_t layer, uint32_t plane, uint32_t offset, uint32_t token)
{
	const uint32_t at = offset + token;
	const struct kv_pages *p = &w->pages[layer * 2 + plane];

	return (uint16_t *)(void *)(p->base + w->blocks[at / BLOCK] * p->block_stride +
				    at % BLOCK * p->token_stride);
}

struct copy {
	uint16_t values[LAYERS][2][TOKENS_MAX][WIDTH];
};

static void copy_out(const struct world *w, uint32_t offset, uint32_t n, struct copy *out)
{
	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t p = 0; p < 2; p++)
			for (uint32_t t = 0; t < n; t++)
				memcpy(out->values[l][p][t], element(w, l, p, offset, t), WIDTH * 2);
}

/* Worst relative L2 error of a token of one plane. */
static double worst_error(const struct copy *a, const struct copy *b, uint32_t plane, uint32_t t)
{
	double error = 0, norm = 0;

	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t i = 0; i < WIDTH; i++) {
			const double x = (double)f16_to_f32(a->values[l][plane][t][i]);
			const double d = (double)f16_to_f32(b->values[l][plane][t][i]) - x;

			error += d * d;
			norm += x * x;
		}
	return sqrt(error / norm);
}

static struct codec_chunk chunk_of(struct world *w, uint32_t offset, uint32_t n, uint64_t position)
{
	return (struct codec_chunk){.geometry = &w->g,
		.pages = w->pages,
		.run = {.blocks = w->blocks, .block_tokens = BLOCK, .offset = offset},
		.n_tokens = n,
		.position = position};
}

static const struct round_trip {
	const char *what;
	int with_transform;
	uint32_t rung, n_tokens, offset, sinks, window;
	double max_error;
} round_trips[] = {
	{"plain, all coded", 0, 0, 256, 0, 0, 0, 0},
	{"plain, an odd number of tokens at an odd offset", 0, 0, 37, 5, 4, 3, 0},
	{"fine rung", 1, 0, 256, 0, 0, 0, 0},
	{"coarse rung, sinks and window", 1, 1, 256, 8, 4, 128, 0},
	{"all raw", 1, 1, 100, 3, 4, 100, 0},
	{"one token, coded", 1, 0, 1, 17, 0, 0, 0},
	{"an error bound that promotes some", 1, 0, 256, 0, 0, 0, 0.4},
	{"a bound that nothing meets", 1, 1, 64, 0, 0, 0, 1e-9},
};

static void round_trip(void **state)
{
	struct world *w = *state;
	static struct copy before, after;

	for (size_t k = 0; k < sizeof round_trips / sizeof *round_trips; k++) {
		const struct round_trip *c = &round_trips[k];
		const struct codec_chunk chunk = chunk_of(w, c->offset, c->n_tokens, 1024);
		uint8_t classes[TOKENS_MAX] = {0};
		const struct codec_options options = {.transform = c->with_transform ? w->t : NULL,
			.rung = c->rung,
			.classes = classes,
			.max_error = c->max_error};
		struct frame_info info;
		uint32_t n_exact = 0;
		uint8_t *frame;
		size_t len;

		for (uint32_t t = 0; t < c->n_tokens; t++)
			classes[t] = t < c->sinks                   ? TOKEN_SINK
				     : t >= c->n_tokens - c->window ? TOKEN_WINDOW
								    : TOKEN_PLAIN;
		fill_memory(w);
		copy_out(w, c->offset, c->n_tokens, &before);
		assert_int_equal(codec_encode(w->codec, &chunk, &options, &frame, &len, &info), 0);
		assert_int_equal(info.raw_bytes, c->n_tokens * P * 2 * 2);
		for (uint32_t l = 0; l < LAYERS; l++)
			for (uint32_t p = 0; p < 2; p++)
				for (uint32_t t = 0; t < c->n_tokens; t++)
					memset(element(w, l, p, c->offset, t), 0xAA, WIDTH * 2);
		assert_int_equal(codec_decode(w->codec, frame, len, options.transform, &chunk, 0, LAYERS), 0);
		copy_out(w, c->offset, c->n_tokens, &after);

		for (uint32_t t = 0; t < c->n_tokens; t++)
			for (uint32_t p = 0; p < 2; p++) {
				const double error = worst_error(&before, &after, p, t);
				/* What the frame promises holds before the result is rounded to f16: half an
				 * ulp is at most 2^-11 of an element, and a basis in f16 is orthonormal to
				 * about as much. */
				const double bound = (double)info.error[p].max * (1 + 2e-3) + 1e-3;

				n_exact += error == 0;
				if (token_class_is_raw(classes[t]))
					assert_true(error == 0);
				if (error > bound || (c->max_error > 0 && error > c->max_error + 1e-3))
					fail_msg("%s: token %u plane %u: error %g over %g", c->what, t, p,
						error, bound);
			}
		assert_true(info.n_raw * 2 <= n_exact);
		assert_true(c->max_error == 0 || info.error[0].max <= (float)c->max_error);
		if (c->max_error == 0.4)
			assert_true(info.n_raw > 0 && info.n_raw < c->n_tokens);
		if (c->max_error == 1e-9)
			assert_int_equal(info.n_raw, c->n_tokens);
		free(frame);
	}
}

/* Values that are not finite are kept bit for bit and spoil nobody else. */
static void not_finite(void **state)
{
	struct world *w = *state;
	const struct codec_chunk chunk = chunk_of(w, 0, 64, 0);
	const uint8_t classes[64] = {0};
	const struct codec_options options = {.transform = w->t, .classes = classes};
	static struct copy before, after;
	struct frame_info info;
	uint8_t *frame;
	size_t len;

	fill_memory(w);
	element(w, 1, 0, 0, 7)[3] = 0x7E01;  /* a NaN with a payload */
	element(w, 2, 1, 0, 20)[9] = 0xFC00; /* minus infinity */
	copy_out(w, 0, 64, &before);
	assert_int_equal(codec_encode(w->codec, &chunk, &options, &frame, &len, &info), 0);
	assert_int_equal(info.n_raw, 2);
	assert_true(isfinite(info.error[0].max) && isfinite(info.error[1].max));
	fill_memory(w);
	assert_int_equal(codec_decode(w->codec, frame, len, w->t, &chunk, 0, LAYERS), 0);
	copy_out(w, 0, 64, &after);
	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t p = 0; p < 2; p++) {
			assert_memory_equal(after.values[l][p][7], before.values[l][p][7], WIDTH * 2);
			assert_memory_equal(after.values[l][p][20], before.values[l][p][20], WIDTH * 2);
		}
	assert_true(worst_error(&before, &after, 0, 8) < 0.7);
	free(frame);
}

/* A layer at a time gives what all at once gives, and touches no other layer. */
static void layer_by_layer(void **state)
{
	struct world *w = *state;
	const struct codec_chunk chunk = chunk_of(w, 0, 100, 0);
	uint8_t classes[100] = {TOKEN_SINK, TOKEN_SINK};
	static struct copy whole, parts, start;

	for (int with = 0; with < 2; with++) {
		const struct codec_options options = {.transform = with ? w->t : NULL, .classes = classes};
		uint8_t *frame;
		size_t len;

		fill_memory(w);
		assert_int_equal(codec_encode(w->codec, &chunk, &options, &frame, &len, NULL), 0);
		assert_int_equal(codec_decode(w->codec, frame, len, options.transform, &chunk, 0, LAYERS), 0);
		copy_out(w, 0, 100, &whole);
		fill_memory(w);
		copy_out(w, 0, 100, &start);
		for (uint32_t l = 0; l < LAYERS; l++) {
			assert_int_equal(
				codec_decode(w->codec, frame, len, options.transform, &chunk, l, 1), 0);
			copy_out(w, 0, 100, &parts);
			assert_memory_equal(parts.values, whole.values, (l + 1) * sizeof whole.values[0]);
			for (uint32_t later = l + 1; later < LAYERS; later++)
				assert_memory_equal(
					parts.values[later], start.values[later], sizeof start.values[0]);
		}
		free(frame);
	}
}

/* A frame for something else, cut short, or with a flipped bit. */
static void bad_frames(void **state)
{
	struct world *w = *state;
	struct codec_chunk chunk = chunk_of(w, 0, 32, 0);
	uint8_t classes[32] = {TOKEN_SINK};
	const struct codec_options options = {.transform = w->t, .classes = classes};
	struct geometry other = w->g;
	uint8_t *frame, *copy;
	size_t len;

	fill_memory(w);
	assert_int_equal(codec_encode(w->codec, &chunk, &options, &frame, &len, NULL), 0);
	assert_int_equal(codec_decode(w->codec, frame, len, NULL, &chunk, 0, LAYERS), -ESTALE);
	chunk.position = 32;
	assert_int_equal(codec_decode(w->codec, frame, len, w->t, &chunk, 0, LAYERS), -ESTALE);
	chunk.position = 0;
	chunk.n_tokens = 31;
	assert_int_equal(codec_decode(w->codec, frame, len, w->t, &chunk, 0, LAYERS), -ESTALE);
	chunk.n_tokens = 32;
	strcpy(other.name, "other");
	chunk.geometry = &other;
	assert_int_equal(codec_decode(w->codec, frame, len, w->t, &chunk, 0, LAYERS), -ESTALE);
	chunk.geometry = &w->g;

	for (size_t cut = 0; cut < len; cut += 1 + cut / 16) {
		copy = malloc(cut + 1); /* exactly as long as it is: the sanitizer sees a read past it */
		memcpy(copy, frame, cut);
		assert_int_equal(codec_decode(w->codec, copy, cut, w->t, &chunk, 0, LAYERS), -EBADMSG);
		free(copy);
	}
	for (size_t bit = 0; bit < 8 * len; bit += 13) {
		const size_t byte = bit / 8;

		frame[byte] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(codec_decode(w->codec, frame, len, w->t, &chunk, 0, LAYERS),
			byte == 4 || byte == 5 ? -ENOTSUP : -EBADMSG);
		frame[byte] ^= (uint8_t)(1 << bit % 8);
	}
	assert_int_equal(codec_decode(w->codec, frame, len, w->t, &chunk, 0, LAYERS), 0);
	free(frame);
}

static void scratch_is_bounded(void **state)
{
	struct world *w = *state;
	struct codec *small = codec_new(kernels_cpu(), 4096);
	const struct codec_chunk chunk = chunk_of(w, 0, 256, 0);
	uint8_t classes[256] = {0};
	const struct codec_options options = {.transform = w->t, .classes = classes};
	uint8_t *frame;
	size_t len;

	assert_int_equal(codec_encode(small, &chunk, &options, &frame, &len, NULL), 0);
	assert_true(codec_scratch_bytes(small) <= 4096);
	free(frame);
	codec_free(small);
	assert_int_equal(codec_encode(w->codec, &chunk, &options, &frame, &len, NULL), 0);
	assert_true(codec_scratch_bytes(w->codec) > 0);
	codec_trim(w->codec);
	assert_int_equal(codec_scratch_bytes(w->codec), 0);
	free(frame);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(not_finite),
		cmocka_unit_test(layer_by_layer),
		cmocka_unit_test(bad_frames),
		cmocka_unit_test(scratch_is_bounded),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
