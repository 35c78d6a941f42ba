/*
 * How much a pool and a store hold, and how often what is asked for will be there: before anything is bought.
 * Pure.
 *
 * Sessions have turns; each turn brings the same number of new tokens and asks for all before it. Which
 * session is next is chance, all alike; then the share of sessions that lie in a tier is the chance to find
 * the next one there: hit = min(1, tier bytes / live bytes), whatever the eviction policy that keeps whole
 * sessions. Live bytes are sessions x their mean bytes, halfway through their turns. A session of n tokens
 * takes, per token of raw KV bytes, 1 for the sinks and the window at its end and 1 / ratio for the others.
 * The store holds what the pool holds as well, since chunks are written through.
 */
#ifndef TOOLS_OPERATE_CAPACITY_H
#define TOOLS_OPERATE_CAPACITY_H

#include <stdint.h>

struct capacity_load {
	double token_bytes; /* raw KV of a token, on one GPU's share of the heads */
	double pool_bytes, store_bytes;
	double n_sessions, n_turns, turn_tokens;
	double kept_tokens; /* sinks and window */
};

struct capacity {
	double ratio;                         /* of the coded tokens */
	double session_bytes;                 /* of the mean session */
	double total_ratio;                   /* of that session, with what is kept whole */
	double pool_sessions, store_sessions; /* that fit */
	double pool_hit, hit;                 /* the chance to find the next session in the pool; anywhere */
	double token_hit;                     /* of all prompt tokens: new ones are never there */
};

void capacity_at(const struct capacity_load *load, double ratio, struct capacity *out);

#endif
