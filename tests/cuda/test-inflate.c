/*
 * Inflating on the device: what zlib has deflated in any way comes back; of streams that are damaged, cut
 * short or noise, just those are taken that zlib takes, with the same bytes; no byte outside the room is
 * written.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <cmocka.h>

#include "kernels/cuda/bytes/inflate.h"
#include "tests/cuda/trial.h"

enum { BATCH = 61, LENGTH_MAX = 40000, DAMAGED_BATCHES = 5 };

static uint64_t seed;

struct batch {
	uint32_t n;
	struct deflate_stream streams[BATCH];
	struct deflate_result results[BATCH];
	uint8_t *compressed[BATCH];
};

/* Text-like, with repetitions near and far, runs and noise. */
static uint32_t fill(uint64_t *random, uint8_t *bytes)
{
	const uint32_t n = trial_below(random, 4) ? trial_below(random, LENGTH_MAX) : trial_below(random, 40);

	for (uint32_t i = 0; i < n;) {
		const uint32_t kind = trial_below(random, 4);
		uint32_t count = 1 + trial_below(random, kind == 2 ? 400 : 60);

		for (; count > 0 && i < n; count--, i++) {
			const uint32_t distance = 1 + trial_below(random, i < 33000 ? i + 1 : 33000);

			if (kind == 0)
				bytes[i] = (uint8_t)trial_random(random);
			else if (kind == 1)
				bytes[i] = (uint8_t)('a' + trial_below(random, 5));
			else if (kind == 2)
				bytes[i] = i ? bytes[i - 1] : 0;
			else if (distance <= i)
				for (uint32_t k = 0; k < 20 && i < n; k++, i++)
					bytes[i] = bytes[i - distance];
		}
	}
	return n;
}

static uint32_t deflated(uint64_t *random, const uint8_t *in, uint32_t n, uint8_t **out)
{
	static const int strategies[] = {Z_DEFAULT_STRATEGY, Z_HUFFMAN_ONLY, Z_RLE, Z_FIXED, Z_FILTERED};
	const uLong room = compressBound(n) + 1024;
	z_stream z = {0};

	*out = malloc(room);
	assert_non_null(*out);
	assert_int_equal(deflateInit2(&z, (int)trial_below(random, 10), Z_DEFLATED, -15,
				 1 + (int)trial_below(random, 9), strategies[trial_below(random, 5)]),
		Z_OK);
	z.next_in = (Bytef *)in;
	z.next_out = *out;
	z.avail_out = (uInt)room;
	/* Blocks that end early, and empty stored ones between. */
	for (uint32_t pieces = 1 + trial_below(random, 3); pieces > 0; pieces--) {
		const uint32_t left = (uint32_t)(in + n - z.next_in);

		z.avail_in = pieces == 1 ? left : trial_below(random, left + 1);
		assert_int_not_equal(deflate(&z, pieces == 1              ? Z_FINISH
						 : trial_below(random, 2) ? Z_FULL_FLUSH
									  : Z_BLOCK),
			Z_STREAM_ERROR);
	}
	assert_int_equal(z.total_in, n);
	deflateEnd(&z);
	return (uint32_t)z.total_out;
}

static void add(struct batch *b, uint64_t *random, uint8_t *compressed, uint32_t len, uint32_t room)
{
	b->compressed[b->n] = compressed;
	b->streams[b->n].in = trial_put(compressed, len, trial_below(random, 8));
	b->streams[b->n].in_bytes = len;
	b->streams[b->n].room = room;
	b->streams[b->n].out = trial_room(room);
	b->n++;
}

static void run_batch(struct batch *b)
{
	const struct inflate_streams_args args = {trial_put(b->streams, b->n * sizeof *b->streams, 0),
		trial_room(b->n * sizeof *b->results), b->n};
	uint32_t grid[3];

	inflate_grid(b->n, grid);
	trial_run(DEVICE_KERNEL_inflate_streams, grid, INFLATE_THREADS, 0, &args);
	trial_get(b->results, args.results, b->n * sizeof *b->results);
}

static void free_batch(struct batch *b)
{
	for (size_t i = 0; i < b->n; i++)
		free(b->compressed[i]);
	b->n = 0;
}

