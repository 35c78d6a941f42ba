/*
 * What kernels are written in does what the hardware's manuals say: on a GPU this tests the wrappers of PTX,
 * under the driver double the emulation. That the emulation catches what CUDA leaves undefined is tested by
 * processes of their own, which it ends.
 */
#include <fenv.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/half.h"
#include "tests/cuda/gpu.h"
#include "tests/cuda/simt-kernels.h"

static struct device *device;
static uint64_t random_state;

static uint32_t random_u32(void)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(random_state >> 32);
}

/* Against sums in f64. The tensor cores' own sums are of f32 precision at least in their exponents' range;
 * with 64 products of numbers below 1 an error of 1e-4 is a wrong element, not rounding. */
static void product(void **state)
{
	enum { K = SIMT_TEST_K };
	uint16_t a[16][K], b[K][8], bt[8][K];
	float d[16][8], d_trans[16][8];
	const uint32_t shared = (16 * (K + 8) + 8 * (K + 8) + K * 8) * sizeof(uint16_t);

	(void)state;
	for (int i = 0; i < 16 * K; i++)
		a[i / K][i % K] = half_from_float((float)random_u32() * 0x1p-31f - 1);
	for (int i = 0; i < 8 * K; i++)
		b[i / 8][i % 8] = bt[i % 8][i / 8] = half_from_float((float)random_u32() * 0x1p-31f - 1);
	const struct simt_test_product_args args = {
		.a = gpu_copy_in(device, a, sizeof a),
		.bt = gpu_copy_in(device, bt, sizeof bt),
		.b = gpu_copy_in(device, b, sizeof b),
		.d = gpu_alloc(device, sizeof d),
		.d_trans = gpu_alloc(device, sizeof d_trans),
	};
	gpu_test_launch(device, "simt_test_product", 1, 32, shared, &args);
	gpu_copy_out(device, d, args.d, sizeof d);
	gpu_copy_out(device, d_trans, args.d_trans, sizeof d_trans);
	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 8; j++) {
			double sum = 0;

			for (int k = 0; k < K; k++)
				sum += (double)half_to_float(a[i][k]) * (double)half_to_float(b[k][j]);
			assert_true(fabs((double)d[i][j] - sum) < 1e-4);
			assert_true(fabs((double)d_trans[i][j] - sum) < 1e-4);
		}
	gpu_free(device, args.a);
	gpu_free(device, args.bt);
	gpu_free(device, args.b);
	gpu_free(device, args.d);
	gpu_free(device, args.d_trans);
}

static void votes(void **state)
{
	uint32_t out[32][SIMT_TEST_VOTES], thirds = 0;
	const struct simt_test_votes_args args = {.out = gpu_alloc(device, sizeof out)};

	(void)state;
	gpu_test_launch(device, "simt_test_votes", 1, 32, 0, &args);
	gpu_copy_out(device, out, args.out, sizeof out);
	gpu_free(device, args.out);
	for (uint32_t i = 0; i < 32; i += 3)
		thirds |= 1u << i;
	for (uint32_t i = 0; i < 32; i++) {
		assert_int_equal(out[i][0], 3 * ((i + 5) % 32));
		assert_int_equal(out[i][1], 3 * (i < 2 ? i : i - 2));
		assert_int_equal(out[i][2], 3 * (i + 7 > 31 ? i : i + 7));
		assert_int_equal(out[i][3], 3 * (i ^ 9));
		assert_int_equal(out[i][4], 3 * (i / 8 * 8 + 5));
		assert_int_equal(out[i][5], 3 * (i % 16 < 3 ? i : i - 3));
		assert_int_equal(out[i][6], 3 * (i % 4 + 3 > 3 ? i : i + 3));
		/* A lane of a later segment is not read, one of an earlier segment is. */
		assert_int_equal(out[i][7], 3 * ((i ^ 9) / 8 > i / 8 ? i : i ^ 9));
		assert_int_equal(out[i][8], thirds);
		assert_int_equal(out[i][9], 3);
		assert_int_equal(out[i][10], 0xaaaaaaaau & (i < 12 ? 0x00000fffu : 0xfffff000u));
		assert_int_equal(out[i][11], (i ^ 1) ^ (i ^ 1) << 8);
	}
}

