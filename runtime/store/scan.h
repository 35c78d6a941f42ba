/*
 * Reading a store's directory when it is opened: which records there are, which of them hold. Closed segments
 * are read through their footers; of the others every record is read and checked, and then they are closed.
 * Blocking; on the thread that opens the store, before any other has it.
 */
#ifndef RUNTIME_STORE_SCAN_H
#define RUNTIME_STORE_SCAN_H

#include <stdint.h>

#include "runtime/store/segment.h"

struct scan_result {
	uint64_t next_sequence; /* above all that were found */
	uint64_t n_dropped;     /* torn or rotten records */
	uint64_t n_scanned;     /* segments that were read whole */
};

/* t: just initialised; filled in. found is called for each live record, oldest first. Files that are not
 * segments are left alone; so is everything when one is of another version: -ENOTSUP. -ENOMEM, -errno of the
 * directory or of opening a file in it. */
int scan_directory(struct segments *t, store_found_fn found, void *arg, struct scan_result *out);

#endif