static void what_zlib_deflates_comes_back(void **state)
{
	static uint8_t in[BATCH][LENGTH_MAX], out[LENGTH_MAX];
	static struct batch b;
	uint64_t random = seed;

	(void)state;
	for (size_t i = 0; i < BATCH; i++) {
		const uint32_t n = fill(&random, in[i]);
		uint8_t *compressed;
		const uint32_t len = deflated(&random, in[i], n, &compressed);

		/* Every third has no byte to spare, in or out. */
		add(&b, &random, compressed, len, i % 3 ? n + trial_below(&random, 50) : n);
		b.streams[i].room = i % 3 ? b.streams[i].room : n;
		b.results[i].out_bytes = n;
	}
	{
		uint32_t wanted[BATCH];

		for (size_t i = 0; i < BATCH; i++)
			wanted[i] = b.results[i].out_bytes;
		run_batch(&b);
		for (size_t i = 0; i < BATCH; i++) {
			assert_int_equal(b.results[i].status, DEFLATE_DONE);
			assert_int_equal(b.results[i].out_bytes, wanted[i]);
			assert_int_equal(b.results[i].in_bytes, b.streams[i].in_bytes);
			trial_get(out, b.streams[i].out, wanted[i]);
			assert_memory_equal(out, in[i], wanted[i]);
		}
	}
	free_batch(&b);
}

/* Whether zlib takes it, and what it makes of it. */
static int reference(
	const uint8_t *in, uint32_t len, uint8_t *out, uint32_t room, uint32_t *n, uint32_t *used)
{
	z_stream z = {0};
	int r;

	assert_int_equal(inflateInit2(&z, -15), Z_OK);
	z.next_in = (Bytef *)in;
	z.avail_in = len;
	z.next_out = out;
	z.avail_out = room;
	r = inflate(&z, Z_FINISH);
	*n = (uint32_t)z.total_out;
	*used = (uint32_t)z.total_in;
	inflateEnd(&z);
	return r == Z_STREAM_END;
}

static void damage(uint64_t *random, uint8_t *stream, uint32_t *len)
{
	const uint32_t kind = trial_below(random, 6);

	if (kind == 0)
		*len = trial_below(random, *len + 1);
	for (uint32_t flips = kind == 1 ? 1 + trial_below(random, 3) : 0; flips > 0 && *len; flips--)
		stream[trial_below(random, *len < 40 ? *len : 40)] ^= (uint8_t)(1u << trial_below(random, 8));
	for (uint32_t flips = kind == 2 ? 1 + trial_below(random, 3) : 0; flips > 0 && *len; flips--)
		stream[trial_below(random, *len)] ^= (uint8_t)(1u << trial_below(random, 8));
	for (uint32_t i = 0; kind == 3 && i < *len; i++)
		stream[i] = (uint8_t)trial_random(random);
	/* A header of a block with its own codes, and noise for lengths: every other one's first code lengths
	 * are short, so that many are complete. */
	if (kind == 4 && *len) {
		for (uint32_t i = 0; i < *len; i++)
			stream[i] = (uint8_t)trial_random(random);
		stream[0] = (uint8_t)(5 | (stream[0] & 0xf8));
	}
}

static void damaged_streams_end_as_with_zlib(void **state)
{
	static uint8_t in[LENGTH_MAX], out[LENGTH_MAX], wanted[LENGTH_MAX];
	static struct batch b;
	uint64_t random = seed + 1;
	uint32_t taken = 0, refused = 0;

	(void)state;
	for (uint32_t round = 0; round < DAMAGED_BATCHES; round++) {
		for (size_t i = 0; i < BATCH; i++) {
			const uint32_t n = fill(&random, in);
			uint8_t *compressed;
			uint32_t len = deflated(&random, in, n, &compressed);

			damage(&random, compressed, &len);
			add(&b, &random, compressed, len,
				trial_below(&random, 4) ? n : trial_below(&random, n + 1));
		}
		run_batch(&b);
		for (size_t i = 0; i < BATCH; i++) {
			const struct deflate_stream *s = &b.streams[i];
			uint32_t n, used;
			const int good = reference(b.compressed[i], s->in_bytes, wanted, s->room, &n, &used);

			if (good != (b.results[i].status == DEFLATE_DONE))
				fail_msg("round %u stream %zu: status %u, zlib %s it", round, i,
					b.results[i].status, good ? "takes" : "refuses");
			taken += good;
			refused += !good;
			trial_get(out, s->out, s->room);
			if (good) {
				assert_int_equal(b.results[i].out_bytes, n);
				assert_int_equal(b.results[i].in_bytes, used);
				assert_memory_equal(out, wanted, n);
			}
			/* Of the room nothing after what was inflated is touched. */
			assert_true(b.results[i].out_bytes <= s->room);
			for (uint32_t k = b.results[i].out_bytes; k < s->room; k++)
				assert_int_equal(out[k], TRIAL_POISON);
		}
		free_batch(&b);
		trial_release(state);
	}
	printf("%u taken, %u refused\n", taken, refused);
	assert_true(taken > 0 && refused > 0);
}

