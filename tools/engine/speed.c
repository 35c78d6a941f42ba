/* cistern-engine speed: how fast the forward pass is, for judging what a restored cache saves. */
#include "tools/engine/engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/engine/vector.h"

enum { ROUNDS = 5 };

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Median over the rounds of one pass over n tokens, ending at length. */
static int measure(struct engine *e, const struct kv_table *table, const uint32_t *tokens, uint32_t length,
	uint32_t n, float *logits, double *median_ms)
{
	double ms[ROUNDS];
	int r = 0;

	for (int i = 0; i < ROUNDS && r == 0; i++) {
		double start = engine_now_ms();

		r = forward_run(e->forward, &(struct forward_request){
						    .cache = e->cache,
						    .table = table,
						    .tokens = tokens + length - n,
						    .n_tokens = n,
						    .position = length - n,
						    .n_collect = 1,
						    .logits = logits,
					    });
		ms[i] = engine_now_ms() - start;
	}
	qsort(ms, ROUNDS, sizeof *ms, by_size);
	*median_ms = ms[ROUNDS / 2];
	return r;
}

int engine_speed(const struct options *o)
{
	struct kv_table table = {0};
	double prefill_ms = 0, decode_ms = 0;
	struct engine e;
	uint32_t *tokens;
	float *logits;
	int r = engine_open(o, 1, false, &e);

	if (r < 0)
		return r;
	tokens = calloc(o->length, sizeof *tokens);
	logits = calloc(e.model->vocab, sizeof *logits);
	r = tokens && logits ? kv_table_new(e.cache, o->length, &table) : -ENOMEM;
	for (uint32_t i = 0; r == 0 && i < o->length; i++)
		tokens[i] = i ? 'a' + i * i % 26 : TEXT_BOS;
	if (r == 0)
		r = measure(&e, &table, tokens, o->length, o->length, logits, &prefill_ms);
	if (r == 0)
		r = measure(&e, &table, tokens, o->length, 1, logits, &decode_ms);
	if (r == 0)
		printf("{\"length\":%u,\"prefill_ms\":%.2f,\"prefill_tokens_per_s\":%.0f,\"decode_ms\":%.3f,"
		       "\"vectors\":\"%s\"}\n",
			o->length, prefill_ms, o->length / prefill_ms * 1e3, decode_ms, vector_ops()->name);
	else
		fprintf(stderr, "cistern-engine: no pass over %u tokens: %s\n", o->length, strerror(-r));
	kv_table_free(e.cache, &table);
	free(tokens);
	free(logits);
	engine_close(&e);
	return r;
}
