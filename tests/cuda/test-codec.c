/* The codec on the device against the host's: frames of either are read by the other, raw tokens come back
 * bit for bit, coded ones within what the frame promises, and nothing else is touched. */
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

#include "kernels/cuda/driver.h"
#include "policy/policy.h"
#include "tests/cuda/codec-world.h"
#include "tests/cuda/gpu.h"

static struct device *device;
static uint64_t seed;

static const struct codec_shape shapes[] = {
	{"f16, heads of 16, one group", 3, 2, 2, 16, DTYPE_F16, ROPE_HALF, 0, 16, 1, 3, 60, 16, false},
	{"bf16, two groups, blocks by head", 3, 2, 3, 32, DTYPE_BF16, ROPE_HALF, 0, 32, 1, 2, 90, 16, true},
	{"f32, interleaved in part, scaled", 2, 2, 2, 40, DTYPE_F32, ROPE_INTERLEAVED, 8, 24, 1.25f, 2, 50, 8,
		false},
	{"one latent plane with a rotated end", 2, 1, 1, 72, DTYPE_BF16, ROPE_HALF, 56, 16, 1, 1, 40, 32,
		false},
	{"a head of 256: pairs far apart", 1, 2, 1, 256, DTYPE_F16, ROPE_HALF, 0, 256, 1, 1, 140, 16, false},
};

enum { SHAPES = sizeof shapes / sizeof *shapes };

static const struct run {
	uint32_t n_tokens, offset, sinks, window, salient_every, rung;
	double max_error, salient_share;
} runs[] = {
	{256, 0, 4, 0, 0, 1, 0, 0},
	{130, 5, 4, 60, 0, 0, 0, 0},
	{37, 3, 0, 0, 5, 2, 0, 0},
	{64, 9, 4, 60, 0, 2, 0, 0},
	{200, 0, 0, 0, 7, 2, 0.25, 0},
	{1, 17, 0, 0, 0, 0, 0, 0},
	{150, 40, 4, 0, 0, 1, 0, 0.2},
};

enum { RUNS = sizeof runs / sizeof *runs };

static void classify(const struct run *r, uint8_t *classes)
{
	for (uint32_t t = 0; t < r->n_tokens; t++)
		classes[t] = t < r->sinks                                    ? TOKEN_SINK
			     : t >= r->n_tokens - r->window                  ? TOKEN_WINDOW
			     : r->salient_every && t % r->salient_every == 1 ? TOKEN_SALIENT
			     : r->salient_every && t % r->salient_every == 2 ? TOKEN_REDUNDANT
									     : TOKEN_PLAIN;
}

static struct codec_options options_of(
	const struct codec_world *w, const struct run *r, const uint8_t *classes)
{
	return (struct codec_options){.transform = w->t,
		.rung = r->rung,
		.rung_salient = r->rung ? r->rung - 1 : 0,
		.rung_redundant = 2,
		.classes = classes,
		.max_error = r->max_error,
		.rank = r->salient_share > 0 ? CODEC_BY_FIT : CODEC_UNRANKED,
		.salient_share = r->salient_share,
		.redundant_share = r->salient_share / 2};
}

/* Every coded token of `after` is as near to the world's memory as the frame says; raw ones are the same. */
static void check_against(struct codec_world *w, const struct run *r, const uint8_t *frame, size_t len,
	uint8_t *after, const char *what)
{
	uint8_t classes[FRAME_TOKENS_MAX];
	struct frame_info info;

	assert_int_equal(frame_parse(frame, len, &info, NULL, 0), 0);
	assert_int_equal(frame_classes(frame, len, classes), 0);
	for (uint32_t t = 0; t < r->n_tokens; t++)
		for (uint32_t p = 0; p < w->g.n_planes; p++) {
			const double error = sqrt(codec_world_norm(w, w->memory, after, p, r->offset, t) /
						  codec_world_norm(w, w->memory, NULL, p, r->offset, t));
			/* As frames promise before results are rounded to the elements' type; bf16 has 8
			 * bits. */
			const double rounding = w->g.planes[p].dtype == DTYPE_BF16 ? 3e-3 : 1e-3;

			if (token_class_is_raw(classes[t])
					? error != 0
					: error > (double)info.error[p].max * 1.002 + rounding)
				fail_msg("%s (seed %llu): token %u plane %u: error %g, promised %g", what,
					(unsigned long long)seed, t, p, error, (double)info.error[p].max);
		}
}

static void poison(struct codec_world *w, uint8_t *keep)
{
	memcpy(keep, w->memory, w->size);
	memset(w->memory, 0xAA, w->size);
	codec_world_send(w);
	memcpy(w->memory, keep, w->size);
}

