/* Calibration's promises are what the codec keeps: captures of a known source are learned from, other tokens
 * of the same source are encoded, and ratio and error compared with the report. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cblas.h>
#include <cmocka.h>

#include "runtime/chunk-copy.h"
#include "runtime/codec.h"
#include "tools/calibration.h"

enum {
	LAYERS = 4,
	HEADS = 2,
	DIM = 32,
	WIDTH = HEADS * DIM,
	P = LAYERS * WIDTH,
	TOKENS = 2048,
	FILES = 3,
	CHUNK = 256
};

/* Per plane: features = mean + mixing * sources, sources of falling variance. */
struct source {
	float mixing[2][P][P];
	float mean[2][P];
};

struct example {
	char directory[40];
	char paths[FILES][64];
	char *list[FILES];
	struct geometry geometry;
};

/* Sum of four uniform numbers, variance 1: lighter tails than a Gaussian, which is fine for a table that is
 * measured. */
static float noise(uint64_t *state)
{
	double sum = -2;

	for (int i = 0; i < 4; i++) {
		*state = *state * 6364136223846793005 + 1442695040888963407;
		sum += (double)(*state >> 40) / (1 << 24);
	}
	return (float)(sum * sqrt(3));
}

static struct source *make_source(void)
{
	struct source *s = malloc(sizeof *s);
	uint64_t state = 11;

	assert_non_null(s);
	for (int plane = 0; plane < 2; plane++) {
		for (int i = 0; i < P; i++) {
			s->mean[plane][i] = 0.5f * noise(&state);
			for (int k = 0; k < P; k++)
				s->mixing[plane][i][k] = noise(&state) * expf(-0.03f * (float)k);
		}
	}
	return s;
}

/* Tokens of the source, keys rotated, in a file. The first four are sinks of a thousand times the size. */
static void write_capture(const struct example *e, const struct source *s, int file, uint64_t first_position)
{
	const struct kernels *kernels = kernels_cpu();
	static const uint32_t block = 0;
	float *pool = malloc((size_t)2 * LAYERS * TOKENS * WIDTH * sizeof *pool);
	float x[P], sources[P], cos[DIM / 2], sin[DIM / 2];
	uint64_t state = 100 + (uint64_t)file, *positions = malloc(TOKENS * sizeof *positions);
	struct kv_pages pages[2 * LAYERS];
	struct rope_table rope = {cos, sin};

	assert_true(pool && positions);
	for (size_t i = 0; i < 2 * LAYERS; i++)
		pages[i] = (struct kv_pages){.base = (uint8_t *)(pool + i * TOKENS * WIDTH),
			.token_stride = WIDTH * sizeof(float),
			.head_stride = DIM * sizeof(float)};
	for (uint32_t t = 0; t < TOKENS; t++) {
		positions[t] = first_position + t;
		kernels->rope_fill(&e->geometry.planes[0], &positions[t], 1, cos, sin);
		for (uint32_t plane = 0; plane < 2; plane++) {
			struct kv_run run = {.blocks = &block, .block_tokens = TOKENS, .offset = t};
			static const uint16_t zero = 0;

			for (int k = 0; k < P; k++)
				sources[k] = noise(&state) * (positions[t] < 4 ? 1000.0f : 1.0f);
			memcpy(x, s->mean[plane], sizeof x);
			cblas_sgemv(CblasRowMajor, CblasNoTrans, P, P, 1, s->mixing[plane][0], P, sources, 1,
				1, x, 1);
			for (uint32_t layer = 0; layer < LAYERS; layer++)
				kernels->scatter(&e->geometry.planes[plane], &pages[2 * layer + plane], &run,
					&zero, 1, plane ? NULL : &rope, NULL, NULL, x + layer * WIDTH, WIDTH);
		}
	}
	assert_int_equal(capture_write(e->paths[file], &e->geometry, positions, TOKENS, pages,
				 &(struct kv_run){.blocks = &block, .block_tokens = TOKENS}, NULL),
		0);
	free(positions);
	free(pool);
}

