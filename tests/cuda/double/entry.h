/* What every entry point begins with. */
#ifndef TESTS_CUDA_DOUBLE_ENTRY_H
#define TESTS_CUDA_DOUBLE_ENTRY_H

#include "kernels/cuda/api.h"

enum entry_needs { NEEDS_NOTHING, NEEDS_INIT, NEEDS_CONTEXT };

/* CUDA_SUCCESS, or what the call must fail with: not initialised, no current context, an earlier fault of the
 * device (which sticks), a failure that a test has asked for. name: without version suffix. */
CUresult entry_check(const char *name, enum entry_needs needs);

#define ENTRY(name, needs)                                                                                   \
	do {                                                                                                 \
		const CUresult entry_result = entry_check(name, needs);                                      \
		if (entry_result != CUDA_SUCCESS)                                                            \
			return entry_result;                                                                 \
	} while (0)

#endif