/* Nothing outside the run's tokens was written. */
static void check_untouched(struct codec_world *w, const struct run *r)
{
	const size_t row = w->g.planes[0].dim * dtype_bytes(w->g.planes[0].dtype);

	for (uint32_t l = 0; l < w->g.n_layers; l++)
		for (uint32_t p = 0; p < w->g.n_planes; p++)
			for (uint32_t h = 0; h < w->g.planes[p].n_heads; h++)
				for (uint32_t t = 0; t < w->n_blocks * w->block_tokens; t++)
					if (t < r->offset || t >= r->offset + r->n_tokens)
						for (size_t i = 0; i < row; i++)
							assert_int_equal(codec_world_at(w, w->device_copy, l,
										 p, h, 0, t)[i],
								0xAA);
}

static void decode_on_device(
	struct codec_world *w, struct device_codec *c, const struct run *r, const uint8_t *frame, size_t len)
{
	const struct codec_chunk chunk = codec_world_chunk(w, true, r->offset, r->n_tokens, r->offset);
	const struct device_phase phase = {.end_layer = w->g.n_layers};
	struct device_decode decode = {.chunk = &chunk, .frame = frame, .len = len};
	struct image *image;

	assert_int_equal(image_read(frame, len, &w->g, w->t, &image), 0);
	decode.image = image;
	assert_int_equal(device_codec_decode(c, &w->g, w->t, &decode, 1, &phase, 1, NULL, NULL), 0);
	assert_int_equal(decode.status, 0);
	free(image);
}

/* Into device_copy: the world's memory stays what it was. */
static void decode_on_host(struct codec_world *w, const struct run *r, const uint8_t *frame, size_t len)
{
	const struct codec_chunk chunk = codec_world_chunk(w, false, r->offset, r->n_tokens, r->offset);
	uint8_t *original = malloc(w->size);

	memcpy(original, w->memory, w->size);
	memset(w->memory, 0xAA, w->size);
	assert_int_equal(codec_decode(w->host, frame, len, w->t, &chunk, 0, w->g.n_layers), 0);
	memcpy(w->device_copy, w->memory, w->size);
	memcpy(w->memory, original, w->size);
	free(original);
}

/* What the two decoders make of one frame: nearly the same. The difference is what f16 operands leave, a
 * small part of a step for every component, over what either is off. */
static void decoders_agree(
	struct codec_world *w, struct device_codec *c, const struct run *r, const uint8_t *frame, size_t len)
{
	const struct codec_chunk chunk = codec_world_chunk(w, false, r->offset, r->n_tokens, r->offset);
	uint8_t *original = malloc(w->size);

	poison(w, original);
	decode_on_device(w, c, r, frame, len);
	codec_world_fetch(w);
	check_untouched(w, r);
	check_against(w, r, frame, len, w->device_copy, "device decodes");
	assert_int_equal(codec_decode(w->host, frame, len, w->t, &chunk, 0, w->g.n_layers), 0);
	for (uint32_t t = 0; t < r->n_tokens; t++)
		for (uint32_t p = 0; p < w->g.n_planes; p++) {
			const double apart =
				sqrt(codec_world_norm(w, w->memory, w->device_copy, p, r->offset, t));
			const double norm = sqrt(codec_world_norm(w, w->memory, NULL, p, r->offset, t));
			const double rounding = w->g.planes[p].dtype == DTYPE_BF16 ? 5e-3 : 1e-3;

			if (!(apart <= rounding * norm))
				fail_msg("seed %llu: token %u plane %u: host and device are %g apart of %g",
					(unsigned long long)seed, t, p, apart, norm);
		}
	memcpy(w->memory, original, w->size);
	codec_world_send(w);
	free(original);
}

