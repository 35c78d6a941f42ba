/*
 * What follows from there being versions: a walk over the cache, now and then, that counts the frames of
 * each; frames that were kept plain and have a transform now are made anew, one at a time on the background
 * thread; a learned version that is not its model's newest, that no frame is made with and nobody uses is
 * taken away, its file last. Belongs to the front thread.
 */
#ifndef RUNTIME_DAEMON_LEARN_UPKEEP_H
#define RUNTIME_DAEMON_LEARN_UPKEEP_H

#include <stdbool.h>

#include "runtime/daemon/learn/background.h"
#include "runtime/daemon/learn/versions.h"
#include "runtime/daemon/registry.h"

struct daemon;
struct upkeep;

/* A version that was learned, here or before a restart. */
struct known {
	struct version version;
	uint8_t fingerprint[16]; /* of its model */
	uint64_t len_bytes;
	uint64_t n_frames; /* as of the last walk */
};

struct upkeep_counts {
	uint64_t n_plain;   /* chunks that are kept plain, as of the last walk */
	uint64_t n_in_vain; /* of these, such as would be no smaller or pass the bound */
};

/* Knows versions, and does nothing about them before upkeep_begin. NULL: out of memory. */
struct upkeep *upkeep_new(struct daemon *d);
/* directory: of the versions' files; empty: they have none. Both are borrowed. */
void upkeep_begin(struct upkeep *u, struct background *b, const char *directory);
/* Nothing new is begun from here on. */
void upkeep_stop(struct upkeep *u);
struct upkeep *upkeep_free(struct upkeep *u);
/* Nothing in flight. */
bool upkeep_is_idle(const struct upkeep *u);

/* Takes note of a version, newest last. -ENOMEM. */
int upkeep_add(struct upkeep *u, const struct known *k);
size_t upkeep_n_known(const struct upkeep *u);
const struct known *upkeep_known(const struct upkeep *u, size_t i);
/* How many versions a model has. */
uint32_t upkeep_n_versions(const struct upkeep *u, const uint8_t fingerprint[16]);
void upkeep_get_counts(const struct upkeep *u, const struct model *m, struct upkeep_counts *out);

/* To be called every second: walks when it is time. */
void upkeep_tick(struct upkeep *u);
/* There is a new transform: the next tick walks. */
void upkeep_hurry(struct upkeep *u);

#endif
