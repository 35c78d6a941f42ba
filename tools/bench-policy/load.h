/*
 * An engine at work, in a thread of its own: puts chunk after chunk, each under a key of its own, so many at
 * a time, and looks up and gets back one in eight. When each put's completion was seen is written down by the
 * chunk's number, which its key carries.
 */
#ifndef BENCH_POLICY_LOAD_H
#define BENCH_POLICY_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/bench-online/stream.h"

enum { LOAD_CHUNKS_MAX = 1 << 18, LOAD_DEPTH_MAX = 64 };

struct load;

/* The captures' tokens lie in the stream's memory, one behind the other from place 0 on; their whole chunks
 * are put in turn. There is room for depth chunks behind them, to get into. stream is borrowed. -ENOMEM,
 * -EAGAIN. */
int load_start(
	struct stream *stream, uint32_t n_captures, uint32_t length, uint32_t depth, struct load **out);
/* Lets what is in flight end. What the load knows stays until load_free. */
void load_stop(struct load *l);
struct load *load_free(struct load *l);

/* Chunks put so far; while it runs, from any thread. */
uint64_t load_n_put(const struct load *l);
/* When the put of a chunk was seen to be complete, CLOCK_MONOTONIC; 0: not yet. The same. */
uint64_t load_done_ns(const struct load *l, uint64_t number);
/* The number in a chunk's key. */
uint64_t load_number_of(const struct cistern_key *key);
void load_key_of(uint64_t number, struct cistern_key *key);

/* When it has stopped. Calls that were completed, and those that failed or came back short. */
uint64_t load_n_calls(const struct load *l);
uint64_t load_n_failed(const struct load *l);
/* From queueing a put to its completion: the q-quantile. */
double load_put_ns(struct load *l, double q);

#endif
