/* The codec's kernels one by one: features are the host's as f16 holds them; given the same coefficients, the
 * device's trellis gives the host's codes and errors to the bit, and given the same codes, its entropy coder
 * gives the host's bytes, and from these the codes' values. */
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

static void bench_open_shape(struct bench *b, const struct codec_shape *of, uint32_t part, uint32_t n_tokens)
{
	b->w = codec_world_new(device, of, seed);
	b->part = part;
	assert_int_equal(device_codec_new(device, 32 << 20, 0, &b->c), 0);
	assert_int_equal(device_codec_begin(b->c), 0);
	assert_int_equal(device_codec_transform(b->c, &b->w->g, b->w->t, &b->t), 0);
	b->chunk = post_take(&b->c->post, sizeof *b->chunk, &b->chunk_at);
	b->block = post_take(&b->c->post, sizeof *b->block, &b->block_at);
	const struct codec_chunk from = codec_world_chunk(b->w, true, 0, n_tokens, 0);
	struct arena *a = &b->c->arena;
	const uint32_t r = b->t->parts[part].n_components;

	assert_int_equal(device_codec_chunk(b->c, b->t, &from, b->chunk), 0);
	*b->block = (struct codec_device_block){.part = part,
		.stride = STRIDE,
		.k = r,
		.c = (float *)arena_take(a, codec_groups(r) * CODEC_GROUP * STRIDE * sizeof(float)),
		.decisions = (uint32_t *)arena_take(a, codec_groups(r) * STRIDE * 4),
		.codes = (int16_t *)arena_take(a, r * STRIDE * 2),
		.lost = (float *)arena_take(a, STRIDE * 4),
		.kept = (float *)arena_take(a, STRIDE * 4)};
}

static void bench_open(struct bench *b, uint32_t part)
{
	bench_open_shape(b, &shape, part, STRIDE);
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
	c[(r > 5 ? 5 : 0) * STRIDE + 77] = 1e9f; /* over what levels reach */
}

/* What the host makes of all coefficients at one rung. */
struct quantised {
	uint32_t r;
	int16_t *codes; /* [r, STRIDE] */
	float lost[STRIDE], kept[STRIDE];
};

static void host_quantise(const struct bench *b, const float *c, uint32_t rung, struct quantised *out)
{
	const struct transform_part *part = &b->w->t->parts[b->part];
	const float step = b->w->t->step[rung];
	struct levels_coder coder;
	struct levels_row *rows;
	void *work;

	*out = (struct quantised){.r = transform_active(part, step)};
	out->codes = calloc(out->r * STRIDE, 2);
	rows = calloc(out->r, sizeof *rows);
	work = aligned_alloc(64, (levels_work_bytes(out->r) + 63) / 64 * 64);
	host_coder(b, &coder);
	codec_rows(part, step, out->r, rows);
	kernels_cpu()->quantise_levels(c, STRIDE, out->r, STRIDE, &coder, rows, step, out->codes, STRIDE,
		out->lost, out->kept, work);
	free(rows);
	free(work);
}

enum { UNTOUCHED = 0x5555 };

static void expect_token(const struct bench *b, uint32_t t, const struct quantised *host,
	const int16_t *codes, const float *lost, const float *kept)
{
	for (uint32_t i = 0; i < b->t->parts[b->part].n_components; i++) {
		const int expected = host && i < host->r ? host->codes[i * STRIDE + t] : UNTOUCHED;

		if (codes[i * STRIDE + t] != expected)
			fail_msg("seed %llu: component %u token %u: %d on the host, %d on the device",
				(unsigned long long)seed, i, t, expected, codes[i * STRIDE + t]);
	}
	if (host) {
		assert_memory_equal(&host->lost[t], &lost[t], 4);
		assert_memory_equal(&host->kept[t], &kept[t], 4);
	}
}

/* Chunks whole and not; all tokens of one class, and classes in turn, at rungs of their own, some tokens left
 * alone; as many components as fill groups, and one and two and three more. */
