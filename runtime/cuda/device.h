/*
 * A CUDA device: the driver, one device, its primary context, our kernels. Made once at start, by one owner;
 * read-only after that, so any thread may use it, but the driver wants the context to be made current in each
 * thread first (device_enter). Which GPUs there are is the driver's business: CUDA_VISIBLE_DEVICES and MIG
 * are left to it.
 */
#ifndef RUNTIME_CUDA_DEVICE_H
#define RUNTIME_CUDA_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/driver.h"

struct device;

/* DEVICE_KERNEL_probe and so on. */
enum device_kernel {
#define KERNEL(name) DEVICE_KERNEL_##name,
#include "kernels/cuda/list.h"
#undef KERNEL
	DEVICE_KERNELS
};

struct device_options {
	int ordinal; /* as the driver counts; -1: the first */
};

/* Loads the driver, chooses the device, makes its primary context current here, loads the kernels and runs
 * one. -ENODEV with a sentence in why: there is no driver, no such device, the device lacks what we need or
 * cannot run our kernels, or the program was built without them; -ENOMEM. */
int device_new(const struct device_options *o, struct device **out, char *why, size_t why_len);
/* Nothing of the device may be in use any more. */
struct device *device_free(struct device *d);

const struct cuda_driver *device_driver(const struct device *d);
CUdevice device_ordinal(const struct device *d);
/* One line: device, memory, driver, which kernels, which matrix product, and why. */
const char *device_describe(const struct device *d);
/* "?": none of ours. */
const char *device_kernel_name(const struct device *d, CUfunction f);
/* Makes the context the calling thread's. */
int device_enter(const struct device *d);
/* args: the kernel's struct, copied before this returns. shared_bytes: dynamic shared memory. -EINVAL: sizes.
 */
int device_launch(const struct device *d, enum device_kernel kernel, const uint32_t grid[3], uint32_t block,
	uint32_t shared_bytes, CUstream stream, const void *args);

/* A result as 0 or -errno, logged by name where it arose, which the macro adds: -ENOMEM, -EINVAL, -EAGAIN
 * (not ready; not logged), -EIO (the device is lost: all later calls will fail too), -ENODEV and others. */
int device_result(CUresult result, const char *file, int line);
#define device_status(result) device_result((result), __FILE__, __LINE__)

#endif
