#include "shm/client.h"

#include <errno.h>
#include <string.h>

#include "shm/doorbell.h"
#include "shm/key.h"

_Static_assert(sizeof(struct cistern_key) == WIRE_KEY_BYTES, "keys travel as they are");

/* What goes into the arena with a request. */
struct cargo {
	const struct cistern_key *parent; /* NULL: none */
	const struct cistern_key *keys;
	uint32_t n_keys;
	const uint32_t *blocks;
	uint32_t n_blocks;
	bool with_parent; /* room for one, zero when it is NULL */
	/* An observation: a header, then up to two arrays. */
	struct {
		const void *data;
		uint64_t len;
	} parts[3];
};

static uint64_t cargo_bytes(const struct cargo *g)
{
	return ((uint64_t)g->n_keys + g->with_parent) * WIRE_KEY_BYTES +
	       (uint64_t)g->n_blocks * sizeof(uint32_t) + g->parts[0].len + g->parts[1].len + g->parts[2].len;
}

static void load(uint8_t *at, const struct cargo *g)
{
	if (g->with_parent) {
		if (g->parent)
			memcpy(at, g->parent, WIRE_KEY_BYTES);
		else
			memset(at, 0, WIRE_KEY_BYTES);
		at += WIRE_KEY_BYTES;
	}
	memcpy(at, g->keys, (size_t)g->n_keys * WIRE_KEY_BYTES);
	at += (size_t)g->n_keys * WIRE_KEY_BYTES;
	if (g->n_blocks)
		memcpy(at, g->blocks, (size_t)g->n_blocks * sizeof(uint32_t));
	at += (size_t)g->n_blocks * sizeof(uint32_t);
	for (int i = 0; i < 3; i++) {
		if (g->parts[i].len)
			memcpy(at, g->parts[i].data, g->parts[i].len);
		at += g->parts[i].len;
	}
}

/* Queues a request whose arguments are checked. Takes nothing when it fails. */
static int queue(struct cistern *c, struct wire_sqe *sqe, const struct cargo *g, uint64_t user_data)
{
	uint64_t len = g ? cargo_bytes(g) : 0, offset = 0;
	struct flight *f;
	uint32_t index;
	int r;

	if (c->n_idle == 0)
		return client_fail(c, -EAGAIN, "%u requests are in flight", c->n_flights);
	if (len) {
		r = arena_alloc(&c->arena, len, &offset);
		if (r == -ENOSPC)
			return client_fail(c, r, "the request needs %llu bytes of an arena of %llu",
				(unsigned long long)len, (unsigned long long)c->arena.len_bytes);
		if (r < 0)
			return client_fail(c, r, "the arena is full");
		load(c->segment.arena + offset, g);
		sqe->n_chunks = g->n_keys;
		sqe->n_blocks = g->n_blocks;
		sqe->keys_off = offset;
		sqe->blocks_off =
			g->n_blocks ? offset + ((uint64_t)g->n_keys + g->with_parent) * WIRE_KEY_BYTES : 0;
		if (g->parts[0].len)
			sqe->data_off = sqe->blocks_off + (uint64_t)g->n_blocks * sizeof(uint32_t);
	}
	index = c->idle[c->n_idle - 1];
	f = &c->flights[index];
	sqe->user_data = (uint64_t)f->generation << 32 | index;
	r = ring_push(&c->sq, sqe);
	if (r < 0) {
		if (len)
			arena_release(&c->arena, offset, len);
		if (r == -EPROTO)
			return client_lost(c, true, "the daemon broke the submission ring");
		return client_fail(c, r, "the submission ring is full");
	}
	c->n_idle--;
	f->user_data = user_data;
	f->arena_offset = offset;
	f->arena_len = len;
	f->n_chunks = sqe->n_chunks;
	f->live = true;
	return 0;
}

static int queue_keys(struct cistern *c, enum wire_op op, uint32_t model_id, const struct cistern_key *keys,
	uint32_t n_chunks, uint64_t user_data)
{
	const struct client_model *m = client_model(c, model_id);
	struct wire_sqe sqe = {.op = (uint8_t)op, .object = m ? m->wire_id : model_id};
	struct cargo g = {.keys = keys, .n_keys = n_chunks};

	if (c->gone)
		return -ENOTCONN;
	if (!keys || n_chunks == 0)
		return client_fail(c, -EINVAL, "there are no keys");
	return queue(c, &sqe, &g, user_data);
}

/* The daemon checks all this again, for it believes no client; here the engine gets a sentence, at once.
 * *n_blocks: how many of the blocks the run really reaches. */