static void same_codes(void **state)
{
	static const struct {
		uint32_t n_tokens, n_components, rungs[CODEC_CLASSES];
		bool mixed;
	} cases[] = {
		{256, 100, {0, 0, 0}, false},
		{256, 101, {1, 0, 2}, false},
		{256, 102, {2, 0, 1}, true},
		{131, 103, {0, 1, 2}, true},
		{1, 3, {0, 0, 0}, false},
		{33, 1, {1, 0, 2}, true},
	};

	(void)state;
	for (uint32_t k = 0; k < sizeof cases / sizeof *cases; k++) {
		struct codec_shape of = shape;
		struct bench b;

		of.n_components = cases[k].n_components;
		bench_open_shape(&b, &of, k % 2, cases[k].n_tokens);
		const uint32_t n = b.t->parts[b.part].n_components;
		const size_t codes_len = (size_t)n * STRIDE * 2;
		float *c = calloc((size_t)n * STRIDE, 4), lost[STRIDE], kept[STRIDE];
		int16_t *codes = malloc(codes_len);
		struct quantised host[CODEC_CLASSES];
		uint8_t coded[CODEC_TOKENS_MAX] = {0};
		CUdeviceptr coded_at = arena_take(&b.c->arena, sizeof coded);

		make_coefficients(&b, c, n);
		for (uint32_t i = 0; i < CODEC_CLASSES; i++) {
			b.chunk->rung[i] = cases[k].rungs[i];
			host_quantise(&b, c, cases[k].rungs[i], &host[i]);
		}
		for (uint32_t t = 0; t < STRIDE; t++)
			coded[t] = cases[k].mixed ? (uint8_t)(t * 7 % 11 % (CODEC_CLASSES + 1)) : 0;
		coded[200] = CODEC_CLASSES; /* one to be left alone */
		send(&b, b.block->c, c, (size_t)n * STRIDE * 4);
		send(&b, (void *)coded_at, coded, sizeof coded);
		memset(codes, UNTOUCHED & 0xff, codes_len);
		send(&b, b.block->codes, codes, codes_len);
		const struct codec_quantise_args a = {(const struct codec_device_part *)b.t->parts_at,
			(const struct codec_device_chunk *)b.chunk_at,
			(const struct codec_device_block *)b.block_at, (const uint8_t *)coded_at};

		assert_int_equal(post_send(b.c), 0);
		assert_int_equal(device_codec_launch(b.c, DEVICE_KERNEL_codec_quantise, STRIDE / CODEC_TILE,
					 1, 1, CODEC_TILE, 0, &a),
			0);
		fetch(&b, codes, b.block->codes, codes_len);
		fetch(&b, lost, b.block->lost, STRIDE * 4);
		fetch(&b, kept, b.block->kept, STRIDE * 4);
		for (uint32_t t = 0; t < STRIDE; t++)
			expect_token(&b, t,
				t < cases[k].n_tokens && coded[t] < CODEC_CLASSES ? &host[coded[t]] : NULL,
				codes, lost, kept);
		for (uint32_t i = 0; i < CODEC_CLASSES; i++)
			free(host[i].codes);
		free(c);
		free(codes);
		bench_close(&b);
	}
}

/* ---- features */

