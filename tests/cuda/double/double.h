/*
 * What the driver double has beyond a driver: knobs and counts for tests, found with double_find in whatever
 * libcuda.so.1 the process has loaded; a real driver has none of them, and a test that needs them skips
 * there.
 *
 * Processes share one emulated device when CISTERN_DOUBLE_DEVICE names the same file in all of them (made by
 * the first); without it each has a device of its own, though IPC works between any two. The knobs lie in
 * that file, so they can be turned for another process that runs already. Their first values come from the
 * environment of the process that makes the file: CISTERN_DOUBLE_BYTES      memory of the device (default 4
 * GiB) CISTERN_DOUBLE_DELAY_US   every operation of a stream begins so much later: a slow GPU
 *   CISTERN_DOUBLE_FAIL       NAME:N:CODE,...: the N-th call of an entry point, of this process, from now on
 * fails CISTERN_DOUBLE_ORPHAN_MS  imported memory whose owner died faults after so long (default 2000; 0:
 * never) CISTERN_DOUBLE_REUSE=1    an address that was freed is handed out again at once (default: as late as
 * possible)
 */
#ifndef TESTS_CUDA_DOUBLE_DOUBLE_H
#define TESTS_CUDA_DOUBLE_DOUBLE_H

#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

struct double_counts {
	uint64_t total_bytes;
	uint64_t taken_bytes; /* by living processes: memory counts as long as one of them owns or maps it */
	uint64_t process_bytes;  /* that this process alone keeps alive or shares in */
	uint64_t imported_bytes; /* of process_bytes: mapped from other processes */
	uint64_t n_launches;     /* of this process, as the following */
	uint64_t n_streams, n_events, n_allocations, n_mappings; /* alive now */
	uint64_t n_stale_events; /* uses of an interprocess event that its owner had destroyed */
};

struct cuda_double {
	void (*counts)(struct double_counts *out);
	/* The n-th call (1: the next) of an entry point, named without its version suffix, fails with this
	 * CUresult. pid 0: of any process. Once. */
	void (*refuse)(int pid, const char *name, unsigned n, int code);
	void (*set_delay_us)(unsigned delay_us);
	void (*set_total_bytes)(uint64_t bytes);
	/* What an event becomes whose recorder died before it fired: 0, the default: it never fires, 1: it
	 * fires. */
	void (*set_orphans_fire)(int fire);
	/* Whether this build of the double looks for races. */
	int (*looks_for_races)(void);
};

/* NULL: the driver is none. library: the loader's handle, as in struct cuda_driver. */
static inline const struct cuda_double *double_find(void *library)
{
	return (const struct cuda_double *)dlsym(library, "cistern_driver_double");
}

#endif
