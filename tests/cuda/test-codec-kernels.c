/* The codec's kernels one by one: given the same coefficients, the device's trellis gives the host's codes
 * and errors to the bit, and given the same codes, its entropy coder gives the host's bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "policy/policy.h"
#include "runtime/codec/internal.h"
#include "runtime/cuda/codec-internal.h"
#include "tests/cuda/codec-world.h"
#include "tests/cuda/gpu.h"

static struct device *device;
static uint64_t seed;

static const struct codec_shape shape = {
	"kernels", 2, 2, 2, 32, DTYPE_F16, ROPE_HALF, 0, 32, 1, 2, 100, 16, false};

enum { STRIDE = 256 };

/* One block of one chunk on the device, with room for what the kernels under test touch. */
struct bench {
	struct codec_world *w;
	struct device_codec *c;
	const struct device_transform *t;
	struct codec_device_chunk *chunk;
	struct codec_device_block *block;
	CUdeviceptr chunk_at, block_at;
	uint32_t part;
};

static void bench_open(struct bench *b, uint32_t part)
{
	b->w = codec_world_new(device, &shape, seed);
	b->part = part;
	assert_int_equal(device_codec_new(device, 32 << 20, 0, &b->c), 0);
	assert_int_equal(device_codec_begin(b->c), 0);
	assert_int_equal(device_codec_transform(b->c, &b->w->g, b->w->t, &b->t), 0);
	b->chunk = post_take(&b->c->post, sizeof *b->chunk, &b->chunk_at);
	b->block = post_take(&b->c->post, sizeof *b->block, &b->block_at);
	const struct codec_chunk from = codec_world_chunk(b->w, true, 0, STRIDE, 0);
	struct arena *a = &b->c->arena;
	const uint32_t r = b->t->parts[part].n_components;

	assert_int_equal(device_codec_chunk(b->c, b->t, &from, b->chunk), 0);
	*b->block = (struct codec_device_block){.part = part,
		.stride = STRIDE,
		.k = r,
		.c = (float *)arena_take(a, r * STRIDE * sizeof(float)),
		.decisions = (uint32_t *)arena_take(a, (r / 8 + 1) * STRIDE * 4),
		.codes = (int16_t *)arena_take(a, r * STRIDE * 2),
		.lost = (float *)arena_take(a, STRIDE * 4),
		.kept = (float *)arena_take(a, STRIDE * 4)};
}

static void bench_close(struct bench *b)
{
	device_codec_free(b->c);
	codec_world_free(b->w);
}

static void send(struct bench *b, const void *at, const void *from, size_t len)
{
	assert_int_equal(
		device_status(b->c->driver->cuMemcpyHtoDAsync((CUdeviceptr)at, from, len, b->c->stream)), 0);
	assert_int_equal(device_codec_wait(b->c), 0);
}

static void fetch(struct bench *b, void *to, const void *at, size_t len)
{
	assert_int_equal(
		device_status(b->c->driver->cuMemcpyDtoHAsync(to, (CUdeviceptr)at, len, b->c->stream)), 0);
	assert_int_equal(device_codec_wait(b->c), 0);
}

static void host_coder(const struct bench *b, struct levels_coder *coder)
{
	levels_coder_init(coder, &b->w->t->tables[b->w->t->parts[b->part].plane]);
}

/* Coefficients as their deviations say, some far outside. */
static void make_coefficients(struct bench *b, float *c, uint32_t r)
{
	const struct transform_part *part = &b->w->t->parts[b->part];

	for (uint32_t i = 0; i < r; i++)
		for (uint32_t t = 0; t < STRIDE; t++) {
			c[i * STRIDE + t] = part->deviation[i] * codec_world_gauss(b->w);
			if (t % 50 == 3 && i % 7 == 2)
				c[i * STRIDE + t] *= 40;
			if (t == 9)
				c[i * STRIDE + t] = t % 2 ? -0.0f : 0.0f;
		}
	c[5 * STRIDE + 77] = 1e9f; /* over what levels reach */
}