/* As the host gathers them: [n_tokens, n_features]. */
static float *host_features(const struct bench *b, uint32_t offset, uint32_t n_tokens, uint64_t position)
{
	const struct transform_part *part = &b->w->t->parts[b->part];
	const struct plane *plane = &b->w->g.planes[part->plane];
	const size_t width = plane_width(plane), half = plane->rope_dim / 2;
	const struct kv_run run = {
		.blocks = b->w->blocks, .block_tokens = b->w->block_tokens, .offset = offset};
	float *x = calloc((size_t)n_tokens * part->n_features, sizeof *x);
	float *table = calloc(2 * n_tokens * half + 1, sizeof *table);
	const struct rope_table rope = {table, table + n_tokens * half};
	uint64_t positions[STRIDE];
	uint16_t tokens[STRIDE];

	for (uint32_t t = 0; t < n_tokens; t++) {
		positions[t] = position + t;
		tokens[t] = (uint16_t)t;
	}
	if (plane->rope_kind != ROPE_NONE)
		kernels_cpu()->rope_fill(plane, positions, n_tokens, table, table + n_tokens * half);
	for (uint32_t l = 0; l < part->n_layers; l++)
		kernels_cpu()->gather(plane,
			&b->w->pages[(part->first_layer + l) * b->w->g.n_planes + part->plane], &run, tokens,
			n_tokens, plane->rope_kind != ROPE_NONE ? &rope : NULL, part->mean + l * width,
			part->weight + l * width, x + l * width, part->n_features);
	free(table);
	return x;
}

struct features {
	uint32_t n_columns;
	struct codec_octet *octets;
	uint16_t *x; /* at codec_feature_at */
	float energy[STRIDE], norm[STRIDE];
};

static void device_features(
	struct bench *b, uint32_t offset, uint32_t n_tokens, uint64_t position, struct features *out)
{
	const struct codec_chunk from = codec_world_chunk(b->w, true, offset, n_tokens, position);
	const struct codec_device_part *part = &b->t->parts[b->part];
	const size_t x_len = (size_t)STRIDE * part->n_columns * 2;
	struct arena *a = &b->c->arena;

	assert_int_equal(device_codec_chunk(b->c, b->t, &from, b->chunk), 0);
	b->block->x = (uint16_t *)arena_take(a, x_len);
	b->block->energy = (float *)arena_take(a, STRIDE * 4);
	b->block->norm = (float *)arena_take(a, STRIDE * 4);
	assert_true(b->block->x && b->block->energy && b->block->norm);
	*out = (struct features){.n_columns = part->n_columns,
		.octets = calloc(part->n_columns / 8, sizeof *out->octets),
		.x = malloc(x_len)};
	memset(out->x, 0x7f, x_len);
	send(b, b->block->x, out->x, x_len);
	const struct codec_convert_args args = {(const struct codec_device_part *)b->t->parts_at,
		(const struct codec_device_chunk *)b->chunk_at,
		(const struct codec_device_block *)b->block_at};

	assert_int_equal(post_send(b->c), 0);
	assert_int_equal(device_codec_rope(b->c, b->t, &b->w->g, b->chunk_at, 1, n_tokens), 0);
	assert_int_equal(device_codec_launch(b->c, DEVICE_KERNEL_codec_convert, STRIDE / CODEC_CONVERT_TILE,
				 1, 1, CODEC_CONVERT_THREADS, 0, &args),
		0);
	fetch(b, out->x, b->block->x, x_len);
	fetch(b, out->energy, b->block->energy, sizeof out->energy);
	fetch(b, out->norm, b->block->norm, sizeof out->norm);
	fetch(b, out->octets, part->octets, part->n_columns / 8 * sizeof *out->octets);
}

/* One token's features and sums, to what f16 and f32 round. */
static void expect_features(const struct bench *b, const struct features *f, const float *host, uint32_t t)
{
	const struct transform_part *part = &b->w->t->parts[b->part];
	const struct plane *plane = &b->w->g.planes[part->plane];
	double energy = 0, norm = 0;

	for (uint32_t i = 0; i < f->n_columns; i++) {
		const struct codec_octet *o = &f->octets[i / 8];
		const size_t at = o->layer * plane_width(plane) + o->head * plane->dim + o->dim + i % 8;
		const uint16_t bits = f->x[codec_feature_at(t, i, f->n_columns)];
		const double seen = (double)f16_to_f32(bits);

		if (!host || o->layer == CODEC_NO_LAYER) {
			assert_true(bits == 0 || (host && seen == 0));
			continue;
		}
		const double z = (double)host[t * part->n_features + at];
		const double weighed = z + (double)part->mean[at] * (double)part->weight[at];

		energy += z * z;
		norm += weighed * weighed;
		if (!(fabs(seen - z) <= 0x1p-11 * fabs(z) + 1e-5))
			fail_msg("seed %llu: token %u column %u: %g on the host, %g on the device",
				(unsigned long long)seed, t, i, z, seen);
	}
	if (!host)
		return;
	assert_true(fabs((double)f->energy[t] - energy) <= 1e-5 * energy);
	assert_true(fabs((double)f->norm[t] - norm) <= 1e-5 * norm);
}

