/*
 * The files of the transforms that the daemon has learned: one directory, a file a version, named
 * NUMBER-TOKENS-ID.safetensors after its number, the tokens that it was learned from and the transform's id.
 * Numbers rise; of two versions of a model the one with the higher number is the newer. Blocking; holds
 * nothing, any thread.
 *
 * A file is whole and durable before the first frame is made with its transform, and goes after the last: so
 * whatever frame survives a kill or a crash, its transform does too.
 */
#ifndef RUNTIME_DAEMON_LEARN_VERSIONS_H
#define RUNTIME_DAEMON_LEARN_VERSIONS_H

#include <stddef.h>
#include <stdint.h>

struct version {
	uint32_t number; /* from 1 */
	uint64_t n_tokens;
	uint8_t id[16];
};

/* Makes the directory if it is missing, removes what interrupted writes have left, and calls found for each
 * version, in order of number. Files with other names are left alone. -errno; -ENOMEM. */
int versions_scan(const char *directory, void (*found)(void *arg, const char *path, const struct version *v),
	void *arg);
/* -errno: nothing is there then. */
int versions_write(const char *directory, const struct version *v, const void *data, size_t len);
/* One that is not there is removed. -errno. */
int versions_remove(const char *directory, const struct version *v);

#endif
