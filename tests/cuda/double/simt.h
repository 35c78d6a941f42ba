/*
 * Runs emulated kernels: see kernels/cuda/simt/simt.h for what a kernel may do, and simt.cc for how. Any
 * thread; a launch is run to its end by the caller, with the help of a pool of threads.
 */
#ifndef TESTS_CUDA_DOUBLE_SIMT_H
#define TESTS_CUDA_DOUBLE_SIMT_H

#include <stddef.h>
#include <stdint.h>

/* A kernel in the emulation's registry: calls it with its argument, which lies at args. */
struct simt_kernel {
	const char *name;
	size_t args_bytes;
	void (*call)(const void *args);
};

/* NULL: there is none of this name. */
const struct simt_kernel *simt_find(const char *name);

enum { SIMT_BLOCK_THREADS_MAX = 1024, SIMT_SHARED_BYTES_MAX = 227 << 10 };

/* The sizes have been checked: a block of 1 to SIMT_BLOCK_THREADS_MAX threads, nothing zero. */
void simt_launch(const struct simt_kernel *kernel, const uint32_t grid[3], const uint32_t block[3],
	size_t shared_bytes, const void *args);

/* What the calling OS thread runs, for messages of faults: the kernel's name, or NULL; block and thread. */
const char *simt_where(uint32_t block[3], uint32_t thread[3]);

#endif
