/*
 * What every test of the CUDA backend begins with: a device, or the reason why there is none, with which the
 * test is skipped. Some buffers and launches in short form; a call that fails ends the test.
 */
#ifndef TESTS_CUDA_GPU_H
#define TESTS_CUDA_GPU_H

#include "runtime/cuda/device.h"
#include "tests/cuda/double/double.h"

/* Returns 0, or what main is to return. */
int gpu_begin(struct device **out);

/* Runs this program again, with one argument, and returns the status with which it ended (waitpid's), and
 * what it said on stdout and stderr: for what ends a process. */
int gpu_run_self(const char *argument, char *said, size_t size);

/* NULL: this is a real GPU. */
const struct cuda_double *gpu_double(const struct device *d);

/* One of the tests' own kernels (tests/cuda/list.h). */
CUfunction gpu_test_kernel(const struct device *d, const char *name);
/* In the default stream; waits for the end. */
void gpu_test_launch(const struct device *d, const char *name, uint32_t n_blocks, uint32_t block,
	uint32_t shared_bytes, const void *args);

/* Device memory, filled with a pattern; with content; and its content. */
void *gpu_alloc(const struct device *d, size_t len);
void *gpu_copy_in(const struct device *d, const void *from, size_t len);
void gpu_copy_out(const struct device *d, void *to, const void *from, size_t len);
void gpu_free(const struct device *d, const void *addr);

#endif