static int example_init(void **state)
{
	struct example *e = calloc(1, sizeof *e);
	struct source *s = make_source();
	struct plane *k = &e->geometry.planes[0];

	strcpy(e->directory, "/tmp/test-calibration-XXXXXX");
	if (!mkdtemp(e->directory))
		return -1;
	e->geometry = (struct geometry){.name = "m", .n_layers = LAYERS, .n_planes = 2, .tp_size = 1};
	*k = (struct plane){.n_heads = HEADS, .dim = DIM, .dtype = DTYPE_F32};
	e->geometry.planes[1] = *k;
	k->rope_kind = ROPE_HALF;
	k->rope_dim = DIM;
	k->rope_scale = 1;
	for (int i = 0; i < DIM / 2; i++)
		k->inv_freq[i] = powf(10000, -(float)(2 * i) / DIM);
	for (int i = 0; i < FILES; i++) {
		snprintf(e->paths[i], sizeof e->paths[i], "%s/%d.safetensors", e->directory, i);
		e->list[i] = e->paths[i];
		write_capture(e, s, i, i == 1 ? 5000 : 0);
	}
	free(s);
	*state = e;
	return 0;
}

static int example_fini(void **state)
{
	struct example *e = *state;

	for (int i = 0; i < FILES; i++)
		unlink(e->paths[i]);
	rmdir(e->directory);
	free(e);
	return 0;
}

/* Squared error and squared norm of a plane, of two caches of f32. */
static void add_errors(
	const struct codec_chunk *a, const struct codec_chunk *b, uint32_t plane, double sums[2])
{
	const struct plane *p = &a->geometry->planes[plane];
	float x[2][WIDTH];

	for (uint32_t layer = 0; layer < LAYERS; layer++)
		for (uint16_t t = 0; t < a->n_tokens; t++) {
			kernels_cpu()->gather_raw(
				p, &a->pages[2 * layer + plane], &a->run, &t, 1, (uint8_t *)x[0]);
			kernels_cpu()->gather_raw(
				p, &b->pages[2 * layer + plane], &b->run, &t, 1, (uint8_t *)x[1]);
			for (int i = 0; i < WIDTH; i++) {
				const double v = (double)x[0][i];
				const double d = (double)x[1][i] - v;

				sums[0] += d * d;
				sums[1] += v * v;
			}
		}
}

/* Ratio and relative error, over all tokens, that the codec gets out of a capture's coded tokens. */
static void encode(
	const struct capture *c, const struct transform *t, uint32_t rung, double *ratio, double error[2])
{
	struct codec *codec = codec_new(kernels_cpu(), SIZE_MAX);
	static const uint8_t classes[CHUNK];
	struct chunk_copy *copy = chunk_copy_new(&c->geometry, CHUNK);
	uint64_t bytes = 0, n_chunks = 0;
	double sums[2][2] = {{0}};

	assert_non_null(codec);
	assert_non_null(copy);
	/* From the second chunk on: the first has the sinks. */
	for (uint32_t first = CHUNK; first < c->n_tokens; first += CHUNK, n_chunks++) {
		struct codec_chunk chunk = {.geometry = &c->geometry,
			.pages = c->pages,
			.run = capture_run(c, first),
			.n_tokens = CHUNK,
			.position = c->positions[first]};
		struct codec_options options = {.transform = t, .rung = rung, .classes = classes};
		struct frame_info info;
		uint8_t *data;
		size_t len;

		assert_int_equal(codec_encode(codec, &chunk, &options, &data, &len, &info), 0);
		assert_int_equal(info.n_raw, 0);
		bytes += len;
		chunk_copy_place(copy, CHUNK, chunk.position);
		const struct codec_chunk back = chunk_copy_view(copy);
		assert_int_equal(codec_decode(codec, data, len, t, &back, 0, LAYERS), 0);
		for (uint32_t plane = 0; plane < 2; plane++)
			add_errors(&chunk, &back, plane, sums[plane]);
		free(data);
	}
	*ratio = 2.0 * 2 * P * CHUNK * (double)n_chunks / (double)bytes;
	for (int plane = 0; plane < 2; plane++)
		error[plane] = sqrt(sums[plane][0] / sums[plane][1]);
	chunk_copy_free(copy);
	codec_free(codec);
}