/* Streams by hand that zlib's own compressor never writes. Bits in the order of the stream. */
struct written {
	const char *name, *bits;
	uint32_t room;
};

#define OWN_CODES                                                                                            \
	"1 01 00000 00000 0111 000 000 100 010 000 000 000 000 000 000 000 000 000 000 000 000 000 010 "     \
	"0 1111111 0 1101011 "

static const struct written written[] = {
	{"nothing at all", "", 10},
	{"a block of a kind that there is not", "1 11", 10},
	{"no bytes, fixed", "1 10 0000000", 0},
	{"no bytes, stored", "1 00 00000 0000000000000000 1111111111111111", 0},
	{"stored, its length not twice the same", "1 00 00000 0000000000000000 1111111111111110", 10},
	{"stored, more than there is", "1 00 00000 1000000000000000 0111111111111111", 10},
	{"a match before the first byte", "1 10 0000001 00000 0000000", 10},
	{"a match a byte too far", "1 10 00110000 0000001 00001 0000000", 10},
	{"a byte, then a run of it", "1 10 00110000 0000001 00000 0000000", 10},
	{"a run that fills the room", "1 10 00110000 0000001 00000 0000000", 4},
	{"a run a byte longer than the room", "1 10 00110000 0000001 00000 0000000", 3},
	{"fixed literal 286", "1 10 11000110 0000000", 10},
	{"fixed literal 287", "1 10 11000111 0000000", 10},
	{"fixed distance 30", "1 10 00110000 0000001 11110 0000000", 10},
	{"the longest match, length 258", "1 10 00110000 11000101 00000 0000000", 259},
	{"length 257 + 1, written as 227 + 31", "1 10 00110000 11000100 11111 00000 0000000", 259},
	{"two ends in one stream, the second not read", "1 10 0000000 1 10 0000000", 10},
	/* A code of code lengths: 18 in one bit, 0 and 1 in two. 256 literals without a code, then: */
	{"an end, in one bit, and no distance", OWN_CODES "11 10 0", 10},
	{"an end, and a distance in one bit, each alone", OWN_CODES "11 11 0", 10},
	{"no code for the end", OWN_CODES "10 11 0", 10},
	{"a symbol that the lone code does not have", OWN_CODES "11 10 1", 10},
	{"more lengths than there are codes", OWN_CODES "0 0000000", 10},
};

static uint32_t parse_bits(const char *bits, uint8_t *out)
{
	uint32_t n = 0;

	memset(out, 0, 64);
	for (; *bits; bits++)
		if (*bits != ' ') {
			out[n / 8] |= (uint8_t)((*bits == '1') << n % 8);
			n++;
		}
	return (n + 7) / 8;
}

static void streams_by_hand_end_as_with_zlib(void **state)
{
	static struct batch b;
	uint64_t random = seed + 2;

	(void)state;
	for (size_t i = 0; i < sizeof written / sizeof *written; i++) {
		uint8_t *stream = malloc(64);

		assert_non_null(stream);
		add(&b, &random, stream, parse_bits(written[i].bits, stream), written[i].room);
	}
	run_batch(&b);
	for (size_t i = 0; i < b.n; i++) {
		uint8_t wanted[512], out[512];
		uint32_t n, used;
		const int good = reference(
			b.compressed[i], b.streams[i].in_bytes, wanted, b.streams[i].room, &n, &used);
		if (good != (b.results[i].status == DEFLATE_DONE) ||
			(good && (b.results[i].out_bytes != n || b.results[i].in_bytes != used)))
			fail_msg("%s: status %u, %u bytes of %u; zlib %s it, %u of %u", written[i].name,
				b.results[i].status, b.results[i].out_bytes, b.results[i].in_bytes,
				good ? "takes" : "refuses", n, used);
		trial_get(out, b.streams[i].out, b.results[i].out_bytes);
		if (good)
			assert_memory_equal(out, wanted, n);
	}
	free_batch(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(what_zlib_deflates_comes_back, trial_release),
		cmocka_unit_test_teardown(damaged_streams_end_as_with_zlib, trial_release),
		cmocka_unit_test_teardown(streams_by_hand_end_as_with_zlib, trial_release),
	};

	int r = trial_begin(&seed);

	if (r)
		return r;
	r = cmocka_run_group_tests(tests, NULL, NULL);
	trial_end();
	return r;
}
