#include "runtime/cuda/memory.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cuda/gpu.h"

enum { MIB = 1 << 20, SLAB = 2 * MIB };

static struct device *device;

static struct memory *make(uint64_t room_bytes, uint64_t spare_bytes)
{
	const struct memory_options options = {
		.room_bytes = room_bytes, .slab_bytes = SLAB, .spare_bytes = spare_bytes};
	struct memory *m;

	assert_int_equal(memory_new(device, &options, &m), 0);
	return m;
}

static uint64_t taken(void)
{
	struct double_counts counts;

	gpu_double(device)->counts(&counts);
	return counts.taken_bytes;
}

static void limits(void **state)
{
	struct memory_options options = {.room_bytes = 0};
	struct memory *m = NULL;
	struct memory_stats stats;
	uint64_t mapped = 1;

	(void)state;
	assert_int_equal(memory_new(device, &options, &m), -EINVAL);
	options.room_bytes = UINT64_MAX;
	assert_int_equal(memory_new(device, &options, &m), -EINVAL);
	assert_null(m);
	assert_null(memory_free(NULL));

	options = (struct memory_options){.room_bytes = 7 * MIB, .slab_bytes = 1};
	assert_int_equal(memory_new(device, &options, &m), 0);
	memory_get_stats(m, &stats);
	assert_int_equal(stats.slab_bytes % (2 * MIB), 0);
	assert_int_equal(stats.room_bytes, stats.slab_bytes > 7 * MIB
						   ? stats.slab_bytes
						   : 7 * MIB / stats.slab_bytes * stats.slab_bytes);
	assert_int_equal(memory_resize(m, stats.room_bytes + 1, &mapped), -EINVAL);
	assert_int_equal(mapped, 0);
	assert_int_equal(memory_resize(m, UINT64_MAX, &mapped), -EINVAL);
	assert_int_equal(memory_resize(m, 1, &mapped), 0);
	assert_int_equal(mapped, stats.slab_bytes);
	memory_free(m);
}

/* One range to copies, whatever the slabs; what stays mapped keeps its content. */
static void grow_and_shrink(void **state)
{
	const struct cuda_driver *driver = device_driver(device);
	struct memory *m = make(16 * MIB, 0);
	const CUdeviceptr range = memory_range(m);
	unsigned char *seen = malloc(6 * MIB);
	struct memory_stats stats;
	uint64_t mapped, slab;

	(void)state;
	memory_get_stats(m, &stats);
	slab = stats.slab_bytes;
	assert_int_equal(memory_resize(m, 3 * slab - 1, &mapped), 0);
	assert_int_equal(mapped, 3 * slab);
	assert_int_equal(driver->cuMemsetD8Async(range, 0x11, 3 * slab, NULL), CUDA_SUCCESS);
	assert_int_equal(driver->cuMemsetD8Async(range + slab - 100, 0x22, 200, NULL), CUDA_SUCCESS);
	assert_int_equal(driver->cuStreamSynchronize(NULL), CUDA_SUCCESS);

	assert_int_equal(memory_resize(m, 2 * slab, &mapped), 0);
	assert_int_equal(mapped, 2 * slab);
	assert_int_equal(memory_range(m), range);
	if (gpu_double(device))
		assert_int_equal(
			driver->cuMemsetD8Async(range + 2 * slab - 1, 0, 2, NULL), CUDA_ERROR_INVALID_VALUE);
	assert_int_equal(memory_resize(m, 4 * slab, &mapped), 0);
	assert_int_equal(driver->cuMemsetD8Async(range + 2 * slab, 0x33, 2 * slab, NULL), CUDA_SUCCESS);
	assert_int_equal(driver->cuMemcpyDtoHAsync(seen, range, 3 * SLAB, NULL), CUDA_SUCCESS);
	assert_int_equal(driver->cuStreamSynchronize(NULL), CUDA_SUCCESS);
	for (uint64_t i = 0; i < 2 * slab && i < 3 * SLAB; i++)
		if (seen[i] != (i - (slab - 100) < 200 ? 0x22 : 0x11))
			fail_msg("byte %llu is 0x%x", (unsigned long long)i, seen[i]);
	memory_get_stats(m, &stats);
	assert_int_equal(stats.mapped_bytes, 4 * slab);
	assert_int_equal(stats.n_mapped, 5);
	assert_int_equal(stats.n_unmapped, 1);
	assert_int_equal(stats.n_refused, 0);
	free(seen);
	memory_free(m);
}

