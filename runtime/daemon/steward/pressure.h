/*
 * Which cold chunk is to be coarser next, as the pool fills. Pressure begins when so much of the pool is
 * taken as a namespace in mode=pressure says, and ends a little below. While it lasts, chunks are gone
 * through from the coldest on, the warmer half left alone; one whose rung is two or more finer than what new
 * chunks get is made as coarse as these, so that a chunk goes through few steps: each adds to its error. A
 * namespace's chunks are counted by the second. Front thread.
 */
#ifndef RUNTIME_DAEMON_STEWARD_PRESSURE_H
#define RUNTIME_DAEMON_STEWARD_PRESSURE_H

#include <stdbool.h>

#include "policy/evict.h"
#include "runtime/config.h"
#include "runtime/daemon/steward/errand.h"

struct pressure {
	struct daemon *daemon;
	/* Of each namespace, by its number: */
	bool on[CONFIG_NAMESPACES_MAX];
	double allowed[CONFIG_NAMESPACES_MAX]; /* chunks, by now */
	double fill;                           /* of the pool, as of the last look */
	struct evict_walk walk;
	uint64_t looked_ms, next_ms; /* when to look again */
	uint32_t policies_version;   /* under which chunks were found to be coarse in vain */
	uint64_t n_in_vain;
};

void pressure_init(struct pressure *p, struct daemon *d);
/* A chunk and the rung it should have, in e; false: there is none now. */
bool pressure_next(struct pressure *p, struct errand *e);
/* In how many ms to ask again; -1: not before something has happened. */
int pressure_wait_ms(const struct pressure *p, uint64_t now_ms);
/* Of any namespace. */
bool pressure_is_on(const struct pressure *p);
/* What became of the chunk: it cannot be coarser. */
void pressure_in_vain(struct pressure *p, struct index_entry *e);

#endif
