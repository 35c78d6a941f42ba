/*
 * Shadows: chunks that are kept uncompressed beside their frames for a while, as they were when they were
 * put, so that what is restored can be compared with them when queries come. Copies in memory alone: a
 * restart has none.
 *
 * The front thread lends a shadow to the put that was chosen, whose worker fills it; from then on it is read,
 * by one comparison at a time. It goes when its time is up, when it was compared often enough, or when it is
 * dropped; while it is lent or compared it is only marked, and goes when that is done. What there is counts
 * in the budget. Nothing is pushed out for a new one: a chunk that was taken stays its time, and one that
 * finds no room is not taken.
 */
#ifndef RUNTIME_DAEMON_SHADOW_SHADOWS_H
#define RUNTIME_DAEMON_SHADOW_SHADOWS_H

#include "runtime/chunk-copy.h"
#include "runtime/daemon/registry.h"
#include "runtime/daemon/shadow/budget.h"
#include "runtime/index.h"

enum { SHADOWS_MAX = 1024, SHADOW_COMPARISONS = 4 };

enum shadow_state {
	SHADOW_LENT, /* to a put */
	SHADOW_READY,
	SHADOW_COMPARED, /* by the background thread, now */
};

struct query_sample;

struct shadow {
	struct shadow *next; /* the table's */
	struct index_key id;
	uint64_t hash; /* of the id */
	uint8_t name_space[16];
	uint32_t tenant;
	const struct model *model;
	struct chunk_copy *copy;
	struct query_sample *queries; /* that had waited for it; NULL: none */
	size_t bytes;                 /* taken of the budget */
	uint64_t until_ms;
	uint32_t n_left; /* comparisons that it is kept for */
	enum shadow_state state;
	bool dropped; /* goes when its state allows */
};

struct shadows;

/* NULL: out of memory. The budget is borrowed. */
struct shadows *shadows_new(struct budget *b);
/* None may be lent or compared. */
struct shadows *shadows_free(struct shadows *s);

/* A new one, lent. NULL: there is one of that chunk, or no room. */
struct shadow *shadows_lend(struct shadows *s, const struct index_key *id, uint64_t hash,
	const struct model *model, uint32_t n_tokens);
/* On the worker. */
void shadow_fill(struct shadow *shadow, const struct kernels *kernels, const struct codec_chunk *chunk);
/* From the put, filled: it is ready from now on, unless it was dropped meanwhile, when it goes: false. */
bool shadows_take(struct shadows *s, struct shadow *shadow);

/* The chunk's shadow, whatever its state; NULL: none. */
struct shadow *shadows_find(const struct shadows *s, const struct index_key *id, uint64_t hash);
/* A comparison has ended; the shadow may go by it. */
void shadows_compared(struct shadows *s, struct shadow *shadow);

void shadows_drop(struct shadows *s, struct shadow *shadow);
/* Drops all that fn wants. Returns how many. */
size_t shadows_drop_if(struct shadows *s, bool (*fn)(const struct shadow *shadow, void *arg), void *arg);
/* Drops those whose time is up. Returns how many. */
size_t shadows_expire(struct shadows *s, uint64_t now_ms);

size_t shadows_count(const struct shadows *s);

#endif