static void sums(void **state)
{
	enum { BLOCKS = 37, N = BLOCKS * SIMT_TEST_BLOCK };
	static uint32_t in[N], out[N];
	uint32_t total = 5, expected = 5;

	(void)state;
	for (int i = 0; i < N; i++)
		in[i] = random_u32() >> 8;
	const struct simt_test_sum_args args = {
		.in = gpu_copy_in(device, in, sizeof in),
		.out = gpu_alloc(device, sizeof out),
		.total = gpu_copy_in(device, &total, sizeof total),
	};
	gpu_test_launch(device, "simt_test_sum", BLOCKS, SIMT_TEST_BLOCK, 0, &args);
	gpu_copy_out(device, out, args.out, sizeof out);
	gpu_copy_out(device, &total, args.total, sizeof total);
	for (uint32_t i = 0, sum = 0; i < N; i++) {
		sum = i % SIMT_TEST_BLOCK ? sum + in[i] : in[i];
		expected += in[i];
		assert_int_equal(out[i], sum);
	}
	assert_int_equal(total, expected);
	gpu_free(device, args.in);
	gpu_free(device, args.out);
	gpu_free(device, args.total);
}

/* By the words of the CUDA C++ Programming Guide's "Integer intrinsics", one bit or byte at a time. */
static void expect_bits(uint32_t x, uint32_t y, const uint32_t out[SIMT_TEST_BITS])
{
	uint32_t n_ones = 0, highest = 32, lowest = 0, reversed = 0, bytes = 0, left = y, right = x,
		 both_ones = 0;
	uint32_t y_leading = 64;

	for (uint32_t bit = 0; bit < 32; bit++) {
		const uint32_t on = x >> bit & 1, y_on = y >> bit & 1;

		n_ones += on;
		both_ones += on + y_on;
		highest = on ? 31 - bit : highest;
		y_leading = y_on ? 63 - bit : y_leading;
		lowest = on && !lowest ? bit + 1 : lowest;
		reversed |= on << (31 - bit);
	}
	for (uint32_t i = 0; i < (y & 31); i++)
		left = left << 1 | (x << i) >> 31;
	for (uint32_t i = 0; i < (y & 31); i++)
		right = right >> 1 | (y >> i) << 31;
	for (uint32_t i = 0; i < 4; i++) {
		const uint32_t which = y >> (4 * i) & 7;

		bytes |= (((which & 4 ? y : x) >> (8 * (which & 3))) & 0xff) << (8 * i);
	}
	assert_int_equal(out[0], n_ones);
	assert_int_equal(out[1], highest);
	assert_int_equal(out[2], lowest);
	assert_int_equal(out[3], reversed);
	assert_int_equal(out[4], left);
	assert_int_equal(out[5], right);
	assert_int_equal(out[6], bytes);
	assert_int_equal(out[7], (uint32_t)((uint64_t)x * y >> 32));
	assert_int_equal(out[11], both_ones + y_leading);
	assert_int_equal(out[12], x * y + (x ^ y));
	assert_int_equal(out[13], x - y);
	assert_int_equal(out[14], ((y & 4 ? y : x) >> 8 * (y & 3)) & 0xff);
	assert_int_equal(out[15], y & 1 ? 0xa50000a5u | (x & 0xffff) << 8 : 0xa5a5a5a5u);
}

