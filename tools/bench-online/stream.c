#include "tools/bench-online/stream.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shm/cistern.h"

enum { BLOCK_TOKENS = 16, TIMEOUT_MS = 60000 };

struct stream {
	const char *bench;
	struct cistern *c;
	struct geometry geometry;
	uint32_t model_id, memory_id, n_blocks;
	uint32_t *blocks;               /* in order */
	struct cistern_layout *layouts; /* [n_layers][n_planes] */
	uint8_t *memory;
	size_t len_bytes;
	int fd;
	uint32_t n_sequences;
};

static int say(struct stream *s, const char *what, int r)
{
	fprintf(stderr, "cistern bench %s: %s: %s (%s)\n", s->bench, what, strerror(-r), cistern_error(s->c));
	return r;
}

/* libcistern's dtypes and rotations have the numbers of base/geometry.h: both are the protocol's. */
static int register_model(struct stream *s)
{
	const struct geometry *g = &s->geometry;
	struct cistern_plane planes[GEOMETRY_PLANES_MAX];
	struct cistern_model model = {.name = g->name,
		.n_layers = g->n_layers,
		.n_planes = g->n_planes,
		.planes = planes,
		.tp_rank = g->tp_rank,
		.tp_size = g->tp_size};

	for (uint32_t i = 0; i < g->n_planes; i++) {
		const struct plane *p = &g->planes[i];

		planes[i] = (struct cistern_plane){.n_heads = p->n_heads,
			.dim = p->dim,
			.dtype = p->dtype,
			.rope_kind = p->rope_kind,
			.rope_offset = p->rope_offset,
			.rope_dim = p->rope_dim,
			.rope_scale = p->rope_scale,
			.inv_freq = p->inv_freq};
	}
	return cistern_register_model(s->c, &model, &s->model_id);
}