/* The device runs out: what could be had stays and serves, and comes back when it is given back. */
static void exhaustion(void **state)
{
	const struct cuda_double *emulated = gpu_double(device);
	const uint64_t before = emulated ? taken() : 0;
	struct memory *m, *other;
	struct memory_stats stats;
	struct double_counts counts;
	uint64_t mapped;

	(void)state;
	if (!emulated)
		skip();
	emulated->counts(&counts);
	emulated->set_total_bytes(before + 5 * SLAB);
	m = make(16 * SLAB, 0);
	assert_int_equal(memory_resize(m, 8 * SLAB, &mapped), -ENOMEM);
	assert_int_equal(mapped, 5 * SLAB);
	memory_get_stats(m, &stats);
	assert_int_equal(stats.n_refused, 1);
	assert_int_equal(
		device_driver(device)->cuMemsetD8Async(memory_range(m), 1, mapped, NULL), CUDA_SUCCESS);
	assert_int_equal(device_driver(device)->cuStreamSynchronize(NULL), CUDA_SUCCESS);

	other = make(16 * SLAB, SLAB);
	assert_int_equal(memory_resize(other, SLAB, &mapped), -ENOMEM);
	assert_int_equal(memory_resize(m, 2 * SLAB, &mapped), 0);
	assert_int_equal(taken(), before + 2 * SLAB);
	/* One slab is to be left to others. */
	assert_int_equal(memory_resize(other, 3 * SLAB, &mapped), -ENOMEM);
	assert_int_equal(mapped, 2 * SLAB);
	memory_free(other);
	memory_free(m);
	assert_int_equal(taken(), before);
	emulated->set_total_bytes(counts.total_bytes);
}

/* Each driver call fails once, in the second slab: an error, no memory lost, and the next attempt succeeds.
 */
static void refusals(void **state)
{
	static const struct {
		const char *name;
		int code, status;
		bool grows;
	} cases[] = {
		{"cuMemCreate", CUDA_ERROR_OUT_OF_MEMORY, -ENOMEM, true},
		{"cuMemCreate", CUDA_ERROR_UNKNOWN, -EIO, true},
		{"cuMemMap", CUDA_ERROR_OUT_OF_MEMORY, -ENOMEM, true},
		{"cuMemSetAccess", CUDA_ERROR_UNKNOWN, -EIO, true},
		{"cuMemGetInfo", CUDA_ERROR_UNKNOWN, -EIO, true},
		{"cuMemUnmap", CUDA_ERROR_UNKNOWN, -EIO, false},
	};
	const struct cuda_double *emulated = gpu_double(device);

	(void)state;
	if (!emulated)
		skip();
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		const uint64_t before = taken();
		struct memory *m = make(16 * SLAB, 1);
		uint64_t mapped;

		if (!cases[i].grows)
			assert_int_equal(memory_resize(m, 4 * SLAB, &mapped), 0);
		emulated->refuse(getpid(), cases[i].name, 2, cases[i].code);
		assert_int_equal(
			memory_resize(m, cases[i].grows ? 3 * SLAB : SLAB, &mapped), cases[i].status);
		assert_int_equal(mapped, cases[i].grows ? SLAB : 3 * SLAB);
		assert_int_equal(taken(), before + mapped);
		assert_int_equal(memory_resize(m, 2 * SLAB, &mapped), 0);
		assert_int_equal(taken(), before + 2 * SLAB);
		memory_free(m);
		assert_int_equal(taken(), before);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(limits),
		cmocka_unit_test(grow_and_shrink),
		cmocka_unit_test(exhaustion),
		cmocka_unit_test(refusals),
	};
	int status = gpu_begin(&device);

	if (status)
		return status;
	status = cmocka_run_group_tests(tests, NULL, NULL);
	device_free(device);
	return status;
}
