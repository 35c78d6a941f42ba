/* XXH3-64 on the device: the xxhash library's, for every length up to some blocks, any start, any seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <cmocka.h>

#include "kernels/cuda/bytes/xxh3.h"
#include "tests/cuda/trial.h"

enum { SHORT = 2200, LONG = 100, BYTES = 300000 };

static uint64_t seed;

static void every_length_is_hashed_as_by_the_library(void **state)
{
	static uint8_t bytes[BYTES];
	static struct xxh3_range ranges[SHORT + LONG];
	static uint64_t hashes[SHORT + LONG];
	const uint32_t n = SHORT + LONG;
	uint64_t random = seed;
	struct xxh3_ranges_args args;
	const uint8_t *data;
	uint32_t grid[3];

	(void)state;
	for (size_t i = 0; i < BYTES; i++)
		bytes[i] = (uint8_t)trial_random(&random);
	data = trial_put(bytes, BYTES, 0);
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t len = i < SHORT ? i : trial_below(&random, BYTES / 2);
		/* Some end with the memory. */
		const uint32_t from = i % 7 ? trial_below(&random, BYTES - len + 1) : BYTES - len;

		ranges[i] = (struct xxh3_range){data + from, len, i % 3 ? 0 : trial_random(&random)};
	}
	args = (struct xxh3_ranges_args){trial_put(ranges, sizeof ranges, 0), trial_room(sizeof hashes), n};
	xxh3_grid(n, grid);
	trial_run(DEVICE_KERNEL_xxh3_ranges, grid, XXH3_THREADS, 0, &args);
	trial_get(hashes, args.hashes, sizeof hashes);
	for (uint32_t i = 0; i < n; i++) {
		const uint64_t wanted =
			XXH3_64bits_withSeed(bytes + (ranges[i].data - data), ranges[i].len, ranges[i].seed);

		if (hashes[i] != wanted)
			fail_msg("%llu bytes from %td, seed %llx: %llx, not %llx",
				(unsigned long long)ranges[i].len, ranges[i].data - data,
				(unsigned long long)ranges[i].seed, (unsigned long long)hashes[i],
				(unsigned long long)wanted);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(every_length_is_hashed_as_by_the_library, trial_release),
	};

	int r = trial_begin(&seed);

	if (r)
		return r;
	r = cmocka_run_group_tests(tests, NULL, NULL);
	trial_end();
	return r;
}
