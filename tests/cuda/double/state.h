/*
 * The emulated device as all processes that share it see it: how much memory there is, which of them hold
 * which memory objects, and the knobs. It lies in a shared file (see double.h) under one lock. A memory
 * object is a memfd, its identity the file's inode number. Holders that have died are dropped whenever
 * somebody looks.
 */
#ifndef TESTS_CUDA_DOUBLE_STATE_H
#define TESTS_CUDA_DOUBLE_STATE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Opens or makes the shared file; ends the process with a message when that fails. Once, before all others.
 */
void state_open();

/* Counts this process among the object's holders. false: that would be more memory than the device has. */
bool state_hold(uint64_t object, uint64_t len_bytes);
void state_drop(uint64_t object);

struct state_memory {
	uint64_t total_bytes, taken_bytes, process_bytes;
};
struct state_memory state_get_memory();
void state_set_total(uint64_t bytes);

unsigned state_delay_us();
void state_set_delay_us(unsigned delay_us);
unsigned state_orphan_ms();
bool state_orphans_fire();
void state_set_orphans_fire(bool fire);

void state_fail(pid_t pid, const char *name, unsigned n, int code);
/* Counts a call of this process; what it is to fail with, 0: it is not. */
int state_failure(const char *name);

/* When a process started, in clock ticks since boot; 0: there is none of this number, or only its remains. */
uint64_t process_start(pid_t pid);

#endif