static void test_report_is_what_the_codec_does(void **state)
{
	struct calibration_options options;
	struct example *e = *state;
	struct calibration c;
	struct transform *t;
	struct capture *other;
	char why[200] = "";

	calibration_options_init(&options);
	if (calibration_run(kernels_cpu(), &options, e->list, 2, &c, why, sizeof why) != 0)
		fail_msg("%s", why);
	assert_int_equal(c.report.n_tokens, 2 * TOKENS - 4);
	assert_int_equal(c.n_skipped, 4);
	assert_int_equal(transform_parse(c.data, c.len, &t, why, sizeof why), 0);
	assert_int_equal(transform_fits(t, &e->geometry, NULL, 0), 0);
	assert_int_equal(capture_open(e->paths[2], &options.capture, &other, why, sizeof why), 0);
	for (uint32_t rung = 0; rung < t->n_rungs; rung++) {
		double ratio, error[2];

		encode(other, t, rung, &ratio, error);
		print_message("rung %g: ratio %.2f of %.2f, error %.4f of %.4f and %.4f of %.4f\n",
			(double)t->rung_ratio[rung], ratio, c.report.rungs[rung].ratio, error[0],
			c.report.rungs[rung].error[0], error[1], c.report.rungs[rung].error[1]);
		assert_true(fabs(ratio / c.report.rungs[rung].ratio - 1) < 0.05);
		for (int plane = 0; plane < 2; plane++) {
			const double predicted = c.report.rungs[rung].error[plane];

			/* At the finest rungs the basis' rounding to f16 shows: up to 0.4%. */
			assert_true(error[plane] > 0.95 * predicted);
			assert_true(error[plane] < 1.05 * hypot(predicted, 0.004));
		}
	}
	capture_free(other);
	transform_unref(t);
	free(c.data);
}

static void test_same_captures_same_file(void **state)
{
	struct calibration_options options;
	struct example *e = *state;
	struct calibration a, b;

	calibration_options_init(&options);
	assert_int_equal(calibration_run(kernels_cpu(), &options, e->list, 2, &a, NULL, 0), 0);
	assert_int_equal(calibration_run(kernels_cpu(), &options, e->list, 2, &b, NULL, 0), 0);
	assert_int_equal(a.len, b.len);
	assert_memory_equal(a.data, b.data, a.len);
	free(a.data);
	free(b.data);
}

static void test_faults(void **state)
{
	static char nowhere[] = "/nowhere/x.safetensors";
	struct calibration_options options;
	struct example *e = *state;
	char *paths[2] = {e->paths[0], nowhere};
	struct kv_pages pages[2] = {{0}};
	struct calibration c;
	struct geometry g = e->geometry;
	uint64_t position = 0;
	float zeros[WIDTH] = {0};
	char why[200];

	calibration_options_init(&options);
	assert_int_equal(calibration_run(kernels_cpu(), &options, paths, 0, &c, why, sizeof why), -EINVAL);
	assert_int_equal(calibration_run(kernels_cpu(), &options, paths, 2, &c, why, sizeof why), -ENOENT);
	assert_non_null(strstr(why, "/nowhere/x.safetensors: No such file"));
	options.skip_positions = 10000;
	assert_int_equal(calibration_run(kernels_cpu(), &options, paths, 1, &c, why, sizeof why), -ENODATA);
	assert_non_null(strstr(why, "fewer than two usable tokens"));
	options.skip_positions = 4;
	options.note = "\xff";
	assert_int_equal(calibration_run(kernels_cpu(), &options, paths, 1, &c, why, sizeof why), -EINVAL);
	assert_non_null(strstr(why, "UTF-8"));
	options.note = NULL;
	g.n_layers = 1;
	pages[0].base = pages[1].base = (uint8_t *)zeros;
	assert_int_equal(capture_write(e->paths[2], &g, &position, 1, pages,
				 &(struct kv_run){.blocks = (uint32_t[]){0}, .block_tokens = 1}, NULL),
		0);
	paths[1] = e->paths[2];
	assert_int_equal(calibration_run(kernels_cpu(), &options, paths, 2, &c, why, sizeof why), -EINVAL);
	assert_non_null(strstr(why, "2.safetensors: not of the model"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_report_is_what_the_codec_does),
		cmocka_unit_test(test_same_captures_same_file),
		cmocka_unit_test(test_faults),
	};

	return cmocka_run_group_tests(tests, example_init, example_fini);
}
