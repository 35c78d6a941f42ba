/*
 * The search for sinks as the daemon does it, in this process: detectors that learned from one text decide
 * over sequences of another, and the decisions are counted against what is true. One thread, one owner.
 */
#ifndef BENCH_SINKS_SEARCH_H
#define BENCH_SINKS_SEARCH_H

#include "policy/policy.h"
#include "runtime/detection.h"
#include "tools/bench-sinks/sequence.h"

/* Ways to protect tokens. */
enum way {
	WAY_NOTHING,
	WAY_FIRST,         /* the first positions */
	WAY_AS_MANY,       /* as many tokens as WAY_LEARNED finds, but the first ones */
	WAY_COLD,          /* from keys and values alone, no attention was ever seen of this model */
	WAY_LEARNED,       /* from keys and values alone, with what attention taught on other text */
	WAY_OBSERVED,      /* some queries of each chunk were shown, at equal distances */
	WAY_OBSERVED_LAST, /* the last ones of each chunk were shown */
	WAY_ORACLE,        /* the first positions, and the sinks there are: TRUTH_HALF and what was planted */
	WAYS
};
const char *way_name(enum way way);
/* Whether there is a score to it. */
static inline bool way_is_search(enum way way)
{
	return way >= WAY_COLD && way <= WAY_OBSERVED_LAST;
}

/* Decisions of one way over all sequences counted, against one reading of the truth. */
struct search_count {
	uint64_t n_sinks, n_found, n_others, n_mistaken;
};

struct search_tally {
	struct search_count as_decided[TRUTH_READINGS];
	uint64_t n_planted, n_planted_found, n_protected;
	/* Of every token judged: its score, and its marks, TRUTH_READINGS each. */
	size_t n;
	float *scores;
	uint8_t *marks;
	uint8_t *planted;
};

struct search {
	struct policy policy; /* whose rules hold */
	uint32_t n_shown;
	struct detection *detection;
	struct sinks_detector *cold, *learned;
	double *search_ns; /* [n_search], of a chunk, on this thread */
	size_t n_search, n_search_max;
};

/* Learns from n sequences of the text, every second one with separators. Of the policy, the fields of the
 * search hold. n_shown: queries of a chunk that an engine shows, a divisor of FORWARD_CHUNK. -errno. */
int search_new(struct sequence *s, const struct tokens *text, uint32_t n, const struct policy *policy,
	uint32_t n_shown, struct search **out);
struct search *search_free(struct search *f);

/* Classes of the prompt's tokens under each way, and scores (of the ways that are a search; above 0 is a
 * sink): [WAYS][SEQUENCE_PROMPT]. -errno. */
struct search_decisions {
	uint8_t classes[WAYS][SEQUENCE_PROMPT];
	float scores[WAYS][SEQUENCE_PROMPT];
};
int search_decide(struct search *f, struct sequence *s, struct search_decisions *out);

/* -ENOMEM */
int search_count(
	const struct sequence *s, const struct search_decisions *d, enum way way, struct search_tally *tally);
void search_tally_fini(struct search_tally *t);

/* Of the sinks, the share whose score is above all but a share `mistaken` of the others'. NAN: there are
 * none. */
double search_recall_at(const struct search_tally *t, enum truth_reading reading, double mistaken);
/* The same of what was planted, against all other tokens. */
double search_planted_at(const struct search_tally *t, double mistaken);

#endif
