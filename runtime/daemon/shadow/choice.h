/*
 * Which chunks are looked at more closely: those whose id, hashed with XXH3 under a seed that is drawn when
 * the daemon starts and told to nobody, falls below the share wanted of all 2^64 values. So every chunk has
 * the same chance whatever is in it, a client can neither tell nor steer which of its chunks are chosen, and
 * the answer for a chunk is the same whenever it is asked: queries that are shown before their chunk is put
 * can tell whether it will be chosen. What is chosen at one share is chosen at every larger one. Pure but for
 * the drawing of seeds.
 */
#ifndef RUNTIME_DAEMON_SHADOW_CHOICE_H
#define RUNTIME_DAEMON_SHADOW_CHOICE_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/index.h"

/* A number from the kernel's random ones. */
uint64_t choice_seed(void);

uint64_t choice_hash(uint64_t seed, const struct index_key *id);
/* share: 0 none, 1 all. */
bool choice_falls(uint64_t hash, double share);

#endif
