/*
 * A codec under test: codes a chunk in place and says what it took. Each is one small file; the bench knows
 * no more of them than this. All get the same chunks, token classes and calibration. Single-threaded.
 */
#ifndef BENCH_RATE_UNDER_TEST_H
#define BENCH_RATE_UNDER_TEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/codec.h"
#include "tools/bench-rate/learning.h"

enum { UNDER_TEST_RUNGS_MAX = 16 };

struct coded_bytes {
	uint64_t coded; /* of coded tokens, with everything that is not of a protected token */
	uint64_t raw;   /* of protected tokens */
};

struct under_test {
	const char *name;
	bool ours; /* a form of Cistern: the summary says how it stands against the others */
	size_t n_rungs;
	double rungs[UNDER_TEST_RUNGS_MAX]; /* what a rung is called: a nominal ratio, or bits for uniform,
					       fp8 */
	/* Replaces the coded tokens of the chunk by what a decoder makes of them; protected ones stay.
	 * -errno. */
	int (*code)(struct under_test *u, size_t rung, const struct codec_chunk *chunk,
		const uint8_t *classes, struct coded_bytes *out);
	void (*free)(struct under_test *u);
};

/* The rates that transform codecs are measured at. */
extern const float under_test_ratios[8];

/* learning outlives the codec. -ENOMEM; -errno of what could not be made. Of learning, under_test_cistern
 * looks at kernels and transform only; without a transform it is the plain codec. */
int under_test_cistern(const struct learning *l, struct under_test **out);
/* The same levels in DEFLATE streams. */
int under_test_cistern_deflate(const struct learning *l, struct under_test **out);
/* With a bound on each token's error (policy.h), as the daemon has it: a token over it is kept bit for bit,
 * and its bytes count as raw. */
int under_test_cistern_bounded(const struct learning *l, double max_error, struct under_test **out);
/* Salient and redundant tokens, by what encoding shows of them, or (CODEC_UNRANKED) by chance. */
struct class_rule {
	enum codec_rank rank;
	double salient_share, redundant_share;
	uint32_t finer, coarser; /* rungs */
};
/* Measured at a few rungs in the middle of the ladder. */
enum { CLASSES_FIRST_RUNG = 4, CLASSES_RUNGS = 2 };
/* -ENOENT: the transform has no such rungs. */
int under_test_cistern_classes(
	const struct learning *l, const struct class_rule *rule, struct under_test **out);
/* What a frame of ours takes, by the rules of struct coded_bytes. -EBADMSG; -ENOMEM. */
int cistern_frame_bytes(const uint8_t *data, size_t len, struct coded_bytes *out);
/* Plain KVTC in Cistern's layer groups. */
int under_test_kvtc(const struct learning *l, struct under_test **out);
/* The same with one budget for keys and values (and all groups), divided where it does most good. Not the
 * paper's: it tells the codec from the division of the budget. */
int under_test_kvtc_pooled(const struct learning *l, struct under_test **out);
/* The same as the first with one group over all layers. -ENOENT: that is what the first is. */
int under_test_kvtc_whole(const struct learning *l, struct under_test **out);
int under_test_uniform(const struct learning *l, struct under_test **out);
int under_test_fp8(const struct learning *l, struct under_test **out);

/* Indices of the chunk's coded tokens into tokens [n_tokens]; returns how many. */
size_t coded_tokens(const struct codec_chunk *chunk, const uint8_t *classes, uint16_t *tokens);

/* Bytes of a body as a raw DEFLATE stream and the four that tell its length: the shorter of the whole DEFLATE
 * at level 9 and Huffman coding alone, or as it is when that is shorter. Negative: -ENOMEM. */
int64_t deflated_bytes(const uint8_t *data, size_t len);

#endif