/* Parts of more columns than a warp takes at a time, and of fewer; chunks that end within a warp's tokens. */
static void same_features(void **state)
{
	static const struct codec_shape shapes[] = {
		{"f16, a warp's columns and some more", 3, 2, 3, 80, DTYPE_F16, ROPE_HALF, 0, 80, 1, 3, 20,
			16, false},
		{"bf16, a rotated end, blocks by head", 3, 2, 2, 72, DTYPE_BF16, ROPE_HALF, 56, 16, 1, 2, 20,
			16, true},
		{"f32, interleaved in part, scaled", 2, 2, 2, 40, DTYPE_F32, ROPE_INTERLEAVED, 8, 24, 1.25f,
			2, 20, 8, false},
		{"f32, pairs", 2, 2, 4, 128, DTYPE_F32, ROPE_HALF, 0, 128, 1, 2, 20, 16, false},
		{"f16, interleaved", 2, 1, 4, 64, DTYPE_F16, ROPE_INTERLEAVED, 0, 64, 1, 2, 20, 16, false},
	};
	static const struct {
		uint32_t offset, n_tokens;
	} runs[] = {{0, 256}, {5, 131}, {17, 1}, {3, 98}};

	(void)state;
	for (uint32_t k = 0; k < sizeof shapes / sizeof *shapes; k++)
		for (uint32_t i = 0; i < sizeof runs / sizeof *runs; i++) {
			const uint64_t position = 1000 * i;
			const uint32_t n = runs[i].n_tokens;
			struct features f;
			struct bench b;

			bench_open_shape(&b, &shapes[k], i % shapes[k].n_planes, STRIDE);
			float *host = host_features(&b, runs[i].offset, n, position);

			device_features(&b, runs[i].offset, n, position, &f);
			for (uint32_t t = 0; t < STRIDE; t++)
				expect_features(&b, &f, t < n ? host : NULL, t);
			free(host);
			free(f.x);
			free(f.octets);
			bench_close(&b);
		}
}

/* A feature that f16 does not hold, or none at all, makes its token's energy infinite, and no other's. */
static void features_beyond(void **state)
{
	static const float values[] = {1e30f, NAN, INFINITY, -3e5f};
	const struct codec_shape of = {"f32", 1, 1, 2, 64, DTYPE_F32, ROPE_NONE, 0, 0, 1, 1, 20, 16, false};
	struct features f;
	struct bench b;

	(void)state;
	bench_open_shape(&b, &of, 0, STRIDE);
	for (uint32_t i = 0; i < 4; i++)
		memcpy(codec_world_at(b.w, b.w->memory, 0, 0, i % 2, 0, 10 * i + 1) + 4 * (5 + 13 * i),
			&values[i], 4);
	codec_world_send(b.w);
	device_features(&b, 0, 50, 0, &f);
	for (uint32_t t = 0; t < 50; t++)
		assert_int_equal(isinf(f.energy[t]) != 0, t % 10 == 1 && t < 40);
	free(f.x);
	free(f.octets);
	bench_close(&b);
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
				 round_up(bands, CODEC_OFFSET_BANDS) / CODEC_OFFSET_BANDS, 1,
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
		cmocka_unit_test(same_features),
		cmocka_unit_test(features_beyond),
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