static int check_run(struct cistern *c, const struct cistern_run *run, uint32_t *n_blocks)
{
	const struct client_memory *m = client_memory(c, run->memory_id);
	uint64_t n_chunks = ((uint64_t)run->n_tokens + c->chunk_tokens - 1) / c->chunk_tokens;
	uint64_t n_reached;

	if (!m)
		return client_fail(c, -EINVAL, "memory %u is not registered", run->memory_id);
	if (run->n_tokens == 0)
		return client_fail(c, -EINVAL, "the run has no tokens");
	if (run->n_chunks != n_chunks || !run->keys)
		return client_fail(c, -EINVAL, "%u tokens are %llu chunks of %u, not %u", run->n_tokens,
			(unsigned long long)n_chunks, c->chunk_tokens, run->keys ? run->n_chunks : 0);
	if (run->position % c->chunk_tokens || run->position > UINT64_MAX - run->n_tokens)
		return client_fail(c, -EINVAL, "position %llu is not a multiple of the chunk size, %u",
			(unsigned long long)run->position, c->chunk_tokens);
	if (run->flags & ~(uint32_t)CISTERN_LAYERWISE)
		return client_fail(c, -EINVAL, "unknown flags %#x", run->flags);
	if (run->preset > CISTERN_PRESET_COMPACT)
		return client_fail(c, -EINVAL, "unknown preset %u", run->preset);
	if (run->block_offset >= m->block_tokens)
		return client_fail(c, -EINVAL, "block_offset %u is not inside a block of %u tokens",
			run->block_offset, m->block_tokens);
	n_reached = ((uint64_t)run->block_offset + run->n_tokens + m->block_tokens - 1) / m->block_tokens;
	if (run->n_blocks < n_reached || !run->blocks)
		return client_fail(c, -EINVAL, "the run reaches over %llu blocks, there are %u",
			(unsigned long long)n_reached, run->blocks ? run->n_blocks : 0);
	for (uint64_t i = 0; i < n_reached; i++)
		if (run->blocks[i] >= m->n_blocks)
			return client_fail(c, -EINVAL, "block %u of the run is %u, the memory has %u",
				(unsigned)i, run->blocks[i], m->n_blocks);
	*n_blocks = (uint32_t)n_reached;
	return 0;
}

/* The run's events as the daemon knows them. */
static int take_events(
	struct cistern *c, enum wire_op op, const struct cistern_run *run, struct wire_run_events *out)
{
	const bool is_put = op == WIRE_PUT;
	const uint32_t first = is_put ? run->released_event : run->first_event;
	const uint32_t n = is_put ? run->released_event != 0 : op == WIRE_GET ? run->n_events : 0;
	uint32_t ready = 0, wire_first = 0;
	int r;

	if ((run->ready_event || n) && !client_memory(c, run->memory_id)->on_device)
		return client_fail(c, -EINVAL, "events go with memory on a GPU alone");
	r = client_wire_events(c, run->ready_event, run->ready_event != 0, &ready);
	if (r == 0)
		r = client_wire_events(c, first, n, &wire_first);
	if (r == 0)
		*out = (struct wire_run_events){
			.ready = (uint16_t)ready, .first = (uint16_t)wire_first, .n = (uint16_t)n};
	return r;
}

static int queue_run(struct cistern *c, enum wire_op op, const struct cistern_run *run,
	const struct cistern_key *parent, uint64_t user_data)
{
	struct wire_sqe sqe = {
		.op = (uint8_t)op,
		.flags = op == WIRE_GET ? (uint8_t)run->flags : 0,
		.preset = op == WIRE_PUT ? (uint16_t)run->preset : 0,
		.position = run->position,
		.n_tokens = run->n_tokens,
		.block_offset = run->block_offset,
	};
	struct cargo g = {
		.parent = parent,
		.with_parent = op == WIRE_PUT,
		.keys = run->keys,
		.n_keys = run->n_chunks,
		.blocks = run->blocks,
	};
	int r;

	if (c->gone)
		return -ENOTCONN;
	r = check_run(c, run, &g.n_blocks);
	if (r == 0)
		r = take_events(c, op, run, &sqe.events);
	if (r < 0)
		return r;
	sqe.object = client_memory(c, run->memory_id)->wire_id;
	return queue(c, &sqe, &g, user_data);
}

/* Lengths of what goes with an observation; the daemon checks the rest, which depends on the model. */
static int check_observation(
	struct cistern *c, const struct cistern_run *run, const struct cistern_observation *o, uint64_t *len)
{
	const struct client_memory *m = client_memory(c, run->memory_id);
	uint64_t bytes = 0;

	if (run->position)
		return client_fail(c, -EINVAL, "an observation is of a sequence from its first token on");
	if (!o->n_queries)
		return client_fail(c, -EINVAL, "an observation of no queries");
	if (o->kind == CISTERN_SUMS && o->sums) {
		*len = (uint64_t)run->n_tokens * sizeof *o->sums;
		return 0;
	}
	if (o->kind != CISTERN_QUERIES || !o->positions || !o->values)
		return client_fail(c, -EINVAL, "neither queries with their positions nor sums");
	for (uint32_t i = 0; i < o->n_queries; i++)
		if (o->positions[i] >= run->n_tokens || (i && o->positions[i] <= o->positions[i - 1]))
			return client_fail(
				c, -EINVAL, "positions of queries do not rise, or reach past the run");
	if (__builtin_mul_overflow(
		    (uint64_t)o->n_layers * o->n_queries, (uint64_t)o->n_heads * m->key_head_bytes, &bytes) ||
		!bytes)
		return client_fail(c, -EINVAL, "layers, queries or heads out of range");
	*len = bytes;
	return 0;
}

