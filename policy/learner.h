/*
 * When to learn: what a daemon that learns transforms from its own traffic decides about one model. It is
 * told, in tokens, of every chunk, sample and version, and says which chunks to sample, when to learn, and
 * when what comes in has become something else than what was learned from. No numbers of the codec, no clock,
 * no I/O; plain data with one owner.
 *
 *     collecting -- enough tokens --> learning --> collecting, for a version from four times as many tokens
 *         ^                                   \--> watching, when the last version had enough
 *         '-- what the transform captures of the energy of new chunks has fallen --'
 *
 * Captured energy: of the centred energy of fresh tokens, the part that lies in the components that the rung
 * in use codes. The first window of tokens after a version was published says how much that is when nothing
 * has changed.
 */
#ifndef POLICY_LEARNER_H
#define POLICY_LEARNER_H

#include <stdbool.h>
#include <stdint.h>

enum {
	LEARNER_GROWTH = 4,           /* a next version rests on so many times as many tokens, */
	LEARNER_ENOUGH = 16,          /* up to so many times first_tokens */
	LEARNER_WATCH_EVERY = 8,      /* chunks, of which one is sampled while watching */
	LEARNER_WINDOW_TOKENS = 2048, /* that captured energy is measured over */
};

enum learner_state { LEARNER_COLLECTING, LEARNER_LEARNING, LEARNER_WATCHING };

struct learner_options {
	uint64_t first_tokens; /* that the first version rests on; at least 1 */
	double drift;          /* fall of the captured energy that makes it learn again; 0 to 1 */
};

struct learner {
	struct learner_options options;
	enum learner_state state;
	bool has_version; /* there is a transform, learned or given */
	bool blocked;     /* enough to learn from, and no room for another version */
	bool fades;       /* see learner_fade */
	uint64_t n_seen;  /* tokens of all chunks */
	uint64_t n_taken; /* tokens that the next version would rest on */
	uint64_t learn_at, enough;
	uint64_t n_offered;            /* chunks while watching */
	double inside, total;          /* energy, of the window that is being filled */
	uint64_t n_window;             /* tokens in it */
	double baseline, captured;     /* of the first and the last full window; negative: none yet */
	uint32_t n_learned, n_drifted; /* times */
};

/* n_rested: tokens that the transform in use was learned from; 0: there is none; UINT64_MAX: it was given by
 * the operator, and is not replaced while it fits. */
void learner_init(struct learner *l, const struct learner_options *options, uint64_t n_rested);

/* A chunk with so many tokens to be coded comes in. Whether it is to be sampled. */
bool learner_offer(struct learner *l, uint32_t n_tokens);
/* A sample was taken in: its tokens, and where there is a transform their centred energy and what of it that
 * captures. */
void learner_take(struct learner *l, uint32_t n_tokens, double inside, double total);

/* Whether to forget now: what was taken is to count as no more than the returned number of tokens. 0: no.
 * Says so once. */
uint64_t learner_fade(struct learner *l);
/* Whether to learn now; if so, it is learning until learner_learned. room: there may be another version. */
bool learner_begin(struct learner *l, bool room);
/* It has ended; published: with a version that is in use from here on. */
void learner_learned(struct learner *l, bool published);

#endif