static int make_memory(struct stream *s, uint32_t room_tokens)
{
	const struct geometry *g = &s->geometry;
	uint64_t at = 0;
	void *addr;
	int r;

	s->n_blocks = (room_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
	s->len_bytes = geometry_token_bytes(g) * s->n_blocks * BLOCK_TOKENS;
	s->blocks = calloc(s->n_blocks, sizeof *s->blocks);
	s->layouts = calloc((size_t)g->n_layers * g->n_planes, sizeof *s->layouts);
	if (!s->blocks || !s->layouts)
		return -ENOMEM;
	for (uint32_t i = 0; i < s->n_blocks; i++)
		s->blocks[i] = i;
	for (uint32_t i = 0; i < g->n_layers * g->n_planes; i++) {
		const struct plane *p = &g->planes[i % g->n_planes];
		const size_t element = dtype_bytes(p->dtype), token = plane_width(p) * element;

		s->layouts[i] = (struct cistern_layout){.base = at,
			.block_stride = token * BLOCK_TOKENS,
			.token_stride = token,
			.head_stride = p->dim * element};
		at += token * BLOCK_TOKENS * s->n_blocks;
	}
	r = cistern_memory_create("bench", s->len_bytes, &s->fd, &addr);
	if (!r)
		s->memory = addr;
	return r;
}

int stream_open(const char *socket, const char *bench, const struct geometry *g, uint32_t room_tokens,
	struct stream **out)
{
	const struct cistern_options options = {.socket_path = socket};
	struct stream *s = calloc(1, sizeof *s);
	struct cistern_memory memory = {.block_tokens = BLOCK_TOKENS};
	int r;

	if (!s)
		return -ENOMEM;
	s->bench = bench;
	s->geometry = *g;
	s->fd = -1;
	r = make_memory(s, room_tokens);
	if (!r)
		r = cistern_connect(&options, &s->c);
	if (!r)
		r = register_model(s);
	if (!r) {
		memory.model_id = s->model_id;
		memory.n_blocks = s->n_blocks;
		memory.layouts = s->layouts;
		memory.fd = s->fd;
		memory.size_bytes = s->len_bytes;
		r = cistern_register_memory(s->c, &memory, &s->memory_id);
	}
	if (r) {
		say(s, "attaching to the daemon", r);
		stream_close(s);
		return r;
	}
	*out = s;
	return 0;
}

struct stream *stream_close(struct stream *s)
{
	if (!s)
		return NULL;
	if (s->c)
		cistern_close(s->c);
	if (s->memory)
		munmap(s->memory, s->len_bytes);
	if (s->fd >= 0)
		close(s->fd);
	free(s->blocks);
	free(s->layouts);
	free(s);
	return NULL;
}

/* Blocks in order and tokens without gaps: each layer of each plane is one run of bytes, as in the capture.
 */
void stream_copy(struct stream *s, const struct capture *c, uint32_t place)
{
	for (uint32_t i = 0; i < s->geometry.n_layers * s->geometry.n_planes; i++)
		memcpy(s->memory + s->layouts[i].base + s->layouts[i].token_stride * place, c->pages[i].base,
			s->layouts[i].token_stride * c->n_tokens);
}

struct cistern *stream_connection(struct stream *s, uint32_t *model_id)
{
	*model_id = s->model_id;
	return s->c;
}

static struct cistern_run run_at(const struct stream *s, uint32_t place, uint32_t n_tokens, uint64_t position,
	const struct cistern_key *keys)
{
	const uint32_t size = cistern_chunk_tokens(s->c);

	return (struct cistern_run){.memory_id = s->memory_id,
		.n_tokens = n_tokens,
		.position = position,
		.keys = keys,
		.n_chunks = (n_tokens + size - 1) / size,
		.n_blocks = (n_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS,
		.blocks = s->blocks + place / BLOCK_TOKENS};
}

int stream_begin_put(struct stream *s, uint32_t place, uint32_t n_tokens, uint64_t position,
	const struct cistern_key *keys, uint64_t user_data)
{
	/* What is before a run in the middle of a sequence does not matter to how it is coded. */
	static const struct cistern_key parent = {{1}};
	const struct cistern_run run = run_at(s, place, n_tokens, position, keys);
	int r = cistern_put(s->c, &run, position ? &parent : NULL, user_data);

	return r ? r : cistern_submit(s->c);
}

int stream_begin_get(struct stream *s, uint32_t place, uint32_t n_tokens, uint64_t position,
	const struct cistern_key *keys, uint64_t user_data)
{
	const struct cistern_run run = run_at(s, place, n_tokens, position, keys);
	int r = cistern_get(s->c, &run, user_data);

	return r ? r : cistern_submit(s->c);
}

int stream_put(struct stream *s, const struct capture *c, uint64_t *frame_bytes)
{
	const uint32_t size = cistern_chunk_tokens(s->c), n_chunks = (c->n_tokens + size - 1) / size;
	struct cistern_key root, *keys = calloc(n_chunks, sizeof *keys);
	uint32_t *tokens = calloc(c->n_tokens, sizeof *tokens);
	struct cistern_completion done;
	int r = keys && tokens ? 0 : -ENOMEM;

	if (r)
		goto out;
	stream_copy(s, c, 0);
	/* Any ids do, so long as no two sequences have the same. */
	for (uint32_t t = 0; t < c->n_tokens; t++)
		tokens[t] = s->n_sequences;
	s->n_sequences++;
	cistern_key_root(NULL, 0, &root);
	cistern_key_chain(&root, tokens, c->n_tokens, size, keys);
	r = stream_begin_put(s, 0, c->n_tokens, 0, keys, 1);
	if (r >= 0) {
		r = cistern_wait(s->c, &done, 1, TIMEOUT_MS);
		r = r == 1 ? done.status : r == 0 ? -ETIMEDOUT : r;
	}
	if (r)
		say(s, "putting a sequence", r);
	else
		*frame_bytes = done.bytes;
out:
	free(keys);
	free(tokens);
	return r;
}
