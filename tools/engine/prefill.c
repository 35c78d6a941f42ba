/* cistern-engine prefill: computes prompts and leaves their keys and values with the daemon. */
#include "tools/engine/engine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

/* One line to stdout; steals the object. */
static int print(json_t *object)
{
	int r = object && json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(7)) == 0 ? 0 : -EIO;

	json_decref(object);
	putchar('\n');
	return r == 0 && fflush(stdout) == 0 ? 0 : -EIO;
}

static int prefill_prompt(struct engine *e, const struct prompt *p)
{
	uint32_t n = (uint32_t)p->tokens.n;
	const struct model *m = e->model;
	struct outcome put;
	struct kv_table table;
	double start, computed, stored;
	int r = kv_table_new(e->cache, n, &table);

	if (r < 0) {
		fprintf(stderr, "cistern-engine: prompt %s of %u tokens: %s\n", p->id, n, strerror(-r));
		return r;
	}
	start = engine_now_ms();
	r = forward_run(e->forward,
		&(struct forward_request){
			.cache = e->cache, .table = &table, .tokens = p->tokens.list, .n_tokens = n});
	computed = engine_now_ms();
	if (r < 0) {
		fprintf(stderr, "cistern-engine: prompt %s is empty, too long or has no such tokens\n",
			p->id);
		goto out;
	}
	r = remote_put(e->remote, &table, p->tokens.list, n, &put);
	stored = engine_now_ms();
	if (r < 0) {
		fprintf(stderr, "cistern-engine: prompt %s: %s\n", p->id, remote_error(e->remote));
		goto out;
	}
	r = print(json_pack("{s:o, s:i, s:f, s:f, s:i, s:I, s:I}", "id",
		json_loads(p->id, JSON_DECODE_ANY, NULL), "tokens", (int)n, "prefill_ms", computed - start,
		"put_ms", stored - computed, "kept_chunks", (int)put.n_chunks, "stored_bytes",
		(json_int_t)put.bytes, "original_bytes",
		(json_int_t)n * m->n_layers * m->n_kv_heads * m->head_dim * 4));
out:
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
		r = prefill_prompt(&e, &e.prompts.list[i]);
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