static void same_codes(void **state)
{
	(void)state;
	for (uint32_t rung = 0; rung < 3; rung++) {
		struct bench b;
		struct levels_coder coder;

		bench_open(&b, rung % 2);
		const struct transform_part *part = &b.w->t->parts[b.part];
		const float step = b.w->t->step[rung];
		const uint32_t r = transform_active(part, step);
		float *c = calloc(r * STRIDE, 4), lost[STRIDE] = {0}, kept[STRIDE] = {0},
		      device_sums[2][STRIDE];
		int16_t *codes = calloc(r * STRIDE, 2), *device_codes = calloc(r * STRIDE, 2);
		struct levels_row *rows = calloc(r, sizeof *rows);
		void *work = aligned_alloc(64, (levels_work_bytes(r) + 63) / 64 * 64);
		uint8_t coded[CODEC_TOKENS_MAX] = {0};
		CUdeviceptr coded_at = arena_take(&b.c->arena, sizeof coded);

		host_coder(&b, &coder);
		codec_rows(part, step, r, rows);
		make_coefficients(&b, c, r);
		kernels_cpu()->quantise_levels(
			c, STRIDE, r, STRIDE, &coder, rows, step, codes, STRIDE, lost, kept, work);
		coded[200] = CODEC_CLASSES; /* one to be left alone */
		b.chunk->rung[0] = rung;
		send(&b, b.block->c, c, r * STRIDE * 4);
		send(&b, (void *)coded_at, coded, sizeof coded);
		memset(device_codes, 0x55, r * STRIDE * 2);
		send(&b, b.block->codes, device_codes, r * STRIDE * 2);
		const struct codec_quantise_args a = {(const struct codec_device_part *)b.t->parts_at,
			(const struct codec_device_chunk *)b.chunk_at,
			(const struct codec_device_block *)b.block_at, (const uint8_t *)coded_at};

		assert_int_equal(post_send(b.c), 0);
		assert_int_equal(device_codec_launch(b.c, DEVICE_KERNEL_codec_quantise, STRIDE / CODEC_TILE,
					 1, 1, CODEC_TILE, 0, &a),
			0);
		fetch(&b, device_codes, b.block->codes, r * STRIDE * 2);
		fetch(&b, device_sums[0], b.block->lost, STRIDE * 4);
		fetch(&b, device_sums[1], b.block->kept, STRIDE * 4);
		for (uint32_t t = 0; t < STRIDE; t++)
			for (uint32_t i = 0; i < r; i++)
				if (device_codes[i * STRIDE + t] !=
					(t == 200 ? 0x5555 : codes[i * STRIDE + t]))
					fail_msg("seed %llu rung %u: component %u token %u: %d on the host, "
						 "%d on the device",
						(unsigned long long)seed, rung, i, t, codes[i * STRIDE + t],
						device_codes[i * STRIDE + t]);
		for (uint32_t t = 0; t < STRIDE; t++)
			if (t != 200) {
				assert_memory_equal(&lost[t], &device_sums[0][t], 4);
				assert_memory_equal(&kept[t], &device_sums[1][t], 4);
			}
		free(c);
		free(codes);
		free(device_codes);
		free(rows);
		free(work);
		bench_close(&b);
	}
}

/* The host's section of levels of some tokens. */
static size_t host_section(struct bench *b, const int16_t *codes, const uint16_t *tokens, uint32_t n,
	uint32_t rung, uint8_t **out)
{
	const struct transform_part *part = &b->w->t->parts[b->part];
	struct levels_coder coder;
	struct frame_section section = {.kind = FRAME_LEVELS}, written;
	struct frame_info info = {.n_tokens = n, .n_raw = 0};
	struct codec_levels levels = {
		.part = part, .coder = &coder, .step = b->w->t->step[rung], .n = n, .stride = n};
	struct frame_writer writer;
	int16_t *packed;
	uint8_t *frame;
	size_t len;

	host_coder(b, &coder);
	levels.r = transform_active(part, levels.step);
	packed = levels.codes = calloc(levels.r * n + 1, 2);
	for (size_t i = 0; i < levels.r; i++)
		for (uint32_t k = 0; k < n; k++)
			packed[i * n + k] = codes[i * STRIDE + tokens[k]];
	assert_int_equal(frame_writer_init(&writer, 1, 4096), 0);
	assert_int_equal(codec_put_levels(b->w->host, &writer, &section, &levels, CODEC_RANS), 0);
	assert_int_equal(frame_writer_finish(&writer, &info, &frame, &len), 0);
	assert_int_equal(frame_parse(frame, len, &info, &written, 1), 0);
	*out = malloc(written.len_bytes);
	memcpy(*out, frame + written.offset, written.len_bytes);
	free(frame);
	free(packed);
	return written.len_bytes;
}

