/* The codec's kernels one by one: given the same coefficients, the device's trellis gives the host's codes
 * and errors to the bit, and given the same codes, its entropy coder gives the host's bytes, and from these
 * the codes' values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/formula.h"
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

static void encode(struct bench *b, const struct codec_rans_args *a)
{
	const uint32_t bands = levels_bands(b->t->parts[b->part].n_components);

	assert_int_equal(device_codec_launch(b->c, DEVICE_KERNEL_codec_rans_offsets, a->n_streams,
				 round_up(bands, CODEC_OFFSET_WARPS) / CODEC_OFFSET_WARPS, 1,
				 32 * CODEC_OFFSET_WARPS, 0, a),
		0);
	assert_int_equal(
		device_codec_launch(b->c, DEVICE_KERNEL_codec_rans_encode, a->n_streams, 1, 1, 32, 0, a), 0);
}

/* Levels of any size, escapes among them, on sound trellises. */
static int16_t *make_codes(struct bench *b, uint32_t rung)
{
	const struct transform_part *part = &b->w->t->parts[b->part];
	const uint32_t r = transform_active(part, b->w->t->step[rung]);
	int16_t *codes = calloc((size_t)part->n_components * STRIDE, 2);

	for (uint32_t t = 0; t < STRIDE; t++) {
		unsigned trellis = 0;

		for (uint32_t i = 0; i < r; i++) {
			const double spread = (double)part->deviation[i] / (double)b->w->t->step[rung];
			int level =
				(int)((double)codec_world_gauss(b->w) * spread * (t % 40 == 7 ? 30 : 0.5));

			level = level > LEVELS_MAX ? LEVELS_MAX : level < -LEVELS_MAX ? -LEVELS_MAX : level;
			codes[i * STRIDE + t] = (int16_t)(level * 2 + (int)(trellis >> 1));
			trellis = levels_next(trellis, (unsigned)level & 1);
		}
	}
	return codes;
}

/* Tokens of a stream: indices of codes, over again where there are more than these. */
static void make_tokens(uint16_t tokens[CODEC_TOKENS_MAX])
{
	for (uint32_t t = 0; t < CODEC_TOKENS_MAX; t++)
		tokens[t] = (uint16_t)((t * 5 + 3) % STRIDE);
}

/* Whole groups of 32 tokens, and of as many as the encoder takes at once, and one more and less. */
static const uint32_t stream_tokens[] = {
	1, 2, 7, 31, 32, 33, 63, 64, 100, 255, 256, 257, 300, 511, 512, 513, 1024};

enum { N_STREAM_TOKENS = sizeof stream_tokens / sizeof *stream_tokens };

static void same_streams(void **state)
{
	(void)state;
	for (size_t k = 0; k < N_STREAM_TOKENS; k++) {
		struct bench b;
		const uint32_t n = stream_tokens[k], rung = (uint32_t)k % 3, room = 256 << 10;

		bench_open(&b, (uint32_t)k % 2);
		struct codec_device_part part = b.t->parts[b.part];
		int16_t *codes = make_codes(&b, rung);
		uint16_t tokens[CODEC_TOKENS_MAX];
		CUdeviceptr tokens_at = arena_take(&b.c->arena, sizeof tokens), streams_at;
		CUdeviceptr body_at = arena_take(&b.c->arena, room), status_at = arena_take(&b.c->arena, 4);
		struct codec_device_stream *stream = post_take(&b.c->post, sizeof *stream, &streams_at);
		uint8_t *expected, *body = malloc(room);
		int32_t status;

		make_tokens(tokens);
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
			.status = (int32_t *)status_at};

		assert_int_equal(post_send(b.c), 0);
		encode(&b, &a);
		fetch(&b, &status, (void *)status_at, 4);
		fetch(&b, body, (void *)body_at, room);
		const size_t len = host_section(&b, codes, tokens, n, rung, &expected);

		assert_int_equal(status, len);
		assert_memory_equal(body + room - len, expected, len);

		/* Room for just these bytes, at any boundary; and room that is a byte short, which is told,
		 * with nothing written outside. */
		for (uint32_t missing = 0; missing < 2; missing++) {
			const uint32_t from = 64 + (uint32_t)k;

			stream->body = (uint8_t *)body_at + from;
			stream->len = (uint32_t)len - missing;
			memset(body, 0x5a, room);
			send(&b, (void *)body_at, body, room);
			b.c->post.sent = 0;
			assert_int_equal(post_send(b.c), 0);
			encode(&b, &a);
			fetch(&b, &status, (void *)status_at, 4);
			fetch(&b, body, (void *)body_at, room);
			assert_int_equal(status, missing ? -1 : (int)len);
			if (!missing)
				assert_memory_equal(body + from, expected, len);
			for (uint32_t i = 0; i < 64; i++) {
				assert_int_equal(body[from - 1 - i], 0x5a);
				assert_int_equal(body[from + stream->len + i], 0x5a);
			}
		}
		free(codes);
		free(body);
		free(expected);
		bench_close(&b);
	}
}