/* Halves: the nearest of all 65536, ties to the even one. */
static uint32_t nearest_half(uint32_t bits)
{
	float x;
	uint32_t sign = bits >> 16 & 0x8000u, lo = 0, hi = 0x7c00;

	memcpy(&x, &bits, sizeof x);
	if (isnan(x))
		return 0x7fff;
	x = fabsf(x);
	/* 2^16 would be next after the largest; at half-way and beyond it is infinite. */
	if (x >= 65520.0f)
		return sign | 0x7c00;
	while (hi - lo > 1) {
		const uint32_t middle = (lo + hi) / 2;

		if (half_to_float((uint16_t)middle) <= x)
			lo = middle;
		else
			hi = middle;
	}
	const double below = (double)x - (double)half_to_float((uint16_t)lo);
	const double above = (hi == 0x7c00 ? 65536.0 : (double)half_to_float((uint16_t)hi)) - (double)x;

	return sign | (below < above || (below == above && lo % 2 == 0) ? lo : hi);
}

/* Bits of x y + z as the C library rounds it, in one direction. */
static void expect_fused(uint32_t seen_bits, const uint32_t in[3], int direction)
{
	float of[3], seen;

	memcpy(of, in, sizeof of);
	memcpy(&seen, &seen_bits, sizeof seen);
	fesetround(direction);
	volatile float x = of[0], y = of[1], z = of[2], expected = fmaf(x, y, z);
	fesetround(FE_TONEAREST);
	const float e = expected;

	assert_true(isnan(e) ? isnan(seen) : memcmp(&seen, &e, sizeof e) == 0);
}

static void bits(void **state)
{
	enum { N = 4096 };
	static uint32_t in[N][2], out[N][SIMT_TEST_BITS];
	static const uint32_t special[] = {0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00001, 0x477fefff,
		0x477ff000, 0x33000000, 0x33000001, 0x33800000, 0x38800000, 0x387fffff, 0x3f801000,
		0x3f803000, 0xffffffff, 1};

	(void)state;
	for (size_t i = 0; i < N; i++)
		for (size_t j = 0; j < 2; j++)
			in[i][j] = random_u32() >> (random_u32() % 3 ? 0 : random_u32() % 32);
	for (size_t i = 0; i < 2000; i++) /* floats about the size of halves */
		in[i][0] = (in[i][0] & 0x8fffffffu) | 0x30000000u;
	for (size_t i = 2000; i < 3000; i++) { /* floats whose products are about as large as others */
		in[i][0] = (in[i][0] & 0x83ffffffu) | 0x3c000000u;
		in[i][1] = (in[i][1] & 0x83ffffffu) | 0x3c000000u;
	}
	for (size_t i = 0; i < sizeof special / sizeof *special; i++) {
		in[i][0] = special[i];
		in[N - 1 - i][1] = special[i * 5 % (sizeof special / sizeof *special)];
	}
	const struct simt_test_bits_args args = {
		.in = gpu_copy_in(device, in, sizeof in),
		.out = gpu_alloc(device, sizeof out),
		.n = N,
	};
	gpu_test_launch(device, "simt_test_bits", N / 64 + 1, 64, 0, &args);
	gpu_copy_out(device, out, args.out, sizeof out);
	gpu_free(device, args.in);
	gpu_free(device, args.out);
	for (size_t i = 0; i < N; i++) {
		const uint16_t half = (uint16_t)in[i][0];
		const float wide = half_to_float(half);
		float seen;

		expect_bits(in[i][0], in[i][1], out[i]);
		assert_int_equal(out[i][8], nearest_half(in[i][0]));
		assert_int_equal(out[i][9], nearest_half(in[i][0]) | nearest_half(in[i][1]) << 16);
		memcpy(&seen, &out[i][10], sizeof seen);
		assert_true(isnan(wide) ? isnan(seen) : memcmp(&seen, &wide, sizeof seen) == 0);
		const uint32_t of[3] = {in[i][0], in[i][1], (&in[0][0])[2 * N - 1 - i]};

		expect_fused(out[i][16], of, FE_DOWNWARD);
		expect_fused(out[i][17], of, FE_UPWARD);
	}
}

/* ---- What the emulation catches. */

static uint32_t run_wrong(uint32_t which, uint32_t memory[64])
{
	const struct simt_test_wrong_args args = {
		.memory = gpu_copy_in(device, memory, 64 * 4), .which = which};

	gpu_test_launch(device, "simt_test_wrong", which == WRONG_RACE_OF_BLOCKS ? 2 : 1, 64, 100, &args);
	gpu_copy_out(device, memory, args.memory, 64 * 4);
	gpu_free(device, args.memory);
	return memory[0];
}