static void both_ways(void **state)
{
	(void)state;
	for (size_t s = 0; s < SHAPES; s++) {
		struct codec_world *w = codec_world_new(device, &shapes[s], seed + s);
		struct device_codec *c;

		assert_int_equal(device_codec_new(device, 64 << 20, 0, &c), 0);
		for (size_t k = 0; k < RUNS; k++) {
			const struct run *r = &runs[k];
			const struct codec_chunk chunk =
				codec_world_chunk(w, true, r->offset, r->n_tokens, r->offset);
			const struct codec_chunk host_chunk =
				codec_world_chunk(w, false, r->offset, r->n_tokens, r->offset);
			uint8_t classes[FRAME_TOKENS_MAX], *frame;
			const struct codec_options options = options_of(w, r, classes);
			struct device_encode encode = {.chunk = &chunk, .options = &options};
			struct frame_info info;
			size_t len;

			print_message("%s: %u tokens at %u, rung %u\n", shapes[s].what, r->n_tokens,
				r->offset, r->rung);
			classify(r, classes);
			assert_true(device_codec_serves(&w->g, w->t, w->device_pages, r->n_tokens));
			/* The host's frame on the device. */
			assert_int_equal(
				codec_encode(w->host, &host_chunk, &options, &frame, &len, &info), 0);
			decode_on_host(w, r, frame, len);
			check_against(w, r, frame, len, w->device_copy, "host decodes its own");
			decoders_agree(w, c, r, frame, len);
			/* The device's frame on the host, and on the device. */
			assert_int_equal(device_codec_encode(c, &encode, 1), 0);
			assert_int_equal(encode.status, 0);
			assert_int_equal(encode.len, encode.info.len_bytes);
			decode_on_host(w, r, encode.frame, encode.len);
			check_against(
				w, r, encode.frame, encode.len, w->device_copy, "host decodes the device's");
			decoders_agree(w, c, r, encode.frame, encode.len);
			/* They are as good as each other: the same tokens raw or nearly so, the same errors
			 * on average, but for what the device adds for its products
			 * (kernels/cuda/codec/codec.h): z and w x are of about one size here. */
			assert_in_range(encode.info.n_raw + 2, info.n_raw, info.n_raw + 4);
			for (uint32_t p = 0; p < w->g.n_planes; p++) {
				const double ours = (double)encode.info.error[p].mean;
				const double theirs = (double)info.error[p].mean;
				const double columns = (double)w->t->parts[0].n_features;

				assert_true(r->n_tokens < 32 || ours >= 0.999 * theirs);
				assert_true(r->n_tokens < 32 ||
					    ours <= sqrt(theirs * theirs +
							    2 * CODEC_PRODUCT_NOISE / sqrt(columns)));
			}
			if (!info.raw_section_bytes)
				assert_true(
					fabs((double)encode.len - (double)len) <= 0.01 * (double)len + 16);
			free(frame);
			free(encode.frame);
			free(encode.image);
		}
		device_codec_free(c);
		codec_world_free(w);
	}
}

/* What is not a number stays what it is, bit for bit, and spoils nobody else. */
static void not_finite(void **state)
{
	struct codec_world *w = codec_world_new(device, &shapes[0], seed);
	const struct run r = {.n_tokens = 100};
	const struct codec_chunk chunk = codec_world_chunk(w, true, 0, r.n_tokens, 0);
	uint8_t classes[100] = {0};
	const struct codec_options options = options_of(w, &r, classes);
	struct device_encode encode = {.chunk = &chunk, .options = &options};
	struct device_codec *c;
	const uint16_t nan = 0x7e01, infinite = 0xfc00;

	(void)state;
	memcpy(codec_world_at(w, w->memory, 1, 0, 1, 0, 7), &nan, 2);
	memcpy(codec_world_at(w, w->memory, 2, 1, 0, 0, 20) + 6, &infinite, 2);
	codec_world_send(w);
	assert_int_equal(device_codec_new(device, 64 << 20, 0, &c), 0);
	assert_int_equal(device_codec_encode(c, &encode, 1), 0);
	assert_int_equal(encode.status, 0);
	assert_int_equal(encode.info.n_raw, 2);
	assert_true(isfinite(encode.info.error[0].max) && isfinite(encode.info.error[1].max));
	uint8_t *original = malloc(w->size);

	poison(w, original);
	decode_on_device(w, c, &r, encode.frame, encode.len);
	codec_world_fetch(w);
	for (uint32_t l = 0; l < w->g.n_layers; l++)
		for (uint32_t p = 0; p < 2; p++)
			for (uint32_t h = 0; h < 2; h++)
				for (uint32_t t = 7; t <= 20; t += 13)
					assert_memory_equal(codec_world_at(w, w->device_copy, l, p, h, 0, t),
						codec_world_at(w, w->memory, l, p, h, 0, t), 32);
	free(original);
	free(encode.frame);
	free(encode.image);
	device_codec_free(c);
	codec_world_free(w);
}

static size_t phases_seen;

static void note_phase(void *arg, size_t phase)
{
	(void)arg;
	assert_int_equal(phase, phases_seen);
	phases_seen++;
}

/* Many chunks at once, more than the scratch memory takes through the slices in one piece; groups of layers
 * with an event each; images that stay on the device, but for one whose room is a byte too small. */