static uint32_t rand_below(struct bench *b, uint32_t end)
{
	const float x = codec_world_gauss(b->w);

	return (uint32_t)(fabsf(x) * 1e6f) % end;
}

/* A stream in memory of its own, which it ends with: nothing behind it can be read. */
struct lone {
	CUdeviceptr memory, streams_at, status_at, values_at;
	struct codec_device_stream *stream;
	size_t size;
	uint32_t n_values;
};

static void lone_open(struct bench *b, struct lone *l, size_t len_max, uint32_t n_values)
{
	l->size = (len_max + 255) / 256 * 256;
	l->n_values = n_values;
	assert_int_equal(device_status(b->c->driver->cuMemAlloc(&l->memory, l->size)), 0);
	l->stream = post_take(&b->c->post, sizeof *l->stream, &l->streams_at);
	l->status_at = arena_take(&b->c->arena, 4);
	l->values_at = arena_take(&b->c->arena, 2 * n_values);
	assert_true(l->stream && l->status_at && l->values_at);
}

/* Decodes len bytes of n tokens into columns from one on; spare: bytes behind them that are not theirs. */
static int lone_decode(struct bench *b, struct lone *l, const uint8_t *bytes, size_t len, uint32_t column,
	uint32_t n, uint32_t spare, uint16_t *values)
{
	const CUdeviceptr at = l->memory + l->size - spare - len;
	const struct codec_rans_args a = {.parts = (const struct codec_device_part *)b->t->parts_at,
		.chunks = (const struct codec_device_chunk *)b->chunk_at,
		.blocks = (const struct codec_device_block *)b->block_at,
		.streams = (struct codec_device_stream *)l->streams_at,
		.n_streams = 1,
		.status = (int32_t *)l->status_at};
	int32_t status;

	send(b, (void *)at, bytes, len);
	*l->stream = (struct codec_device_stream){
		.body = (uint8_t *)at, .len = (uint32_t)len, .first = column, .n = n};
	b->c->post.sent = 0;
	assert_int_equal(post_send(b->c), 0);
	assert_int_equal(device_codec_launch(b->c, DEVICE_KERNEL_codec_rans_decode, 1, 1, 1, 32, 0, &a), 0);
	fetch(b, &status, (void *)l->status_at, 4);
	if (values)
		fetch(b, values, (void *)l->values_at, 2 * l->n_values);
	return status;
}

/* What the host makes of a section. */
static int host_decode(struct bench *b, const uint8_t *bytes, size_t len, uint32_t n, uint32_t rung)
{
	const struct transform_part *part = &b->w->t->parts[b->part];
	const float step = b->w->t->step[rung];
	const uint32_t r = transform_active(part, step), bands = levels_bands(r);
	struct levels_row *rows = calloc(r, sizeof *rows);
	int16_t *codes = calloc((size_t)r * n, 2);
	uint8_t *states = calloc(n, 1);
	struct levels_coder coder;
	int status = len < bands ? -1 : 0;

	host_coder(b, &coder);
	for (uint32_t i = 0; !status && i < r; i++) {
		const int offset = (int8_t)bytes[i / LEVELS_BAND];

		if (offset < -LEVELS_OFFSET_MAX || offset > LEVELS_OFFSET_MAX)
			status = -1;
		rows[i] = levels_row(levels_class(part->deviation[i], step) + offset);
	}
	if (!status)
		status = kernels_cpu()->decode_levels(
			bytes + bands, len - bands, r, n, &coder, rows, codes, n, states);
	free(rows);
	free(codes);
	free(states);
	return status;
}