static void same_streams(void **state)
{
	static const uint32_t counts[] = {1, 2, 31, 32, 33, 100, 256};

	(void)state;
	for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
		struct bench b;
		const uint32_t n = counts[k], rung = (uint32_t)k % 3, room = 64 << 10;

		bench_open(&b, (uint32_t)k % 2);
		struct codec_device_part part = b.t->parts[b.part];
		const uint32_t r = part.active[rung];
		int16_t *codes = calloc(part.n_components * STRIDE, 2);
		uint16_t tokens[STRIDE];
		CUdeviceptr tokens_at = arena_take(&b.c->arena, sizeof tokens), streams_at;
		CUdeviceptr body_at = arena_take(&b.c->arena, room), status_at = arena_take(&b.c->arena, 4);
		struct codec_device_stream *stream = post_take(&b.c->post, sizeof *stream, &streams_at);
		uint8_t *expected, *body = malloc(room);
		int32_t status;

		/* Levels of any size, escapes among them, on sound trellises. */
		for (uint32_t t = 0; t < STRIDE; t++) {
			unsigned trellis = 0;

			for (uint32_t i = 0; i < r; i++) {
				const double spread = (double)b.w->t->parts[b.part].deviation[i] /
						      (double)b.w->t->step[rung];
				int level = (int)((double)codec_world_gauss(b.w) * spread *
						  (t % 40 == 7 ? 30 : 0.5));

				level = level > LEVELS_MAX    ? LEVELS_MAX
					: level < -LEVELS_MAX ? -LEVELS_MAX
							      : level;
				codes[i * STRIDE + t] = (int16_t)(level * 2 + (int)(trellis >> 1));
				trellis = levels_next(trellis, (unsigned)level & 1);
			}
		}
		for (uint32_t t = 0; t < STRIDE; t++)
			tokens[t] = (uint16_t)((t * 5 + 3) % STRIDE);
		b.chunk->tokens = (const uint16_t *)tokens_at;
		b.chunk->rung[0] = rung;
		*stream = (struct codec_device_stream){.body = (uint8_t *)body_at, .len = room, .n = n};
		send(&b, (void *)tokens_at, tokens, sizeof tokens);
		send(&b, b.block->codes, codes, part.n_components * STRIDE * 2);
		const struct codec_rans_args a = {.parts = (const struct codec_device_part *)b.t->parts_at,
			.chunks = (const struct codec_device_chunk *)b.chunk_at,
			.blocks = (const struct codec_device_block *)b.block_at,
			.streams = (struct codec_device_stream *)streams_at,
			.n_streams = 1,
			.n_bands_max = 16,
			.status = (int32_t *)status_at};

		assert_int_equal(post_send(b.c), 0);
		assert_int_equal(device_codec_launch(b.c, DEVICE_KERNEL_codec_rans_encode, 1, 1, 1,
					 CODEC_THREADS, CODEC_THREADS / 32 * 16, &a),
			0);
		fetch(&b, &status, (void *)status_at, 4);
		fetch(&b, body, (void *)body_at, room);
		const size_t len = host_section(&b, codes, tokens, n, rung, &expected);

		assert_int_equal(status, len);
		assert_memory_equal(body + room - len, expected, len);

		/* Room that is a byte short is told. */
		stream->len = (uint32_t)len - 1;
		b.c->post.sent = 0;
		assert_int_equal(post_send(b.c), 0);
		assert_int_equal(device_codec_launch(b.c, DEVICE_KERNEL_codec_rans_encode, 1, 1, 1,
					 CODEC_THREADS, CODEC_THREADS / 32 * 16, &a),
			0);
		fetch(&b, &status, (void *)status_at, 4);
		assert_int_equal(status, -1);
		free(codes);
		free(body);
		free(expected);
		bench_close(&b);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(same_codes),
		cmocka_unit_test(same_streams),
	};
	int r = gpu_begin(&device);

	if (r)
		return r;
	seed = getenv("TEST_SEED") ? strtoull(getenv("TEST_SEED"), NULL, 10) : (uint64_t)time(NULL);
	print_message("seed %llu\n", (unsigned long long)seed);
	r = cmocka_run_group_tests(tests, NULL, NULL);
	device_free(device);
	return r;
}
