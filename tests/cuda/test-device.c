#include "runtime/cuda/device.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/probe.h"
#include "tests/cuda/gpu.h"

static struct device *device;

/* The example of a launch: buffers, arguments, kernel, copy back. */
static void launch(void **state)
{
	enum { N = 1000 };
	const struct cuda_driver *driver = device_driver(device);
	const uint32_t grid[3] = {(N + PROBE_BLOCK - 1) / PROBE_BLOCK, 1, 1};
	struct probe_args args = {.n = N, .seed = 7};
	uint32_t seen[N + 1];
	CUstream stream;
	CUdeviceptr out;

	(void)state;
	assert_int_equal(
		driver->cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
	assert_int_equal(driver->cuMemAlloc(&out, sizeof seen), CUDA_SUCCESS);
	assert_int_equal(driver->cuMemsetD8Async(out, 0xee, sizeof seen, stream), CUDA_SUCCESS);
	args.out = (uint32_t *)(uintptr_t)out;
	assert_int_equal(device_launch(device, DEVICE_KERNEL_probe, grid, PROBE_BLOCK, 0, stream, &args), 0);
	assert_int_equal(driver->cuMemcpyDtoHAsync(seen, out, sizeof seen, stream), CUDA_SUCCESS);
	assert_int_equal(driver->cuStreamSynchronize(stream), CUDA_SUCCESS);
	for (uint32_t i = 0; i < N; i++)
		assert_int_equal(seen[i], probe_expected(i, 7));
	assert_int_equal(seen[N], 0xeeeeeeee);
	assert_int_equal(driver->cuMemFree(out), CUDA_SUCCESS);
	assert_int_equal(driver->cuStreamDestroy(stream), CUDA_SUCCESS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(launch),
	};
	int status = gpu_begin(&device);

	if (status)
		return status;
	status = cmocka_run_group_tests(tests, NULL, NULL);
	device_free(device);
	return status;
}
