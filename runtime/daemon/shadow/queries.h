/*
 * A sample of the queries that an engine showed of a sequence, for one of its chunks: a few of those that
 * stand behind the chunk and so see all of it. They are drawn evenly over all that there are, from a random
 * start (systematic sampling), so each has the same chance.
 *
 * The front thread makes the sample and says which queries; a worker copies them out of the observation; then
 * the sample is used, or waits here until its chunk is put. Its memory counts in the budget.
 */
#ifndef RUNTIME_DAEMON_SHADOW_QUERIES_H
#define RUNTIME_DAEMON_SHADOW_QUERIES_H

#include "base/geometry.h"
#include "runtime/attention-error.h"
#include "runtime/daemon/shadow/budget.h"
#include "runtime/index.h"
#include "shm/protocol.h"

enum { QUERIES_SAMPLED = 8, QUERIES_WAITING_MAX = 256 };

struct query_sample {
	struct query_sample *next; /* those that wait */
	struct budget *budget;
	size_t bytes; /* taken of it */
	struct index_key id;
	uint8_t name_space[16];
	uint32_t n_tokens;                /* of the chunk */
	uint64_t until_ms;                /* how long it waits at most */
	uint32_t picked[QUERIES_SAMPLED]; /* which of the observation's */
	uint8_t *data;
	struct attention_queries queries; /* values: in data */
};

/* Of an observation's queries at these positions (rising), those behind a chunk's last token, which is the
 * one before `end`. draw: any random number. NULL: there are none, or there is no room for one. */
struct query_sample *query_sample_new(struct budget *b, const struct geometry *g,
	const struct wire_observation *head, const uint8_t *positions, uint64_t end, uint64_t draw);
/* On a worker: copies them. data: as it follows the observation's header, positions first. */
void query_sample_fill(struct query_sample *s, const struct geometry *g, const struct wire_observation *head,
	const uint8_t *data);
struct query_sample *query_sample_free(struct query_sample *s);

/* Samples that wait for their chunks. */
struct waiting_queries {
	struct query_sample *first;
	size_t n;
};

/* Takes the sample over; false: too many wait, and it is freed. One that waits for the same chunk goes. */
bool waiting_queries_add(struct waiting_queries *w, struct query_sample *s);
bool waiting_queries_has(const struct waiting_queries *w, const struct index_key *id);
/* Takes one out; NULL: none waits for that chunk. */
struct query_sample *waiting_queries_take(struct waiting_queries *w, const struct index_key *id);
/* Frees those that have waited long enough; UINT64_MAX: all. */
void waiting_queries_expire(struct waiting_queries *w, uint64_t now_ms);
/* Frees a namespace's. */
void waiting_queries_forget(struct waiting_queries *w, const uint8_t name_space[16]);

#endif
