#include "runtime/cuda/device.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/log.h"
#include "kernels/cuda/probe.h"

#ifdef HAVE_CUDA_KERNELS
/* kernels/cuda/meson.build: the fatbin, by .incbin. */
extern const unsigned char cistern_cuda_kernels[];
#endif

static const char *const kernel_names[DEVICE_KERNELS] = {
#define KERNEL(name) #name,
#include "kernels/cuda/list.h"
#undef KERNEL
};

struct device {
	struct cuda_driver *driver;
	CUdevice device;
	CUcontext context; /* retained */
	CUmodule module;
	CUfunction functions[DEVICE_KERNELS];
	char description[512];
};

int device_result(CUresult result, const char *file, int line)
{
	int status;

	switch (result) {
	case CUDA_SUCCESS: return 0;
	case CUDA_ERROR_NOT_READY: return -EAGAIN;
	case CUDA_ERROR_OUT_OF_MEMORY: status = -ENOMEM; break;
	case CUDA_ERROR_INVALID_VALUE:
	case CUDA_ERROR_INVALID_HANDLE: status = -EINVAL; break;
	case CUDA_ERROR_NO_DEVICE:
	case CUDA_ERROR_INVALID_DEVICE: status = -ENODEV; break;
	case CUDA_ERROR_NOT_SUPPORTED: status = -ENOTSUP; break;
	case CUDA_ERROR_NOT_PERMITTED: status = -EPERM; break;
	default: status = -EIO; break;
	}
	log_error("%s:%d: the driver says %s (%d)", file, line, driver_error_name(result), (int)result);
	return status;
}

/* The image, or why there is none. The double runs its own build of the kernels. */
static const void *find_image(const struct cuda_driver *driver)
{
#ifdef HAVE_CUDA_KERNELS
	(void)driver;
	return cistern_cuda_kernels;
#else
	return driver->emulated ? "" : NULL;
#endif
}

static int choose_device(struct device *d, int ordinal, char *why, size_t why_len)
{
	const struct cuda_driver *driver = d->driver;
	int n = 0, managed = 0;
	CUresult result = driver->cuDeviceGetCount(&n);

	if (result != CUDA_SUCCESS)
		return fault_say(-ENODEV, why, why_len, "the NVIDIA driver finds no GPU: %s",
			driver_error_name(result));
	if (n == 0)
		return fault_say(-ENODEV, why, why_len,
			"the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES is %s)",
			getenv("CUDA_VISIBLE_DEVICES") ? getenv("CUDA_VISIBLE_DEVICES") : "not set");
	if (ordinal >= n)
		return fault_say(
			-ENODEV, why, why_len, "there is no GPU %d: the NVIDIA driver shows %d", ordinal, n);
	result = driver->cuDeviceGet(&d->device, ordinal < 0 ? 0 : ordinal);
	if (result != CUDA_SUCCESS)
		return fault_say(-ENODEV, why, why_len, "GPU %d is not to be had: %s", ordinal,
			driver_error_name(result));
	if (driver->cuDeviceGetAttribute(&managed, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
		    d->device) != CUDA_SUCCESS ||
		!managed)
		return fault_say(-ENODEV, why, why_len,
			"GPU %d has no virtual memory management, which the pool needs", (int)d->device);
	return 0;
}

static int load_kernels(struct device *d, char *why, size_t why_len)
{
	const struct cuda_driver *driver = d->driver;
	const void *image = find_image(driver);
	CUresult result;

	if (!image)
		return fault_say(-ENODEV, why, why_len,
			"there is a GPU, but this program was built without GPU kernels (no nvcc)");
	result = driver->cuModuleLoadData(&d->module, image);
	if (result != CUDA_SUCCESS)
		return fault_say(-ENODEV, why, why_len,
			"GPU %d does not take our kernels (sm_80 and later): %s", (int)d->device,
			driver_error_name(result));
	for (int i = 0; i < DEVICE_KERNELS; i++) {
		int shared_max = 0;

		result = driver->cuModuleGetFunction(&d->functions[i], d->module, kernel_names[i]);
		if (result != CUDA_SUCCESS)
			return fault_say(-ENODEV, why, why_len, "the kernel %s is not in what was loaded: %s",
				kernel_names[i], driver_error_name(result));
		/* What is more than the 48 KiB of old has to be asked for; how much there is differs by
		 * device, and static shared memory counts. */
		if (driver->cuDeviceGetAttribute(&shared_max,
			    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
			    d->device) == CUDA_SUCCESS) {
			int own = 0;

			driver->cuFuncGetAttribute(
				&own, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, d->functions[i]);
			driver->cuFuncSetAttribute(d->functions[i],
				CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_max - own);
		}
	}
	return 0;
}