static void batches(void **state)
{
	enum { CHUNKS = 5, EACH = 96, ROOM = 1 << 18, SMALL = 3 };
	struct codec_world *w = codec_world_new(device, &shapes[1], seed);
	const struct cuda_driver *d = device_driver(device);
	struct device_phase phases[2] = {{.end_layer = 2}, {.end_layer = 3}};
	struct codec_chunk chunks[CHUNKS];
	struct device_encode encode[CHUNKS];
	struct device_decode decode[CHUNKS];
	uint8_t classes[EACH] = {TOKEN_SINK, TOKEN_SINK};
	struct run r = {.n_tokens = EACH, .rung = 1};
	const struct codec_options options = options_of(w, &r, classes);
	uint8_t *original = malloc(w->size), *frame;
	struct device_codec *c;
	CUdeviceptr room;

	(void)state;
	assert_int_equal(device_codec_new(device, 3 << 20, 0, &c), 0);
	assert_int_equal(device_status(d->cuMemAlloc(&room, CHUNKS * ROOM)), 0);
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(
			device_status(d->cuEventCreate(&phases[i].event, CU_EVENT_DISABLE_TIMING)), 0);
	for (uint32_t i = 0; i < CHUNKS; i++) {
		chunks[i] = codec_world_chunk(w, true, i * EACH, EACH, (uint64_t)i * EACH);
		encode[i] = (struct device_encode){.chunk = &chunks[i],
			.options = &options,
			.room_at = room + i * ROOM,
			.room_bytes = ROOM};
	}
	assert_int_equal(device_codec_encode(c, encode, CHUNKS), 0);
	assert_int_equal(encode[SMALL].image_at, encode[SMALL].room_at);
	encode[SMALL].room_bytes = encode[SMALL].image->len_bytes;
	frame = encode[SMALL].frame;
	for (uint32_t i = 0; i < CHUNKS; i++) {
		if (i != SMALL)
			free(encode[i].frame);
		free(encode[i].image);
	}
	assert_int_equal(device_codec_encode(c, encode, CHUNKS), 0);
	assert_memory_equal(encode[SMALL].frame, frame, encode[SMALL].len);
	free(frame);
	for (uint32_t i = 0; i < CHUNKS; i++) {
		assert_int_equal(encode[i].status, 0);
		assert_int_equal(encode[i].image_at, i == SMALL ? 0 : encode[i].room_at);
		decode[i] = (struct device_decode){.chunk = &chunks[i],
			.image = encode[i].image,
			.image_at = encode[i].image_at,
			.frame = encode[i].frame,
			.len = encode[i].len};
	}
	poison(w, original);
	phases_seen = 0;
	assert_int_equal(device_codec_decode(c, &w->g, w->t, decode, CHUNKS, phases, 2, note_phase, NULL), 0);
	assert_int_equal(phases_seen, 2);
	codec_world_fetch(w);
	for (uint32_t i = 0; i < CHUNKS; i++) {
		assert_int_equal(decode[i].status, 0);
		assert_int_equal(device_status(d->cuEventQuery(phases[i % 2].event)), 0);
		r.offset = i * EACH;
		check_against(w, &r, encode[i].frame, encode[i].len, w->device_copy, "a batch");
		free(encode[i].frame);
		free(encode[i].image);
	}
	/* Phases that do not cover the layers. */
	assert_int_equal(device_codec_decode(c, &w->g, w->t, decode, CHUNKS, phases, 1, NULL, NULL), -EINVAL);
	for (size_t i = 0; i < 2; i++)
		d->cuEventDestroy(phases[i].event);
	d->cuMemFree(room);
	free(original);
	device_codec_free(c);
	codec_world_free(w);
}

/* With ever less scratch memory the same frames, fewer chunks at a time, until not one fits: then each is
 * told so, for the host to take. */
