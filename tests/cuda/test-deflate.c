/* Deflating on the device: zlib inflates every stream to what went in, and no byte outside the room is
 * written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <cmocka.h>

#include "kernels/cuda/bytes/deflate.h"
#include "tests/cuda/trial.h"

enum { STREAMS = 40 };

static uint64_t seed;

/* What streams hold: bytes of a few kinds of distribution, which change along the stream. */
static void fill(uint64_t *random, uint8_t *bytes, uint32_t n)
{
	uint32_t kind = 0, from = 0, left = 0;

	for (uint32_t i = 0; i < n; i++) {
		if (left == 0) {
			kind = trial_below(random, 7);
			from = trial_below(random, 256);
			left = 1 + trial_below(random, 40000);
		}
		left--;
		switch (kind) {
		case 0: bytes[i] = (uint8_t)from; break;
		case 1: bytes[i] = (uint8_t)trial_random(random); break;
		case 2: bytes[i] = (uint8_t)((int)from + (int)(3 * trial_normal(random))); break;
		case 3: bytes[i] = (uint8_t)(from + (trial_below(random, 10) == 0)); break;
		/* Each value half as frequent as the one before: codes want to be longer than 15 bits. */
		case 4: bytes[i] = (uint8_t)__builtin_ctzll(trial_random(random) | 1ull << 40); break;
		case 5: bytes[i] = (uint8_t)(from + i % 200); break;
		default: bytes[i] = (uint8_t)((int)from + (int)(20 * trial_normal(random))); break;
		}
	}
}

/* Frequencies as Fibonacci's numbers make the deepest tree there is. */
static void fill_fibonacci(uint8_t *bytes, uint32_t n)
{
	uint32_t a = 1, b = 1, at = 0;

	for (uint8_t y = 0; at < n; y++) {
		for (uint32_t k = 0; k < a && at < n; k++)
			bytes[at++] = (uint8_t)(y * 7);
		b += a;
		a = b - a;
	}
}

static const uint32_t lengths[] = {0, 1, 2, 15, 16, 17, 257, 4095, 4096, 4097, DEFLATE_BLOCK_BYTES - 1,
	DEFLATE_BLOCK_BYTES, DEFLATE_BLOCK_BYTES + 1, 2 * DEFLATE_BLOCK_BYTES, 100001};

struct batch {
	struct deflate_stream streams[STREAMS];
	struct deflate_result results[STREAMS];
	uint8_t *in[STREAMS];
};

static void fill_batch(struct batch *b, uint64_t *random)
{
	const size_t n_lengths = sizeof lengths / sizeof *lengths;

	for (size_t i = 0; i < STREAMS; i++) {
		const uint32_t n = i < n_lengths ? lengths[i] : trial_below(random, 70000);

		b->in[i] = malloc(n + 1);
		assert_non_null(b->in[i]);
		if (i == STREAMS - 1)
			fill_fibonacci(b->in[i], n);
		else
			fill(random, b->in[i], n);
		b->streams[i].in = trial_put(b->in[i], n, i % 3 == 2 ? 1 + i % 15 : 0);
		b->streams[i].in_bytes = n;
		b->streams[i].room = deflate_room(n);
		b->streams[i].out = trial_room(b->streams[i].room);
	}
}

static void run_batch(struct batch *b)
{
	const struct deflate_streams_args args = {
		trial_put(b->streams, sizeof b->streams, 0), trial_room(sizeof b->results), STREAMS};
	uint32_t grid[3];

	deflate_grid(STREAMS, grid);
	trial_run(DEVICE_KERNEL_deflate_streams, grid, DEFLATE_THREADS, 0, &args);
	trial_get(b->results, args.results, sizeof b->results);
}

static void free_batch(struct batch *b)
{
	for (size_t i = 0; i < STREAMS; i++)
		free(b->in[i]);
	free(b);
}

