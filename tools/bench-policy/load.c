#include "tools/bench-policy/load.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench.h"

enum { WAIT_MS = 30000, BACK_EVERY = 8 };

enum call { PUT, LOOKUP, GET, FREE };

/* What is in flight: user_data is the slot's number. */
struct slot {
	enum call call;
	uint64_t number;
	uint64_t begun_ns;
};

struct load {
	struct stream *stream;
	struct cistern *c;
	uint32_t model_id, size, n_chunks, chunks_each, length, depth;
	pthread_t thread;
	bool started;
	atomic_bool stop;
	_Atomic uint64_t n_put;
	_Atomic uint64_t *done_ns; /* [LOAD_CHUNKS_MAX] */
	double *put_ns;            /* [LOAD_CHUNKS_MAX] */
	size_t n_put_ns;
	struct slot slots[LOAD_DEPTH_MAX];
	uint64_t next, n_calls, n_failed;
};

void load_key_of(uint64_t number, struct cistern_key *key)
{
	*key = (struct cistern_key){{0}};
	memcpy(key->bytes, &number, sizeof number);
	memcpy(key->bytes + 24, "chunk..", 8);
}

uint64_t load_number_of(const struct cistern_key *key)
{
	uint64_t number;

	memcpy(&number, key->bytes, sizeof number);
	return number;
}

/* Starts the slot's next call. -errno. */
static int begin(struct load *l, uint32_t slot, enum call call, uint64_t number)
{
	const uint32_t chunk = (uint32_t)(number % l->n_chunks), at = chunk % l->chunks_each * l->size;
	struct cistern_key key;
	int r;

	load_key_of(number, &key);
	l->slots[slot] = (struct slot){call, number, bench_now_ns()};
	if (call == PUT)
		return stream_begin_put(
			l->stream, chunk / l->chunks_each * l->length + at, l->size, at, &key, slot);
	if (call == GET)
		return stream_begin_get(l->stream, l->n_chunks / l->chunks_each * l->length + slot * l->size,
			l->size, at, &key, slot);
	r = cistern_lookup(l->c, l->model_id, &key, 1, slot);
	return r ? r : cistern_submit(l->c);
}

static void note_put(struct load *l, const struct slot *s)
{
	const uint64_t now = bench_now_ns();

	l->put_ns[l->n_put_ns++] = (double)(now - s->begun_ns);
	/* Release: pairs with the loads of n_put and done_ns in other threads. */
	atomic_store_explicit(&l->done_ns[s->number], now, memory_order_release);
	atomic_fetch_add_explicit(&l->n_put, 1, memory_order_release);
}

/* What the slot does next: one chunk in so many is looked up and got back after it was put. FREE: nothing. */
static int go_on(struct load *l, uint32_t slot)
{
	struct slot *s = &l->slots[slot];

	if (s->call == PUT && s->number % BACK_EVERY == 0)
		return begin(l, slot, LOOKUP, s->number);
	if (s->call == LOOKUP)
		return begin(l, slot, GET, s->number);
	s->call = FREE;
	if (atomic_load_explicit(&l->stop, memory_order_relaxed) || l->next == LOAD_CHUNKS_MAX)
		return 0;
	return begin(l, slot, PUT, l->next++);
}

static bool any_in_flight(const struct load *l)
{
	for (uint32_t i = 0; i < l->depth; i++)
		if (l->slots[i].call != FREE)
			return true;
	return false;
}

static void *run(void *arg)
{
	struct load *l = arg;
	int r = 0;

	for (uint32_t i = 0; i < l->depth && r >= 0; i++)
		r = begin(l, i, PUT, l->next++);
	while (r >= 0 && any_in_flight(l)) {
		struct cistern_completion done[LOAD_DEPTH_MAX];
		const int n = cistern_wait(l->c, done, LOAD_DEPTH_MAX, WAIT_MS);

		r = n ? n : -ETIMEDOUT;
		for (int i = 0; i < n && r >= 0; i++) {
			const uint32_t slot = (uint32_t)done[i].user_data;

			l->n_calls++;
			l->n_failed += done[i].status || done[i].n_chunks != 1;
			if (l->slots[slot].call == PUT)
				note_put(l, &l->slots[slot]);
			r = go_on(l, slot);
		}
	}
	if (r < 0) {
		fprintf(stderr, "cistern bench policy: the load: %s\n", strerror(-r));
		l->n_failed++;
	}
	return NULL;
}

int load_start(struct stream *stream, uint32_t n_captures, uint32_t length, uint32_t depth, struct load **out)
{
	struct load *l = calloc(1, sizeof *l);
	int r = 0;

	if (!l)
		return -ENOMEM;
	l->stream = stream;
	l->c = stream_connection(stream, &l->model_id);
	l->size = cistern_chunk_tokens(l->c);
	l->length = length;
	l->chunks_each = length / l->size;
	l->n_chunks = n_captures * l->chunks_each;
	l->depth = depth;
	l->done_ns = calloc(LOAD_CHUNKS_MAX, sizeof *l->done_ns);
	l->put_ns = calloc(LOAD_CHUNKS_MAX, sizeof *l->put_ns);
	if (!l->done_ns || !l->put_ns)
		r = -ENOMEM;
	if (!r)
		r = -pthread_create(&l->thread, NULL, run, l);
	l->started = !r;
	if (r)
		load_free(l);
	else
		*out = l;
	return r;
}

void load_stop(struct load *l)
{
	if (!l || !l->started)
		return;
	atomic_store_explicit(&l->stop, true, memory_order_relaxed);
	pthread_join(l->thread, NULL);
	l->started = false;
}

struct load *load_free(struct load *l)
{
	if (!l)
		return NULL;
	load_stop(l);
	free(l->done_ns);
	free(l->put_ns);
	free(l);
	return NULL;
}

uint64_t load_n_put(const struct load *l)
{
	return atomic_load_explicit(&l->n_put, memory_order_acquire);
}

uint64_t load_done_ns(const struct load *l, uint64_t number)
{
	return number < LOAD_CHUNKS_MAX ? atomic_load_explicit(&l->done_ns[number], memory_order_acquire) : 0;
}

uint64_t load_n_calls(const struct load *l)
{
	return l->n_calls;
}

uint64_t load_n_failed(const struct load *l)
{
	return l->n_failed;
}

double load_put_ns(struct load *l, double q)
{
	return l->n_put_ns ? bench_quantile(l->put_ns, l->n_put_ns, q) : 0;
}