static void little_scratch(void **state)
{
	enum { CHUNKS = 5, EACH = 96 };
	struct codec_world *w = codec_world_new(device, &shapes[1], seed);
	struct codec_chunk chunks[CHUNKS];
	struct device_encode first[CHUNKS], encode[CHUNKS];
	uint8_t classes[EACH] = {TOKEN_SINK, TOKEN_SINK};
	struct run r = {.n_tokens = EACH, .rung = 1};
	const struct codec_options options = options_of(w, &r, classes);
	uint32_t n_served = 0;

	(void)state;
	for (uint64_t scratch = 3 << 20;; scratch = scratch * 7 / 8) {
		struct device_codec *c;

		assert_int_equal(device_codec_new(device, scratch, 0, &c), 0);
		for (uint32_t i = 0; i < CHUNKS; i++) {
			chunks[i] = codec_world_chunk(w, true, i * EACH, EACH, (uint64_t)i * EACH);
			encode[i] = (struct device_encode){.chunk = &chunks[i], .options = &options};
		}
		assert_int_equal(device_codec_encode(c, encode, CHUNKS), 0);
		device_codec_free(c);
		if (encode[0].status)
			break;
		for (uint32_t i = 0; i < CHUNKS; i++) {
			assert_int_equal(encode[i].status, 0);
			free(encode[i].image);
			if (!n_served) {
				first[i] = encode[i];
				continue;
			}
			assert_int_equal(encode[i].len, first[i].len);
			assert_memory_equal(encode[i].frame, first[i].frame, first[i].len);
			free(encode[i].frame);
		}
		n_served++;
	}
	assert_true(n_served >= 3);
	for (uint32_t i = 0; i < CHUNKS; i++) {
		assert_int_equal(encode[i].status, -ENOSPC);
		assert_null(encode[i].frame);
		assert_null(encode[i].image);
		free(first[i].frame);
	}
	codec_world_free(w);
}

/* Streams that are not sound are told, and do no harm: garbage, and lengths that are too short. */
static void damaged(void **state)
{
	enum { N = 64 };
	struct codec_world *w = codec_world_new(device, &shapes[0], seed);
	const struct codec_chunk chunk = codec_world_chunk(w, true, 0, N, 0);
	const struct codec_chunk host_chunk = codec_world_chunk(w, false, 0, N, 0);
	const struct device_phase phase = {.end_layer = w->g.n_layers};
	uint8_t classes[N] = {0}, *frame, *bytes;
	const struct run r = {.n_tokens = N, .rung = 1};
	const struct codec_options options = options_of(w, &r, classes);
	struct device_decode decode = {.chunk = &chunk};
	const struct cuda_driver *d = device_driver(device);
	struct device_codec *c;
	struct image *image;
	CUdeviceptr at;
	size_t len;

	(void)state;
	srand((unsigned)seed);
	assert_int_equal(device_codec_new(device, 64 << 20, 0, &c), 0);
	assert_int_equal(codec_encode(w->host, &host_chunk, &options, &frame, &len, NULL), 0);
	assert_int_equal(image_read(frame, len, &w->g, w->t, &image), 0);
	bytes = malloc(image->len_bytes);
	assert_int_equal(device_status(d->cuMemAlloc(&at, image->len_bytes)), 0);
	decode.image = image;
	decode.image_at = at;
	for (int i = 0; i < 40; i++) {
		const struct image_stream sound = image->streams[1][0];

		assert_int_equal(image_fill(image, frame, len, bytes), 0);
		if (i % 3 == 0)
			for (uint32_t k = 0; k < sound.len; k++)
				bytes[sound.offset + k] = (uint8_t)rand();
		else if (i % 3 == 1)
			bytes[sound.offset + (uint32_t)rand() % sound.len] ^= (uint8_t)(1 << rand() % 8);
		else
			image->streams[1][0].len = (uint32_t)rand() % sound.len;
		assert_int_equal(device_status(d->cuMemcpyHtoDAsync(at, bytes, image->len_bytes, NULL)), 0);
		assert_int_equal(device_status(d->cuStreamSynchronize(NULL)), 0);
		assert_int_equal(device_codec_decode(c, &w->g, w->t, &decode, 1, &phase, 1, NULL, NULL), 0);
		/* A flipped bit among a band's offsets may give another stream that is sound. */
		assert_true(decode.status == -EBADMSG || (i % 3 == 1 && decode.status == 0));
		image->streams[1][0] = sound;
	}
	/* And frames whose checksums are wrong never get so far. */
	assert_int_equal(device_codec_upload(c, image, frame, len, at), 0);
	assert_int_equal(device_codec_decode(c, &w->g, w->t, &decode, 1, &phase, 1, NULL, NULL), 0);
	assert_int_equal(decode.status, 0);
	frame[len - 1] ^= 1;
	assert_int_equal(device_codec_upload(c, image, frame, len, at), -EBADMSG);
	decode = (struct device_decode){.chunk = &chunk, .image = image, .frame = frame, .len = len};
	assert_int_equal(device_codec_decode(c, &w->g, w->t, &decode, 1, &phase, 1, NULL, NULL), -EBADMSG);
	assert_int_equal(decode.status, -EBADMSG);
	d->cuMemFree(at);
	free(frame);
	free(image);
	free(bytes);
	device_codec_free(c);
	codec_world_free(w);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(both_ways),
		cmocka_unit_test(not_finite),
		cmocka_unit_test(batches),
		cmocka_unit_test(little_scratch),
		cmocka_unit_test(damaged),
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
