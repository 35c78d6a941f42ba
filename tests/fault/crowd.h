/* Many clients at once on one daemon with little room, so that everything happens all the time: eviction,
 * moving of records, fetching, removal. What they get back is compared with what they put. */
#ifndef TESTS_FAULT_CROWD_H
#define TESTS_FAULT_CROWD_H

#include "tools/private-daemon.h"

/* Runs so many clients for so long; prints the daemon's memory over time. Returns how many clients found
 * fault, plus 1 if the daemon's memory grew after the first third of a minute or more. */
int crowd_run(const struct private_daemon *d, int n_clients, int seconds);

/* What of a process there is to leak. */
struct process_size {
	long resident_kib;
	int n_fds, n_segments; /* descriptors; those among them of the store's segments, which come and go */
	int n_memfds;          /* shared memories mapped */
};
struct process_size process_size(pid_t pid);

#endif
