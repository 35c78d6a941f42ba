#include "runtime/cuda/device.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* Whatever fails on the way to a device: a sentence, nothing left behind, and the next attempt works. */
static void refusals(void **state)
{
	static const struct {
		const char *name;
		int code;
		const char *says;
	} cases[] = {
		{"cuInit", CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
			"cuInit says CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"},
		{"cuDeviceGetCount", CUDA_ERROR_NO_DEVICE, "finds no GPU: CUDA_ERROR_NO_DEVICE"},
		{"cuDeviceGet", CUDA_ERROR_DEVICE_UNAVAILABLE,
			"is not to be had: CUDA_ERROR_DEVICE_UNAVAILABLE"},
		{"cuDeviceGetAttribute", CUDA_ERROR_INVALID_VALUE, "no virtual memory management"},
		{"cuDevicePrimaryCtxRetain", CUDA_ERROR_OUT_OF_MEMORY,
			"gives no context: CUDA_ERROR_OUT_OF_MEMORY"},
		{"cuCtxSetCurrent", CUDA_ERROR_INVALID_CONTEXT,
			"gives no context: CUDA_ERROR_INVALID_CONTEXT"},
		{"cuModuleLoadData", CUDA_ERROR_NO_BINARY_FOR_GPU, "does not take our kernels"},
		{"cuModuleGetFunction", CUDA_ERROR_NOT_FOUND,
			"is not in what was loaded: CUDA_ERROR_NOT_FOUND"},
		{"cuMemAlloc", CUDA_ERROR_OUT_OF_MEMORY, "no memory left: CUDA_ERROR_OUT_OF_MEMORY"},
		{"cuLaunchKernel", CUDA_ERROR_INVALID_IMAGE, "does not run our kernels"},
		{"cuMemcpyDtoHAsync", CUDA_ERROR_UNKNOWN, "does not run our kernels"},
		{"cuStreamSynchronize", CUDA_ERROR_UNKNOWN, "does not run our kernels"},
	};
	const struct cuda_double *emulated = gpu_double(device);
	const struct device_options options = {.ordinal = 0};
	struct double_counts before, after;

	(void)state;
	if (!emulated)
		skip();
	emulated->counts(&before);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct device *d = NULL;
		char why[256] = "";

		emulated->refuse(getpid(), cases[i].name, 1, cases[i].code);
		assert_int_equal(device_new(&options, &d, why, sizeof why), -ENODEV);
		assert_null(d);
		if (!strstr(why, cases[i].says))
			fail_msg("%s failed: %s", cases[i].name, why);
		assert_int_equal(device_new(&options, &d, why, sizeof why), 0);
		device_free(d);
		assert_int_equal(device_enter(device), 0);
	}
	emulated->counts(&after);
	assert_int_equal(after.taken_bytes, before.taken_bytes);
	assert_int_equal(after.n_streams, before.n_streams);
}

static void bad_launches(void **state)
{
	const uint32_t none[3] = {0, 1, 1}, one[3] = {1, 1, 1};
	const struct probe_args args = {.n = 0};

	(void)state;
	assert_int_equal(device_launch(device, DEVICE_KERNEL_probe, none, 32, 0, NULL, &args), -EINVAL);
	assert_int_equal(device_launch(device, DEVICE_KERNEL_probe, one, 4096, 0, NULL, &args), -EINVAL);
	assert_int_equal(device_launch(device, DEVICE_KERNEL_probe, one, 32, 1 << 20, NULL, &args), -EINVAL);
	assert_int_equal(device_launch(device, DEVICE_KERNEL_probe, one, 32, 0, NULL, &args), 0);
	assert_int_equal(device_driver(device)->cuStreamSynchronize(NULL), CUDA_SUCCESS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(launch),
		cmocka_unit_test(bad_launches),
		cmocka_unit_test(refusals),
	};
	int status = gpu_begin(&device);

	if (status)
		return status;
	status = cmocka_run_group_tests(tests, NULL, NULL);
	device_free(device);
	return status;
}
