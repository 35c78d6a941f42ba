/*
 * The CUDA driver, loaded at run time: libcuda.so.1 and a table of the entry points that we use, each checked
 * to be there. Nothing is called but cuInit and cuDriverGetVersion. The table is read-only once loaded, any
 * thread may use it. One owner, who frees it when nothing of the driver is in use any more.
 *
 * A build of the tests may put a library of the same name in front (LD_LIBRARY_PATH): the driver double,
 * which carries a mark, so that nobody takes it for a GPU.
 *
 * Matrix products are our own kernels. cuBLASLt would be loaded here in the same way, as a second library
 * with a second table: where it is missing, the own kernels are what there is anyway.
 */
#ifndef KERNELS_CUDA_DRIVER_H
#define KERNELS_CUDA_DRIVER_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/cuda/api.h"

struct cuda_driver {
#define DRIVER_MEMBER(name, symbol) __typeof__(symbol) *name;
	CUDA_ENTRIES(DRIVER_MEMBER)
#undef DRIVER_MEMBER
	int version;   /* 1000 * major + 10 * minor of the CUDA version that the driver supports */
	bool emulated; /* the double: kernels run on the CPU, whatever the module's image holds */
	void *library; /* the loader's handle, also for what else a test wants of the double */
};

/* Loads and initialises the driver. -ENODEV with a sentence in why: no library, a symbol missing (named), or
 * cuInit refuses; -ENOMEM. */
int driver_load(struct cuda_driver **out, char *why, size_t why_len);
struct cuda_driver *driver_free(struct cuda_driver *d);

/* Its name, if it is one that we know; else "an error that has no name here". */
const char *driver_error_name(CUresult result);

#endif
