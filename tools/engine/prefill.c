/* cistern-engine prefill: computes prompts and leaves their keys and values with the daemon. */
#include "tools/engine/engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "tools/engine/vector.h"

/* One line to stdout; steals the object. */
static int print(json_t *object)
{
	int r = object && json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(7)) == 0 ? 0 : -EIO;

	json_decref(object);
	putchar('\n');
	return r == 0 && fflush(stdout) == 0 ? 0 : -EIO;
}

/* Every sixteenth query of each chunk of a prompt, up to its last one. */
enum { SHOWN_EVERY = 16 };

struct shown {
	uint32_t n;
	uint32_t *positions; /* [n] */
	float *one;          /* [n_layers, FORWARD_CHUNK, n_heads * head_dim], all of a chunk */
	uint16_t *values;    /* [n_layers, n, n_heads * head_dim], f16 */
};

static int shown_new(const struct model *m, uint32_t n_tokens, struct shown *s)
{
	const size_t width = (size_t)m->n_heads * m->head_dim;

	*s = (struct shown){0};
	for (uint32_t t = 0; t < n_tokens; t += FORWARD_CHUNK) {
		const uint32_t in_chunk = n_tokens - t < FORWARD_CHUNK ? n_tokens - t : FORWARD_CHUNK;

		s->n += (in_chunk + SHOWN_EVERY - 1) / SHOWN_EVERY;
	}
	s->positions = calloc(s->n + 1, sizeof *s->positions);
	s->one = calloc((size_t)m->n_layers * FORWARD_CHUNK * width, sizeof *s->one);
	s->values = calloc((size_t)m->n_layers * s->n * width, sizeof *s->values);
	return s->positions && s->one && s->values ? 0 : -ENOMEM;
}

static void shown_fini(struct shown *s)
{
	free(s->positions);
	free(s->one);
	free(s->values);
}

/* Computes the prompt a chunk at a time, and picks of each one's queries. */
static int compute_shown(
	struct engine *e, const struct kv_table *table, const struct tokens *t, struct shown *s)
{
	const struct model *m = e->model;
	const size_t width = (size_t)m->n_heads * m->head_dim;
	uint32_t at = 0;
	int r = 0;

	for (uint32_t first = 0; first < t->n && !r; first += FORWARD_CHUNK) {
		const uint32_t left = (uint32_t)t->n - first, n = left < FORWARD_CHUNK ? left : FORWARD_CHUNK;

		r = forward_run(e->forward, &(struct forward_request){.cache = e->cache,
						    .table = table,
						    .tokens = t->list + first,
						    .n_tokens = n,
						    .position = first,
						    .n_collect = n,
						    .queries = s->one});
		for (uint32_t i = (n - 1) % SHOWN_EVERY; i < n; i += SHOWN_EVERY, at++) {
			for (uint32_t l = 0; l < m->n_layers; l++)
				vector_ops()->to_half(s->one + ((size_t)l * n + i) * width, width,
					s->values + ((size_t)l * s->n + at) * width);
			s->positions[at] = first + i;
		}
	}
	return r;
}

static int prefill_prompt(struct engine *e, const struct prompt *p, bool observe)
{
	uint32_t n = (uint32_t)p->tokens.n;
	const struct model *m = e->model;
	struct outcome put;
	struct outcome judged = {0};
	struct shown shown = {0};
	struct kv_table table;
	double start, computed, stored;
	int r = kv_table_new(e->cache, n, &table);

	if (r < 0) {
		fprintf(stderr, "cistern-engine: prompt %s of %u tokens: %s\n", p->id, n, strerror(-r));
		return r;
	}
	start = engine_now_ms();
	if (observe) {
		r = shown_new(m, n, &shown);
		if (r == 0)
			r = compute_shown(e, &table, &p->tokens, &shown);
	} else {
		r = forward_run(e->forward,
			&(struct forward_request){
				.cache = e->cache, .table = &table, .tokens = p->tokens.list, .n_tokens = n});
	}
	computed = engine_now_ms();
	if (r < 0) {
		fprintf(stderr, "cistern-engine: prompt %s is empty, too long or has no such tokens\n",
			p->id);
		goto out;
	}
	if (observe)
		r = remote_observe(e->remote, &table, p->tokens.list, n, m, shown.positions, shown.n,
			shown.values, &judged);
	if (r == 0)
		r = remote_put(e->remote, &table, p->tokens.list, n, &put);
	stored = engine_now_ms();
	if (r < 0) {
		fprintf(stderr, "cistern-engine: prompt %s: %s\n", p->id, remote_error(e->remote));
		goto out;
	}
	r = print(json_pack("{s:o, s:i, s:f, s:f, s:i, s:i, s:I, s:I}", "id",
		json_loads(p->id, JSON_DECODE_ANY, NULL), "tokens", (int)n, "prefill_ms", computed - start,
		"put_ms", stored - computed, "judged_chunks", (int)judged.n_chunks, "kept_chunks",
		(int)put.n_chunks, "stored_bytes", (json_int_t)put.bytes, "original_bytes",
		(json_int_t)n * m->n_layers * m->n_kv_heads * m->head_dim * 4));
out:
	shown_fini(&shown);
	kv_table_free(e->cache, &table);
	return r;
}

int engine_prefill(const struct options *o)
{
	struct engine e;
	double start;
	int r = engine_open(o, 1, true, &e);

	if (r < 0)
		return r;
	for (size_t i = 0; i < e.prompts.n && (!o->limit || i < o->limit) && r == 0; i++)
		r = prefill_prompt(&e, &e.prompts.list[i], o->observe);
	if (r < 0)
		goto out;
	start = engine_now_ms();
	r = remote_sync(e.remote);
	if (r == 0 || r == -ENOTSUP)
		r = print(json_pack("{s:b, s:f}", "synced", r == 0, "sync_ms", engine_now_ms() - start));
	else
		fprintf(stderr, "cistern-engine: %s\n", remote_error(e.remote));
out:
	engine_close(&e);
	return r;
}