/* The values of codes in steps, both rows, and the zeros behind them, from a column on. */
static void expect_values(struct bench *b, const int16_t *codes, const uint16_t *tokens, uint32_t column,
	uint32_t n, uint32_t rung, uint16_t *out)
{
	const struct transform_part *part = &b->w->t->parts[b->part];
	const float step = b->w->t->step[rung];
	const uint32_t r = transform_active(part, step), low = codec_value_rows(b->block->k);
	struct levels_coder coder;

	host_coder(b, &coder);
	for (uint32_t i = 0; i < low; i++)
		for (uint32_t t = 0; t < n; t++) {
			const int16_t code = i < r ? codes[i * STRIDE + tokens[t]] : 0;
			const unsigned table =
				i < r ? levels_row(levels_class(part->deviation[i], step)).table : 0;
			const unsigned set = levels_set(code);
			const int level = levels_level(code);
			const float v = levels_magnitude(level, set, coder.bias[table][set]);
			const float value = level < 0 ? -v : v;
			const uint16_t high = f16_from_f32(value);

			out[codec_value_at(b->block, i, column + t)] = high;
			if (i < codec_value_rows(b->block->k_wide))
				out[codec_value_at(b->block, low + i, column + t)] =
					i < b->block->k_wide ? f16_from_f32(value - f16_to_f32(high)) : 0;
		}
}

/* Streams of every length and at every boundary come back; damaged ones are noticed as the host notices them,
 * and none is read past its end. */
static void values_come_back(void **state)
{
	uint32_t n_damaged = 0, n_taken = 0;

	(void)state;
	for (size_t k = 0; k < N_STREAM_TOKENS; k++) {
		struct bench b;
		struct lone l;
		const uint32_t n = stream_tokens[k], rung = (uint32_t)k % 3;
		const uint32_t column = n < 600 ? (uint32_t)k * 17 : 0;

		bench_open(&b, (uint32_t)k % 2);
		const struct codec_device_part *part = &b.t->parts[b.part];
		int16_t *codes = make_codes(&b, rung);
		uint16_t tokens[CODEC_TOKENS_MAX];
		uint8_t *bytes;

		make_tokens(tokens);
		/* A third of the streams are of a coarser rung than the block's finest. */
		b.block->k = part->active[0];
		b.block->k_wide = part->wide[k % 9 < 6 ? rung : 0];
		b.block->stride = CODEC_TOKENS_MAX;
		b.chunk->rung[0] = rung;
		const size_t len = host_section(&b, codes, tokens, n, rung, &bytes);
		const uint32_t n_values =
			(codec_value_rows(b.block->k) + codec_value_rows(b.block->k_wide)) * b.block->stride;
		uint16_t *values = calloc(n_values, 2), *expected = calloc(n_values, 2);
		uint8_t *damaged = malloc(len + 2);

		lone_open(&b, &l, len + 64, n_values);
		b.block->values = (uint16_t *)l.values_at;
		memset(expected, 0x77, 2 * n_values);
		expect_values(&b, codes, tokens, column, n, rung, expected);
		for (uint32_t spare = 0; spare<17; spare += n> 64 ? 4 : 1) {
			memset(values, 0x77, 2 * n_values);
			send(&b, (void *)l.values_at, values, 2 * n_values);
			assert_int_equal(lone_decode(&b, &l, bytes, len, column, n, spare, values), 0);
			assert_memory_equal(values, expected, 2 * n_values);
		}
		for (uint32_t trial = 0; trial < 24; trial++) {
			size_t now = len;

			memcpy(damaged, bytes, len);
			damaged[len] = damaged[len + 1] = 0;
			if (trial < 8)
				now = trial < 6 ? len - 1 - trial : len + trial - 5;
			else if (trial == 8)
				now = levels_bands(part->active[rung]);
			else if (trial == 9)
				damaged[0] = LEVELS_OFFSET_MAX + 1;
			else if (trial == 10)
				memset(damaged + levels_bands(part->active[rung]), 0, len / 2);
			else
				damaged[(size_t)rand_below(&b, (uint32_t)len)] ^=
					(uint8_t)(1u << rand_below(&b, 8));
			const int status = lone_decode(&b, &l, damaged, now, column, n, trial % 3, NULL);

			if ((status != 0) != (host_decode(&b, damaged, now, n, rung) != 0))
				fail_msg("seed %llu: %u tokens, trial %u: %d on the device",
					(unsigned long long)seed, n, trial, status);
			n_damaged += status != 0;
			n_taken += status == 0;
		}
		assert_int_equal(device_status(b.c->driver->cuMemFree(l.memory)), 0);
		free(codes);
		free(bytes);
		free(damaged);
		free(values);
		free(expected);
		bench_close(&b);
	}
	print_message("%u damaged streams noticed, %u taken as by the host\n", n_damaged, n_taken);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(same_codes),
		cmocka_unit_test(same_streams),
		cmocka_unit_test(values_come_back),
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
