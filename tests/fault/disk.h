/*
 * A disk that fails, under the store's own system calls: the tests that include this are linked with --wrap
 * for each of them, and io_uring is not to be had. It does as told: gives errors, writes less than asked,
 * tears writes, rots bits, dawdles; and it can keep a log of everything that was written, synced, made and
 * deleted, from which what a power cut would have left is put together. Only files called segment-* and their
 * folder count. Any thread.
 */
#ifndef TESTS_FAULT_DISK_H
#define TESTS_FAULT_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One in so many calls; 0: never. */
struct disk_faults {
	uint32_t write_error, write_short, write_torn, write_rot; /* torn: part of it, and EIO */
	uint32_t read_error, read_short, read_rot;
	uint32_t sync_error;
	uint32_t no_space; /* making files */
	uint32_t slow;     /* any call takes a millisecond */
	int error;         /* EIO, ENOSPC, EROFS: what write errors say */
};

/* What was done so far, by kind. */
struct disk_counts {
	uint64_t n_write_errors, n_short, n_torn, n_rotten, n_read_errors, n_sync_errors, n_no_space, n_slow;
};

/* Starts to misbehave, from a seed. NULL: behaves. */
void disk_misbehave(const struct disk_faults *faults, uint64_t seed);
struct disk_counts disk_counts(void);

/* Starts a new log; false: stops it. */
void disk_keep_log(bool keep);
/* How many events there are: the time of the log. */
size_t disk_log_now(void);
/* Makes in folder (which is emptied) what might be there if the power went after n events: what was synced,
 * and of the rest a choice that follows from the seed, in part torn at sectors. */
void disk_after_power_cut(const char *folder, size_t n, uint64_t seed);
/* The opposite: all of it, as if nothing had been cached. */
void disk_after_kill(const char *folder, size_t n);

#endif