/* Runs the probe and looks at what it wrote. */
static int run_probe(struct device *d, char *why, size_t why_len)
{
	enum { N = 3 * PROBE_BLOCK + 2 };
	const struct cuda_driver *driver = d->driver;
	const uint32_t grid[3] = {(N + PROBE_BLOCK - 1) / PROBE_BLOCK, 1, 1};
	struct probe_args args = {.n = N, .seed = 0x5ca1ab1e};
	uint32_t seen[N];
	CUdeviceptr out = 0;
	CUresult result = driver->cuMemAlloc(&out, sizeof seen);
	int status = 0;

	if (result != CUDA_SUCCESS)
		return fault_say(-ENODEV, why, why_len, "GPU %d has no memory left: %s", (int)d->device,
			driver_error_name(result));
	args.out = (uint32_t *)(uintptr_t)out;
	status = device_launch(d, DEVICE_KERNEL_probe, grid, PROBE_BLOCK, 0, NULL, &args);
	if (!status)
		status = device_status(driver->cuMemcpyDtoHAsync(seen, out, sizeof seen, NULL));
	if (!status)
		status = device_status(driver->cuStreamSynchronize(NULL));
	for (uint32_t i = 0; !status && i < N; i++)
		if (seen[i] != probe_expected(i, args.seed))
			status = -EIO;
	driver->cuMemFree(out);
	if (status)
		return fault_say(-ENODEV, why, why_len, "GPU %d does not run our kernels: see the log",
			(int)d->device);
	return 0;
}

static void describe(struct device *d)
{
	const struct cuda_driver *driver = d->driver;
	char name[96] = "?";
	int major = 0, minor = 0;
	size_t memory = 0;

	driver->cuDeviceGetName(name, sizeof name, d->device);
	driver->cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, d->device);
	driver->cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, d->device);
	driver->cuDeviceTotalMem(&memory, d->device);
	snprintf(d->description, sizeof d->description,
		"GPU %d: %s, sm_%d%d, %zu MiB, driver for CUDA %d.%d; %s; matrix products: own kernels",
		(int)d->device, name, major, minor, memory >> 20, driver->version / 1000,
		driver->version % 1000 / 10,
		driver->emulated ? "kernels emulated on the CPU, for tests"
				 : "kernels from the program's fatbin");
}

int device_new(const struct device_options *o, struct device **out, char *why, size_t why_len)
{
	struct device *d = calloc(1, sizeof *d);
	CUresult result;
	int status;

	if (!d)
		return -ENOMEM;
	status = driver_load(&d->driver, why, why_len);
	if (status)
		goto out;
	status = choose_device(d, o->ordinal, why, why_len);
	if (status)
		goto out;
	/* Who waits for the GPU sleeps: the driver's own way is to spin. Too late if the process has a
	 * context already, which does no harm. */
	(void)d->driver->cuDevicePrimaryCtxSetFlags(d->device, CU_CTX_SCHED_BLOCKING_SYNC);
	result = d->driver->cuDevicePrimaryCtxRetain(&d->context, d->device);
	if (result == CUDA_SUCCESS)
		result = d->driver->cuCtxSetCurrent(d->context);
	if (result != CUDA_SUCCESS) {
		status = fault_say(-ENODEV, why, why_len, "GPU %d gives no context: %s", (int)d->device,
			driver_error_name(result));
		goto out;
	}
	status = load_kernels(d, why, why_len);
	if (!status)
		status = run_probe(d, why, why_len);
	if (status)
		goto out;
	describe(d);
	*out = d;
	d = NULL;
out:
	device_free(d);
	return status;
}

struct device *device_free(struct device *d)
{
	if (!d)
		return NULL;
	if (d->context) {
		d->driver->cuCtxSetCurrent(d->context);
		if (d->module)
			d->driver->cuModuleUnload(d->module);
		d->driver->cuCtxSetCurrent(NULL);
		d->driver->cuDevicePrimaryCtxRelease(d->device);
	}
	driver_free(d->driver);
	free(d);
	return NULL;
}

const struct cuda_driver *device_driver(const struct device *d)
{
	return d->driver;
}

CUdevice device_ordinal(const struct device *d)
{
	return d->device;
}

const char *device_describe(const struct device *d)
{
	return d->description;
}

const char *device_kernel_name(const struct device *d, CUfunction f)
{
	for (int i = 0; i < DEVICE_KERNELS; i++)
		if (d->functions[i] == f)
			return kernel_names[i];
	return "?";
}

int device_enter(const struct device *d)
{
	return device_status(d->driver->cuCtxSetCurrent(d->context));
}

int device_launch(const struct device *d, enum device_kernel kernel, const uint32_t grid[3], uint32_t block,
	uint32_t shared_bytes, CUstream stream, const void *args)
{
	void *params[] = {(void *)(uintptr_t)args};

	return device_status(d->driver->cuLaunchKernel(d->functions[kernel], grid[0], grid[1], grid[2], block,
		1, 1, shared_bytes, stream, params, NULL));
}