static void fresh_shared_memory(void **state)
{
	uint32_t memory[64] = {0};

	(void)state;
	if (!gpu_double(device))
		skip();
	run_wrong(WRONG_UNINITIALISED, memory);
	for (int i = 0; i < 64; i++) {
		float x;

		memcpy(&x, &memory[i], sizeof x);
		assert_true(isnan(x));
	}
	for (uint32_t i = 0; i < 64; i++)
		memory[i] = 100 + i;
	run_wrong(WRONG_COPY_NOT_WAITED, memory);
	assert_int_not_equal(memory[0], 132);
	assert_int_equal(memory[1], 132);
}

/* Runs one wrong kernel in a process of its own. */
static int in_a_process(uint32_t which, char *said, size_t size)
{
	char number[16];

	snprintf(number, sizeof number, "%u", which);
	return gpu_run_self(number, said, size);
}

static void faults(void **state)
{
	static const struct {
		uint32_t which;
		const char *says;
	} cases[] = {
		{WRONG_BARRIER_LINES, "while others are in that of line"},
		{WRONG_BARRIER_MISSED, "wait for each other for ever"},
		{WRONG_LANE_MISSING, "which takes no part"},
		{WRONG_MASKS, "of lanes 0x001fffff"},
		{WRONG_NOT_NAMED, "is not in its mask"},
		{WRONG_SHARED_END, "past its 100 bytes of dynamic shared memory"},
		{WRONG_SHARED_FAR, "no access to"},
		{WRONG_ALIGNMENT, "not aligned"},
		{WRONG_ADDRESS, "of the device: freed, or never allocated"},
	};
	char said[4096];

	(void)state;
	if (!gpu_double(device))
		skip();
	assert_int_equal(in_a_process(WRONG_NOTHING, said, sizeof said), 0);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		const int status = in_a_process(cases[i].which, said, sizeof said);

		if (status == 0 || !strstr(said, cases[i].says) || !strstr(said, "simt_test_wrong"))
			fail_msg("case %u ended with %d and said: %s", cases[i].which, status, said);
	}
}

static void races(void **state)
{
	static const struct {
		uint32_t which;
		const char *says;
	} cases[] = {
		{WRONG_RACE_OF_BLOCK,
			"in shared memory: block 0, thread 0 wrote it, then block 0, thread 32 writes it"},
		{WRONG_RACE_OF_WARP, "block 0, thread 3 wrote it, then block 0, thread 5 reads it"},
		{WRONG_RACE_OF_BLOCKS, "in the device's memory: block 0, thread 0 wrote it, then block 1, "
				       "thread 0 writes it"},
	};
	uint32_t memory[64] = {0};
	char said[4096];

	(void)state;
	if (!gpu_double(device) || !gpu_double(device)->looks_for_races())
		skip();
	run_wrong(WRONG_RACE_NONE, memory);
	assert_int_equal(memory[0], 64);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		const int status = in_a_process(cases[i].which, said, sizeof said);

		if (status == 0 || !strstr(said, cases[i].says))
			fail_msg("case %u ended with %d and said: %s", cases[i].which, status, said);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(product),
		cmocka_unit_test(votes),
		cmocka_unit_test(sums),
		cmocka_unit_test(bits),
		cmocka_unit_test(fresh_shared_memory),
		cmocka_unit_test(faults),
		cmocka_unit_test(races),
	};
	int status = gpu_begin(&device);

	if (status)
		return status;
	if (argc > 1) {
		uint32_t memory[64] = {0};

		run_wrong((uint32_t)strtoul(argv[1], NULL, 10), memory);
		device_free(device);
		return 0;
	}
	random_state = (uint64_t)time(NULL);
	printf("seed %llu\n", (unsigned long long)random_state);
	status = cmocka_run_group_tests(tests, NULL, NULL);
	device_free(device);
	return status;
}
