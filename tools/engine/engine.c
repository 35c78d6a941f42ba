#include "tools/engine/engine.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

double engine_now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* The first pass pays for page faults and for the BLAS library's own buffers; no timing should. */
static int warm_up(struct engine *e)
{
	uint32_t tokens[FORWARD_CHUNK] = {TEXT_BOS};
	uint32_t n = e->model->context < FORWARD_CHUNK ? e->model->context : FORWARD_CHUNK;
	struct kv_table table;
	int r = kv_table_new(e->cache, e->cache->n_blocks * KV_BLOCK_TOKENS, &table);

	if (r == 0) {
		struct forward_request request = {
			.cache = e->cache, .table = &table, .tokens = tokens, .n_tokens = n};

		r = forward_run(e->forward, &request);
		request.position = e->model->context - n;
		if (r == 0)
			r = forward_run(e->forward, &request);
		kv_table_free(e->cache, &table);
	}
	return r;
}

static int memory_open(const struct options *o, uint32_t n_sequences, struct engine *e)
{
	uint32_t n_tokens = n_sequences * (e->model->context + KV_BLOCK_TOKENS);
	int r = forward_new(e->model, &e->forward);

	if (r == 0)
		r = kv_cache_new(e->model, n_tokens, o->order, o->seed, &e->cache);
	if (r == 0)
		r = warm_up(e);
	if (r < 0)
		fprintf(stderr, "cistern-engine: no cache for %u tokens: %s\n", n_tokens, strerror(-r));
	return r;
}

int engine_open(const struct options *o, uint32_t n_sequences, bool connect, struct engine *out)
{
	struct engine e = {0};
	char why[512] = "";
	int r = model_load(o->model, &e.model, why, sizeof why);

	if (r == 0 && o->prompts)
		r = prompts_read(o->prompts, &e.prompts, why, sizeof why);
	if (r < 0)
		fprintf(stderr, "cistern-engine: %s\n", why);
	if (r == 0)
		r = memory_open(o, n_sequences, &e);
	if (r == 0 && connect) {
		r = remote_open(o->socket, o->name_space, e.model, e.cache, &e.remote, why, sizeof why);
		if (r < 0)
			fprintf(stderr, "cistern-engine: %s\n", why);
	}
	if (r < 0) {
		engine_close(&e);
		return r;
	}
	*out = e;
	return 0;
}

void engine_close(struct engine *e)
{
	remote_close(e->remote);
	kv_cache_free(e->cache);
	forward_free(e->forward);
	prompts_fini(&e->prompts);
	model_free(e->model);
	*e = (struct engine){0};
}
