#include "tools/engine/remote.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TIMEOUT_MS = 60000 };

struct remote {
	struct cistern *connection;
	uint32_t model_id;
	uint32_t memory_id;
	uint64_t n_requests; /* numbers them */
	char error[256];
};

static int failed(struct remote *r, const char *what, int code)
{
	const char *detail = cistern_error(r->connection);

	snprintf(r->error, sizeof r->error, "%s: %s%s%s", what, strerror(-code), *detail ? ": " : "", detail);
	return code;
}

int remote_open(const char *socket_path, const char *name_space, const struct model *m,
	const struct kv_cache *cache, struct remote **out, char *why, size_t why_len)
{
	const struct cistern_options options = {.socket_path = socket_path, .name_space = name_space};
	struct cistern_plane planes[2];
	struct cistern_model model;
	struct cistern_memory memory;
	struct remote *r = calloc(1, sizeof *r);
	int e;

	if (!r) {
		snprintf(why, why_len, "out of memory");
		return -ENOMEM;
	}
	e = cistern_connect(&options, &r->connection);
	if (e < 0) {
		snprintf(why, why_len, "cannot connect: %s", cistern_error(NULL));
		free(r);
		return e;
	}
	model_describe(m, planes, &model);
	e = cistern_register_model(r->connection, &model, &r->model_id);
	if (e == 0) {
		kv_cache_describe(cache, r->model_id, &memory);
		e = cistern_register_memory(r->connection, &memory, &r->memory_id);
	}
	if (e < 0) {
		failed(r, "cannot register", e);
		snprintf(why, why_len, "%s", r->error);
		remote_close(r);
		return e;
	}
	*out = r;
	return 0;
}

struct remote *remote_close(struct remote *r)
{
	if (r) {
		cistern_close(r->connection);
		free(r);
	}
	return NULL;
}

const char *remote_error(const struct remote *r)
{
	return r->error;
}

uint32_t remote_chunk_tokens(const struct remote *r)
{
	return cistern_chunk_tokens(r->connection);
}

/* Waits for the end of the request just queued. A completion of an earlier one that had timed out is passed
 * over. */
static int finish(struct remote *r, const char *what, int queued, struct outcome *out)
{
	struct cistern_completion done;
	int n;

	if (queued < 0)
		return failed(r, what, queued);
	do {
		n = cistern_wait(r->connection, &done, 1, TIMEOUT_MS);
		if (n == -EINTR)
			continue;
		if (n < 0)
			return failed(r, what, n);
		if (n == 0)
			return failed(r, what, -ETIMEDOUT);
	} while (n < 0 || done.user_data != r->n_requests || (done.flags & CISTERN_MORE));
	if (done.status < 0)
		return failed(r, what, done.status);
	if (out)
		*out = (struct outcome){done.n_chunks, done.bytes};
	return 0;
}

/* The chain of the whole sequence, malloc'd. */
static struct cistern_key *keys_of(
	const struct remote *r, const uint32_t *tokens, uint32_t n_tokens, uint32_t *n_chunks)
{
	uint32_t chunk = remote_chunk_tokens(r);
	uint32_t n = n_tokens / chunk + (n_tokens % chunk != 0);
	struct cistern_key *keys = calloc(n ? n : 1, sizeof *keys);
	struct cistern_key root;

	if (keys) {
		cistern_key_root(NULL, 0, &root);
		*n_chunks = (uint32_t)cistern_key_chain(&root, tokens, n_tokens, chunk, keys);
	}
	return keys;
}

static int run_describe(const struct remote *r, const struct kv_table *table, const uint32_t *tokens,
	uint32_t n_tokens, struct cistern_key **keys, struct cistern_run *out)
{
	uint32_t n_blocks = (n_tokens + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;

	if (n_blocks > table->n_blocks || n_tokens == 0)
		return -EINVAL;
	*out = (struct cistern_run){
		.memory_id = r->memory_id,
		.n_tokens = n_tokens,
		.n_blocks = n_blocks,
		.blocks = table->blocks,
	};
	*keys = keys_of(r, tokens, n_tokens, &out->n_chunks);
	out->keys = *keys;
	return *keys ? 0 : -ENOMEM;
}

int remote_put(struct remote *r, const struct kv_table *table, const uint32_t *tokens, uint32_t n_tokens,
	struct outcome *out)
{
	struct cistern_key *keys = NULL;
	struct cistern_run run;
	int e = run_describe(r, table, tokens, n_tokens, &keys, &run);

	if (e == 0)
		e = cistern_put(r->connection, &run, NULL, ++r->n_requests);
	free(keys);
	return finish(r, "put", e, out);
}

int remote_observe(struct remote *r, const struct kv_table *table, const uint32_t *tokens, uint32_t n_tokens,
	const struct model *m, const uint32_t *positions, uint32_t n_queries, const uint16_t *values,
	struct outcome *out)
{
	const struct cistern_observation observation = {.kind = CISTERN_QUERIES,
		.n_queries = n_queries,
		.n_heads = m->n_heads,
		.n_layers = m->n_layers,
		.positions = positions,
		.values = values};
	struct cistern_key *keys = NULL;
	struct cistern_run run;
	int e = run_describe(r, table, tokens, n_tokens, &keys, &run);

	if (e == 0)
		e = cistern_observe(r->connection, &run, &observation, ++r->n_requests);
	free(keys);
	return finish(r, "observe", e, out);
}

int remote_lookup(struct remote *r, const uint32_t *tokens, uint32_t n_tokens, struct outcome *out)
{
	uint32_t n_chunks = 0;
	struct cistern_key *keys = keys_of(r, tokens, n_tokens, &n_chunks);
	int e = keys ? cistern_lookup(r->connection, r->model_id, keys, n_chunks, ++r->n_requests) : -ENOMEM;

	free(keys);
	return finish(r, "lookup", e, out);
}

int remote_get(struct remote *r, const struct kv_table *table, const uint32_t *tokens, uint32_t n_tokens,
	struct outcome *out)
{
	struct cistern_key *keys = NULL;
	struct cistern_run run;
	int e = run_describe(r, table, tokens, n_tokens, &keys, &run);

	if (e == 0)
		e = cistern_get(r->connection, &run, ++r->n_requests);
	free(keys);
	return finish(r, "get", e, out);
}

int remote_sync(struct remote *r)
{
	return finish(r, "sync", cistern_sync(r->connection, ++r->n_requests), NULL);
}