/* ---- public ---- */

void cistern_key_root(const void *salt, size_t salt_len, struct cistern_key *out)
{
	key_root(salt, salt_len, out->bytes);
}

size_t cistern_key_chain(const struct cistern_key *parent, const uint32_t *tokens, size_t n_tokens,
	uint32_t chunk_tokens, struct cistern_key *keys)
{
	size_t n_keys = 0;

	if (chunk_tokens == 0)
		return 0;
	while (n_tokens) {
		size_t n = n_tokens < chunk_tokens ? n_tokens : chunk_tokens;

		key_next(parent->bytes, tokens, n, keys[n_keys].bytes);
		parent = &keys[n_keys++];
		tokens += n;
		n_tokens -= n;
	}
	return n_keys;
}

int cistern_nop(struct cistern *c, uint64_t user_data)
{
	struct wire_sqe sqe = {.op = WIRE_NOP};

	return c->gone ? -ENOTCONN : queue(c, &sqe, NULL, user_data);
}

int cistern_lookup(struct cistern *c, uint32_t model_id, const struct cistern_key *keys, uint32_t n_chunks,
	uint64_t user_data)
{
	return queue_keys(c, WIRE_LOOKUP, model_id, keys, n_chunks, user_data);
}

int cistern_put(struct cistern *c, const struct cistern_run *run, const struct cistern_key *parent,
	uint64_t user_data)
{
	return queue_run(c, WIRE_PUT, run, parent, user_data);
}

int cistern_get(struct cistern *c, const struct cistern_run *run, uint64_t user_data)
{
	return queue_run(c, WIRE_GET, run, NULL, user_data);
}

int cistern_observe(struct cistern *c, const struct cistern_run *run, const struct cistern_observation *o,
	uint64_t user_data)
{
	struct wire_sqe sqe = {
		.op = WIRE_OBSERVE,
		.n_tokens = run->n_tokens,
		.block_offset = run->block_offset,
	};
	struct wire_observation head = {.kind = o->kind,
		.n_queries = o->n_queries,
		.n_heads = o->n_heads,
		.first_layer = o->first_layer,
		.n_layers = o->n_layers,
		.scale = o->scale};
	struct cargo g = {.keys = run->keys, .n_keys = run->n_chunks, .blocks = run->blocks};
	struct wire_run_events events = {0};
	uint64_t len = 0;
	int r;

	if (c->gone)
		return -ENOTCONN;
	r = check_run(c, run, &g.n_blocks);
	if (!r)
		r = check_observation(c, run, o, &len);
	if (!r)
		r = take_events(c, WIRE_OBSERVE, run, &events);
	if (r < 0)
		return r;
	head.ready_event = events.ready;
	sqe.object = client_memory(c, run->memory_id)->wire_id;
	g.parts[0].data = &head;
	g.parts[0].len = sizeof head;
	g.parts[1].data = o->positions;
	g.parts[1].len = o->kind == CISTERN_QUERIES ? (uint64_t)o->n_queries * sizeof *o->positions : 0;
	g.parts[2].data = o->kind == CISTERN_QUERIES ? o->values : o->sums;
	g.parts[2].len = len;
	return queue(c, &sqe, &g, user_data);
}

int cistern_prefetch(struct cistern *c, uint32_t model_id, const struct cistern_key *keys, uint32_t n_chunks,
	uint64_t user_data)
{
	return queue_keys(c, WIRE_PREFETCH, model_id, keys, n_chunks, user_data);
}

int cistern_pin(struct cistern *c, uint32_t model_id, const struct cistern_key *keys, uint32_t n_chunks,
	uint64_t user_data)
{
	return queue_keys(c, WIRE_PIN, model_id, keys, n_chunks, user_data);
}

int cistern_unpin(struct cistern *c, uint32_t model_id, const struct cistern_key *keys, uint32_t n_chunks,
	uint64_t user_data)
{
	return queue_keys(c, WIRE_UNPIN, model_id, keys, n_chunks, user_data);
}

int cistern_remove(struct cistern *c, uint32_t model_id, const struct cistern_key *keys, uint32_t n_chunks,
	uint64_t user_data)
{
	return queue_keys(c, WIRE_REMOVE, model_id, keys, n_chunks, user_data);
}

int cistern_sync(struct cistern *c, uint64_t user_data)
{
	struct wire_sqe sqe = {.op = WIRE_SYNC};

	return c->gone ? -ENOTCONN : queue(c, &sqe, NULL, user_data);
}

int cistern_submit(struct cistern *c)
{
	uint32_t n = ring_unpublished(&c->sq);

	if (c->gone)
		return -ENOTCONN;
	if (ring_publish(&c->sq) && doorbell_ring(c->sq_ringer) < 0) {
		client_look(c);
		return client_lost(c, false, "the daemon has hung up");
	}
	return (int)n;
}
