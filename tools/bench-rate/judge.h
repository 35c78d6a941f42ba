/*
 * The judge: a model, held-out prompts with what follows them, and the same treatment for every codec. A
 * prompt is computed once; each codec then codes a copy of its cache, chunk by chunk, and what follows is
 * computed over the copy and compared (tools/engine/evaluate.h). Single-threaded, one owner.
 */
#ifndef BENCH_RATE_JUDGE_H
#define BENCH_RATE_JUDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "policy/policy.h"
#include "tools/bench-rate/codecs/under-test.h"
#include "tools/engine/evaluate.h"

/* How many coded tokens had which relative L2 error, in steps of 2%; index 0: 1e-4 and less. */
enum { ERROR_BINS = 560 };

struct error_histogram {
	uint32_t count[ERROR_BINS];
};

/* Sums over the prompts judged so far, of one codec at one rung under one policy. */
struct measurement {
	uint64_t coded_tokens, raw_tokens;
	struct coded_bytes bytes;
	double error[GEOMETRY_PLANES_MAX]; /* squared, of coded tokens */
	double power[GEOMETRY_PLANES_MAX];
	struct error_histogram histogram[GEOMETRY_PLANES_MAX];
	struct evaluation texts;   /* prompts that go on with more of their text */
	struct evaluation recalls; /* prompts with records, and questions for them */
};

/* The error that a share q of the tokens stays within, to 2%. */
double error_quantile(const struct error_histogram *h, double q);

struct judge;

struct judge_options {
	const char *model;   /* folder */
	const char *prompts; /* .jsonl, tools/engine/text.h */
};

/* -errno, with a sentence on stderr. */
int judge_new(const struct judge_options *o, struct judge **out);
struct judge *judge_free(struct judge *j);

size_t judge_n_prompts(const struct judge *j);
uint64_t judge_n_tokens(const struct judge *j); /* over all prompts */

/* Computes prompt i with what follows it, in place of the one before. -errno. */
int judge_prompt(struct judge *j, size_t i);

/* Codes a copy of the prompt's cache under the policy, and adds what came of it. -errno. */
int judge_measure(struct judge *j, const struct geometry *g, const struct policy *policy,
	struct under_test *u, size_t rung, struct measurement *m);

/* Each chunk of the prompt as computed, with its classes under the policy. */
int judge_for_each_chunk(struct judge *j, const struct geometry *g, const struct policy *policy,
	int (*each)(void *arg, const struct codec_chunk *chunk, const uint8_t *classes), void *arg);

#endif
