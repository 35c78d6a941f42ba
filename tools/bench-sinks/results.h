/* What cistern bench sinks found, as one JSON object, and as text from that. */
#ifndef BENCH_SINKS_RESULTS_H
#define BENCH_SINKS_RESULTS_H

#include <jansson.h>

#include "tools/bench-sinks/worth.h"

/* One construction over all its sequences. */
struct construction_result {
	const struct construction *construction;
	uint32_t n_sequences;
	double *attention; /* [n_attention]: what each planted token gets of what follows */
	size_t n_attention;
	struct search_tally tally[WAYS];
	struct worth worth;
};

struct sinks_results {
	const struct search *search;
	uint32_t n_learned_from; /* sequences */
	const char *const *codecs;
	size_t n_codecs;
	bool one_rung;
	const struct construction_result *constructions;
	size_t n_constructions;
	const struct search_tally *text; /* [WAYS]: of sequences whose caches are as computed */
	const uint32_t *by_head;         /* [n_layers * n_heads], of the same */
	uint32_t n_layers, n_heads;
	double search_us,
		encode_us; /* medians of what a chunk takes of the thread; encode_us 0: not measured */
};

/* A new reference; NULL: out of memory. */
json_t *sinks_results_json(const struct sinks_results *r);
void sinks_results_print(const json_t *results);

#endif
