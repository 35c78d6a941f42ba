/*
 * The smallest engine: attaches to a daemon, puts one prompt's KV and gets it back. README.md shows the part
 * between the marks; a test builds and runs all of it.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shm/cistern.h"

enum { LAYERS = 4, HEADS = 2, DIM = 8, BLOCK = 16, BLOCKS = 32, TOKENS = 512, F16 = 2 };

static void check(int r, struct cistern *c, const char *what)
{
	if (r >= 0)
		return;
	fprintf(stderr, "%s: %s\n", what, cistern_error(c));
	exit(EXIT_FAILURE);
}

int main(void)
{
	const size_t token = HEADS * DIM * F16, plane = (size_t)BLOCKS * BLOCK * token;
	const float inv_freq[DIM / 2] = {1, 0.1f, 0.01f, 0.001f};
	const struct cistern_plane planes[2] = {
		{.n_heads = HEADS,
			.dim = DIM,
			.dtype = CISTERN_F16,
			.rope_kind = CISTERN_ROPE_HALF,
			.rope_dim = DIM,
			.inv_freq = inv_freq},
		{.n_heads = HEADS, .dim = DIM, .dtype = CISTERN_F16},
	};
	struct cistern_layout layouts[LAYERS * 2];
	struct cistern_completion done;
	uint32_t tokens[TOKENS], blocks[BLOCKS];

	for (uint32_t i = 0; i < LAYERS * 2; i++)
		layouts[i] = (struct cistern_layout){.base = i * plane,
			.block_stride = BLOCK * token,
			.token_stride = token,
			.head_stride = DIM * F16};
	for (uint32_t i = 0; i < TOKENS; i++)
		tokens[i] = i * 7;
	for (uint32_t i = 0; i < BLOCKS; i++)
		blocks[i] = i;

	/* 8< */
	struct cistern *c;
	struct cistern_model model = {
		.name = "my-model", .n_layers = LAYERS, .n_planes = 2, .planes = planes};
	struct cistern_memory memory = {.block_tokens = BLOCK, .n_blocks = BLOCKS, .layouts = layouts};
	struct cistern_key root, keys[TOKENS];
	void *kv; /* the paged cache: the engine computes into it, the daemon reads and writes it */

	check(cistern_connect(NULL, &c), NULL, "connect");
	check(cistern_register_model(c, &model, &memory.model_id), c, "model");
	memory.size_bytes = LAYERS * 2 * plane;
	check(cistern_memory_create("kv", memory.size_bytes, &memory.fd, &kv), c, "memory");
	struct cistern_run run = {.n_tokens = TOKENS, .keys = keys, .blocks = blocks, .n_blocks = BLOCKS};
	check(cistern_register_memory(c, &memory, &run.memory_id), c, "memory");

	cistern_key_root(NULL, 0, &root);
	run.n_chunks = (uint32_t)cistern_key_chain(&root, tokens, TOKENS, cistern_chunk_tokens(c), keys);
	check(cistern_lookup(c, memory.model_id, keys, run.n_chunks, 1), c, "lookup");
	check(cistern_wait(c, &done, 1, 1000), c, "wait"); /* done.n_chunks: how many are cached */
	memset(kv, 0x2a, memory.size_bytes);               /* ... compute what is not ... */
	check(cistern_put(c, &run, NULL, 2), c, "put");
	check(cistern_wait(c, &done, 1, 1000), c, "wait");
	check(cistern_get(c, &run, 3), c, "get"); /* later, or in another process */
	check(cistern_wait(c, &done, 1, 1000), c, "wait");
	/* >8 */
	printf("%u chunks put and got, status %d\n", done.n_chunks, done.status);
	cistern_close(c);
	return done.status || done.n_chunks != 2;
}
