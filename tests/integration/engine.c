#include "tests/integration/engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/formula.h"

void must(bool holds, const char *what, long value)
{
	if (holds)
		return;
	fprintf(stderr, "not so: %s (%ld)\n", what, value);
	_exit(99);
}

/* A value between -2 and 2 that depends on everything; smooth enough over features for any codec. */
static uint16_t true_value(
	uint32_t sequence, uint32_t layer, uint32_t plane, uint32_t token, uint32_t feature)
{
	uint64_t x = ((uint64_t)sequence << 40) ^ ((uint64_t)layer << 34) ^ ((uint64_t)plane << 32) ^
		     ((uint64_t)token << 12) ^ feature;

	x = (x ^ (x >> 31)) * 0x9E3779B97F4A7C15u;
	x = (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9u;
	return f16_from_f32((float)(x >> 40) / 4194304.0f - 2.0f);
}

uint16_t *engine_token(const struct engine *e, uint32_t layer, uint32_t plane, uint32_t token)
{
	const size_t layer_elements = (size_t)E_BLOCKS * E_BLOCK * E_WIDTH;

	return e->kv + (layer * 2 + plane) * layer_elements +
	       ((size_t)e->blocks[token / E_BLOCK] * E_BLOCK + token % E_BLOCK) * E_WIDTH;
}

void engine_describe(struct cistern_model *model, struct cistern_plane planes[2], float *inv_freq,
	struct cistern_layout layouts[E_LAYERS * 2])
{
	const uint64_t layer_bytes = (uint64_t)E_BLOCKS * E_BLOCK * E_WIDTH * 2;

	for (int i = 0; i < E_DIM / 2; i++)
		inv_freq[i] = powf(10000, -2.0f * (float)i / E_DIM);
	for (int i = 0; i < 2; i++)
		planes[i] = (struct cistern_plane){.n_heads = E_HEADS, .dim = E_DIM, .dtype = CISTERN_F16};
	planes[0].rope_kind = CISTERN_ROPE_HALF;
	planes[0].rope_dim = E_DIM;
	planes[0].inv_freq = inv_freq;
	*model = (struct cistern_model){
		.name = "test-engine", .n_layers = E_LAYERS, .n_planes = 2, .planes = planes};
	for (uint32_t i = 0; i < E_LAYERS * 2; i++)
		layouts[i] = (struct cistern_layout){.base = i * layer_bytes,
			.block_stride = E_BLOCK * E_WIDTH * 2,
			.token_stride = E_WIDTH * 2,
			.head_stride = E_DIM * 2};
}

void engine_open(struct engine *e, const char *socket, uint32_t order)
{
	const struct cistern_options options = {.socket_path = socket};
	struct cistern_layout layouts[E_LAYERS * 2];
	struct cistern_plane planes[2];
	struct cistern_model model;
	float inv_freq[E_DIM / 2];
	struct cistern_memory memory = {.block_tokens = E_BLOCK, .n_blocks = E_BLOCKS, .layouts = layouts};
	void *addr;

	*e = (struct engine){.size_bytes = (size_t)E_LAYERS * 2 * E_BLOCKS * E_BLOCK * E_WIDTH * 2};
	for (uint32_t i = 0; i < E_BLOCKS; i++)
		e->blocks[i] = (i * 37 + order * 11) % E_BLOCKS;
	MUST_EQUAL(cistern_memory_create("kv", e->size_bytes, &e->fd, &addr), 0);
	e->kv = addr;
	MUST_EQUAL(cistern_connect(&options, &e->c), 0);
	MUST_EQUAL(cistern_chunk_tokens(e->c), E_CHUNK);
	engine_describe(&model, planes, inv_freq, layouts);
	MUST_EQUAL(cistern_register_model(e->c, &model, &e->model_id), 0);
	memory.model_id = e->model_id;
	memory.fd = e->fd;
	memory.size_bytes = e->size_bytes;
	MUST_EQUAL(cistern_register_memory(e->c, &memory, &e->memory_id), 0);
}

void engine_close(struct engine *e)
{
	cistern_close(e->c);
	munmap(e->kv, e->size_bytes);
	close(e->fd);
}

void engine_keys(struct engine *e, uint32_t sequence, uint32_t n_tokens)
{
	uint32_t tokens[E_TOKENS_MAX];
	struct cistern_key root;

	for (uint32_t t = 0; t < n_tokens; t++)
		tokens[t] = sequence * 1000003 + t;
	cistern_key_root(NULL, 0, &root);
	MUST_EQUAL(cistern_key_chain(&root, tokens, n_tokens, E_CHUNK, e->keys),
		(n_tokens + E_CHUNK - 1) / E_CHUNK);
}

void engine_prefill(struct engine *e, uint32_t sequence, uint32_t n_tokens)
{
	engine_keys(e, sequence, n_tokens);
	for (uint32_t l = 0; l < E_LAYERS; l++)
		for (uint32_t p = 0; p < 2; p++)
			for (uint32_t t = 0; t < n_tokens; t++)
				for (uint32_t f = 0; f < E_WIDTH; f++)
					engine_token(e, l, p, t)[f] = true_value(sequence, l, p, t, f);
}

void engine_wipe(struct engine *e)
{
	memset(e->kv, 0x55, e->size_bytes);
}

bool engine_is_wiped(const struct engine *e, uint32_t token)
{
	for (uint32_t l = 0; l < E_LAYERS; l++)
		for (uint32_t p = 0; p < 2; p++)
			for (uint32_t f = 0; f < E_WIDTH; f++)
				if (engine_token(e, l, p, token)[f] != 0x5555)
					return false;
	return true;
}

double engine_error(const struct engine *e, uint32_t sequence, uint32_t first, uint32_t end)
{
	double worst = 0;

	for (uint32_t t = first; t < end; t++)
		for (uint32_t p = 0; p < 2; p++) {
			double error = 0, norm = 0;

			for (uint32_t l = 0; l < E_LAYERS; l++)
				for (uint32_t f = 0; f < E_WIDTH; f++) {
					const double x = (double)f16_to_f32(true_value(sequence, l, p, t, f));
					const double d = (double)f16_to_f32(engine_token(e, l, p, t)[f]) - x;

					error += d * d;
					norm += x * x;
				}
			worst = fmax(worst, sqrt(error / norm));
		}
	return worst;
}

struct cistern_completion engine_wait(struct engine *e, int queued)
{
	struct cistern_completion done = {.status = queued};

	if (queued)
		return done;
	do
		MUST_EQUAL(cistern_wait(e->c, &done, 1, 20000), 1);
	while (done.flags & CISTERN_MORE);
	return done;
}

static struct cistern_run run_of(const struct engine *e, uint32_t n_tokens)
{
	return (struct cistern_run){.memory_id = e->memory_id,
		.n_tokens = n_tokens,
		.keys = e->keys,
		.n_chunks = (n_tokens + E_CHUNK - 1) / E_CHUNK,
		.n_blocks = (n_tokens + E_BLOCK - 1) / E_BLOCK,
		.blocks = e->blocks};
}

struct cistern_completion engine_put(struct engine *e, uint32_t n_tokens)
{
	const struct cistern_run run = run_of(e, n_tokens);

	return engine_wait(e, cistern_put(e->c, &run, NULL, 7));
}

struct cistern_completion engine_get(struct engine *e, uint32_t n_tokens, uint32_t flags)
{
	struct cistern_run run = run_of(e, n_tokens);

	run.flags = flags;
	return engine_wait(e, cistern_get(e->c, &run, 8));
}

uint32_t engine_lookup(struct engine *e, uint32_t n_tokens)
{
	const struct cistern_completion done = engine_wait(
		e, cistern_lookup(e->c, e->model_id, e->keys, (n_tokens + E_CHUNK - 1) / E_CHUNK, 9));

	MUST_EQUAL(done.status, 0);
	return done.n_chunks;
}
