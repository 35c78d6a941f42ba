/* The rate bench's results on paper: a table for people, or one JSON object. */
#ifndef BENCH_RATE_REPORT_H
#define BENCH_RATE_REPORT_H

#include <jansson.h>

#include "tools/bench-rate/results/figures.h"

/* A codec at its 16x rung with some protection missing. */
struct unprotected {
	const char *without; /* "nothing", "sinks", "window" */
	struct figures figures;
};

struct rate_results {
	const struct learning *learning;
	const char *const *codecs; /* names of Cistern's variants, for the summaries; NULL-terminated */
	uint32_t sink_tokens, window_tokens;
	uint32_t n_texts, n_recalls;
	uint64_t prompt_tokens,
		text_tokens; /* tokens cached; tokens of texts whose distributions were compared */
	double seconds;
	struct figures *points;
	size_t n_points;
	struct unprotected *unprotected;
	size_t n_unprotected;
};

void rate_table(const struct rate_results *r);
/* NULL when out of memory. */
json_t *rate_json(const struct rate_results *r);

#endif
