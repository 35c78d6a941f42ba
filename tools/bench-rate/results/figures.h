/*
 * From sums to the figures that are reported, and from those to the few lines that answer the question: how
 * much better, at the same loss. Pure.
 */
#ifndef BENCH_RATE_FIGURES_H
#define BENCH_RATE_FIGURES_H

#include <stdbool.h>
#include <stddef.h>

#include "tools/bench-rate/results/bound.h"
#include "tools/bench-rate/judge.h"

/* A codec at a rung. */
struct figures {
	const char *codec;
	double rung;
	double ratio_coded, ratio_total;       /* 16-bit source over what was stored; coded tokens, and all */
	double error[GEOMETRY_PLANES_MAX];     /* relative L2, of coded tokens */
	double error_p99[GEOMETRY_PLANES_MAX]; /* which one token in a hundred exceeds */
	double attn_error;                     /* relative L2 of attention outputs over real queries, texts */
	double attn_error_recall;              /* the same over recall prompts' questions and answers */
	uint32_t n_layers;
	double attn_error_layers[EVALUATE_LAYERS_MAX]; /* texts, each layer alone */
	double kl;                                     /* nats a token, original || restored, texts */
	double kl_recall;                   /* the same over the answers to questions for records */
	double nll_original, nll_delta_pct; /* next-token loss of texts, nats, and its change */
	double recall, recall_original;     /* share of records recalled to the last character */
	double bits_per_value;              /* of coded tokens */
	double bound_bits_per_value;        /* the least, by bound.h, at the same error of each plane */
};

void figures_of(const struct under_test *u, size_t rung, const struct measurement *m, const struct bound *b,
	struct figures *out);

/* A line of the summary. */
struct answer {
	const char *key, *text;
	double value;  /* NAN: the curves do not reach there */
	double goal;   /* NAN: none, for information */
	bool at_least; /* goal is a lower bound; otherwise an upper one */
};

enum { ANSWERS_MAX = 16 };

/* How the codec called `codec` stands against kvtc and uniform among the points; returns how many. */
size_t answers_of(
	const struct figures *points, size_t n, const char *codec, struct answer answers[ANSWERS_MAX]);
bool answer_met(const struct answer *a);

#endif