/* Inflates len bytes to just the n that it must hold. */
static void check_stream(const uint8_t *stream, uint32_t len, const uint8_t *in, uint32_t n)
{
	uint8_t *out = malloc(n + 1);
	z_stream z = {0};

	assert_non_null(out);
	assert_int_equal(inflateInit2(&z, -15), Z_OK);
	z.next_in = (Bytef *)stream;
	z.avail_in = len;
	z.next_out = out;
	z.avail_out = n + 1;
	assert_int_equal(inflate(&z, Z_FINISH), Z_STREAM_END);
	assert_int_equal(z.avail_in, 0);
	assert_int_equal(z.total_out, n);
	assert_memory_equal(out, in, n);
	inflateEnd(&z);
	free(out);
}

/* What zlib makes of it with Huffman codes alone; it ends its blocks elsewhere. */
static uint64_t zlib_bytes(const uint8_t *in, uint32_t n)
{
	const uLong room = compressBound(n) + 64;
	uint8_t *out = malloc(room);
	z_stream z = {0};

	assert_non_null(out);
	assert_int_equal(deflateInit2(&z, Z_BEST_SPEED, Z_DEFLATED, -15, 9, Z_HUFFMAN_ONLY), Z_OK);
	z.next_in = (Bytef *)in;
	z.avail_in = n;
	z.next_out = out;
	z.avail_out = (uInt)room;
	assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
	deflateEnd(&z);
	free(out);
	return z.total_out;
}

static void zlib_inflates_every_stream(void **state)
{
	struct batch *b = calloc(1, sizeof *b);
	uint64_t random = seed, total = 0, total_zlib = 0;

	(void)state;
	assert_non_null(b);
	fill_batch(b, &random);
	run_batch(b);
	for (size_t i = 0; i < STREAMS; i++) {
		const uint32_t n = b->streams[i].in_bytes, len = b->results[i].out_bytes;
		uint8_t *out = malloc(len + 1);

		assert_non_null(out);
		assert_int_equal(b->results[i].status, DEFLATE_DONE);
		assert_int_equal(b->results[i].in_bytes, n);
		assert_in_range(len, 1, b->streams[i].room);
		trial_get(out, b->streams[i].out, len);
		check_stream(out, len, b->in[i], n);
		total += len;
		total_zlib += zlib_bytes(b->in[i], n);
		free(out);
	}
	printf("%llu bytes, zlib's Huffman-only %llu\n", (unsigned long long)total,
		(unsigned long long)total_zlib);
	free_batch(b);
}

static void too_little_room_is_reported_with_what_it_takes(void **state)
{
	struct batch *b = calloc(1, sizeof *b);
	uint32_t whole[STREAMS];
	uint64_t random = seed + 1;

	(void)state;
	assert_non_null(b);
	fill_batch(b, &random);
	run_batch(b);
	for (size_t i = 0; i < STREAMS; i++) {
		whole[i] = b->results[i].out_bytes;
		b->streams[i].room = i % 2 ? whole[i] : whole[i] - 1 - trial_below(&random, whole[i]);
		/* The guards behind the room tell. */
		b->streams[i].out = trial_room(b->streams[i].room);
	}
	run_batch(b);
	for (size_t i = 0; i < STREAMS; i++) {
		assert_int_equal(b->results[i].out_bytes, whole[i]);
		assert_int_equal(b->results[i].status, i % 2 ? DEFLATE_DONE : DEFLATE_OVERFLOW);
	}
	free_batch(b);
}

static void an_output_out_of_line_is_refused(void **state)
{
	struct batch *b = calloc(1, sizeof *b);
	uint64_t random = seed + 2;

	(void)state;
	assert_non_null(b);
	fill_batch(b, &random);
	for (size_t i = 0; i < STREAMS; i++)
		b->streams[i].out += 1 + i % 15;
	run_batch(b);
	for (size_t i = 0; i < STREAMS; i++)
		assert_int_equal(b->results[i].status, DEFLATE_MISALIGNED);
	free_batch(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(zlib_inflates_every_stream, trial_release),
		cmocka_unit_test_teardown(too_little_room_is_reported_with_what_it_takes, trial_release),
		cmocka_unit_test_teardown(an_output_out_of_line_is_refused, trial_release),
	};

	int r = trial_begin(&seed);

	if (r)
		return r;
	r = cmocka_run_group_tests(tests, NULL, NULL);
	trial_end();
	return r;
}
