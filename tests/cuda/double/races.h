/*
 * Where the emulation tells of what orders memory accesses, for a build of the double that looks for races
 * (races.cc); in the other build `races` is NULL. Called on the OS thread that runs the block.
 */
#ifndef TESTS_CUDA_DOUBLE_RACES_H
#define TESTS_CUDA_DOUBLE_RACES_H

#include <stddef.h>
#include <stdint.h>

struct race_memory {
	const char *start;
	size_t len;
};

struct races {
	/* A block begins; launch: a number for each launch. What is shared is its own. */
	void (*begin_block)(
		const char *kernel, uint64_t launch, uint64_t block, const struct race_memory shared[2]);
	void (*end_block)();
	void (*run_thread)(unsigned thread);
	void (*barrier)(); /* of the whole block */
	void (*warp_barrier)(unsigned warp);
	void (*copy)(const void *to, const void *from, size_t len); /* by the thread that runs */
};

extern const struct races *simt_races;

#endif
