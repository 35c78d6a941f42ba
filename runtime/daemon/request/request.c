#include "runtime/daemon/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/request/internal.h"
#include "runtime/daemon/shadow/fidelity.h"
#include "shm/cistern.h"

enum {
	/* Chunks of one request that may be on their way at once: enough to keep disk and workers busy. */
	WINDOW = 16,
	TRACED_NS = 10000, /* requests that took less leave no span */
};

static void complete_now(struct session *s, const struct wire_sqe *sqe, int status, uint32_t n_chunks)
{
	const struct wire_cqe cqe = {.user_data = sqe->user_data, .status = status, .n_chunks = n_chunks};

	session_complete(s, &cqe);
	session_request_ended(s);
}

/* Counts it, and draws it into the trace unless it took no time, so that lookups do not push out all else. */
static void note_end(const struct request *q)
{
	const uint64_t ns = board_now_ns() - q->started_ns;

	if (q->model)
		board_request(request_stats(q), q->sqe.op, q->status, q->n_chunks, q->sqe.n_chunks, ns);
	if (ns >= TRACED_NS)
		board_trace(q->daemon->board, &(struct trace_event){.start_ns = q->started_ns,
						      .duration_ns = ns,
						      .track = TRACE_SESSION,
						      .lane = q->session->id,
						      .name = q->sqe.op,
						      .status = q->status,
						      .request = q->serial,
						      .n_chunks = q->n_chunks,
						      .bytes = q->bytes});
}

void request_end_restore(struct request *q)
{
	q->restore = restore_free(q->restore);
	if (q->restore_transform)
		registry_release(q->daemon->registry, q->restore_transform);
	q->restore_transform = NULL;
}

void request_end(struct request *q)
{
	struct session *s = q->session;
	const struct wire_cqe cqe = {.user_data = q->sqe.user_data,
		.status = q->status,
		.n_chunks = q->sqe.op == WIRE_REMOVE ? q->n_done : q->n_chunks,
		.n_layers = q->sqe.op == WIRE_GET && !q->status ? q->model->geometry.n_layers : 0,
		.bytes = q->bytes};

	note_end(q);
	mapping_unref(q->mapping);
	request_end_restore(q);
	signals_drop(&q->signals);
	if (q->observation)
		observation_fini(q->observation);
	free(q->observation);
	s->taken_bytes -= q->taken_bytes;
	free(q->keys);
	free(q->blocks);
	free(q);
	session_complete(s, &cqe);
	session_request_ended(s);
}

static void is_ready(struct signals *g, int status)
{
	struct request *q = (struct request *)((char *)g - offsetof(struct request, signals));

	if (status)
		request_cut(q, 0, status);
	request_go_on(q);
}

/* ---- REMOVE and SYNC ---- */

static void removed(struct cache_wait *wait, int status)
{
	struct step *step = step_of_wait(wait);

	if (status && !step->request->status)
		step->request->status = status;
	step_end(step, 0);
}

static void remove_start(struct request *q, uint32_t chunk)
{
	struct index_key id;
	struct index_entry *e;
	struct step *step;

	request_chunk_id(q, chunk, &id);
	fidelity_forget(q->daemon->fidelity, &id);
	e = cache_peek(q->daemon->cache, &id);
	if (!e)
		return;
	step = step_new(q, chunk);
	if (!step)
		return;
	q->n_done++;
	step->wait.fn = removed;
	cache_remove(q->daemon->cache, e, &step->wait);
}

static void synced(struct cache_wait *wait, int status)
{
	struct request *q = (struct request *)((char *)wait - offsetof(struct request, wait));

	/* A chunk that was lost since this client last asked is not on the disk. */
	if (!status && cache_n_lost(q->daemon->cache) != q->session->n_lost_seen)
		status = -EIO;
	q->session->n_lost_seen = cache_n_lost(q->daemon->cache);
	q->status = status;
	request_end(q);
}

/* ---- OBSERVE ---- */

static void observed(struct observation *o)
{
	struct request *q = (struct request *)o->owner;

	q->status = o->status;
	q->n_chunks = o->status ? 0 : o->n_judged;
	request_end(q);
}

static void observe_ready(struct signals *g, int status)
{
	struct request *q = (struct request *)((char *)g - offsetof(struct request, signals));

	if (!status) {
		observation_start(q->observation);
		return;
	}
	q->status = status;
	q->n_chunks = 0;
	request_end(q);
}

static int take_ready(struct request *q, uint32_t event)
{
	const struct wire_run_events events = {.ready = (uint16_t)event};

	if (!event)
		return 0;
	return q->mapping->device && event <= WIRE_EVENTS_MAX ? signals_take(&q->signals, q->session, &events)
							      : -EINVAL;
}

static void observe_start(struct request *q)
{
	struct observation *o = q->observation = calloc(1, sizeof *o);

	if (o) {
		*o = (struct observation){.daemon = q->daemon,
			.owner = q,
			.model = q->model,
			.mapping = q->mapping,
			.blocks = q->blocks,
			.keys = (const uint8_t(*)[32])q->keys,
			.block_offset = q->sqe.block_offset,
			.n_tokens = q->sqe.n_tokens,
			.n_chunks = q->n_chunks,
			.lane = &q->session->lane,
			.done = observed};
		memcpy(o->name_space, q->session->name_space, 16);
	}
	q->status = !o                ? -ENOMEM
		    : q->sqe.position ? -EINVAL
				      : observation_take(o, q->session, q->sqe.data_off);
	if (!q->status)
		q->status = take_ready(q, o->head.ready_event);
	if (!q->status) {
		signals_await(&q->signals, observe_ready);
		return;
	}
	q->daemon->counters.n_bad_requests += q->status == -EINVAL;
	q->n_chunks = 0;
	request_end(q);
}

/* ---- the story ---- */

/* Starts chunks while the window has room; ends the phase, and the request, with the last of them. Starting
 * may finish a chunk at once and so come here again: the outer call goes on. */
void request_go_on(struct request *q)
{
	if (q->starting)
		return;
	for (;;) {
		q->starting = true;
		while (q->next < q->n_chunks &&
			q->n_active < (q->restore_transform ? DEVICE_BATCH_MAX : WINDOW) &&
			!q->session->closed && !q->restoring) {
			const uint32_t chunk = q->next++;

			if (q->sqe.op == WIRE_PUT)
				put_start(q, chunk);
			else if (q->sqe.op == WIRE_REMOVE)
				remove_start(q, chunk);
			else
				get_start(q, chunk);
		}
		q->starting = false;
		request_record_events(q);
		if (q->n_active) {
			request_try_restore(q);
			return;
		}
		if (q->session->closed || q->sqe.op != WIRE_GET || !q->n_chunks || q->restore_transform ||
			q->phase + 1 == q->n_phases)
			break;
		if (!q->signals.n)
			request_tell(q, q->phase_end[q->phase]);
		q->phase++;
		q->next = 0;
		q->recorded = false;
	}
	request_end(q);
}

static bool in_arena(const struct session *s, uint64_t off, uint64_t n, uint64_t size)
{
	uint64_t bytes, end;

	return !__builtin_mul_overflow(n, size, &bytes) && !__builtin_add_overflow(off, bytes, &end) &&
	       end <= s->segment.arena_bytes;
}

/* Copies the keys out of the arena: what the client does to them from here on changes nothing. */
static int take_keys(struct request *q)
{
	const struct session *s = q->session;
	const struct wire_sqe *sqe = &q->sqe;
	const uint32_t n_parents = sqe->op == WIRE_PUT;
	const uint8_t *from;

	if (!in_arena(s, sqe->keys_off, (uint64_t)sqe->n_chunks + n_parents, 32))
		return -EINVAL;
	from = s->segment.arena + sqe->keys_off;
	if (n_parents)
		memcpy(q->parent, from, 32);
	q->keys = malloc((size_t)sqe->n_chunks * 32 + 1);
	if (!q->keys)
		return -ENOMEM;
	memcpy(q->keys, from + n_parents * 32, (size_t)sqe->n_chunks * 32);
	q->n_chunks = sqe->n_chunks;
	return 0;
}

/* Those of PUT and GET; OBSERVE's is in the arena. */
static int take_events(struct request *q, const struct mapping *m)
{
	const struct wire_run_events *e = &q->sqe.events;

	if (q->sqe.op == WIRE_OBSERVE)
		return 0;
	if (!m->device)
		return e->ready || e->n ? -EINVAL : 0;
	return q->sqe.op == WIRE_PUT && e->n > 1 ? -EINVAL : signals_take(&q->signals, q->session, e);
}

static int take_run(struct request *q)
{
	const struct session *s = q->session;
	const struct wire_sqe *sqe = &q->sqe;
	struct mapping *m = session_memory(s, sqe->object);
	const uint64_t size = q->daemon->config->chunk_tokens;
	uint64_t tokens, end;

	if (!m)
		return -ENOENT;
	if (sqe->op == WIRE_PUT && sqe->preset >= POLICY_PRESETS)
		return -EINVAL;
	if (!sqe->n_tokens || sqe->n_chunks != (sqe->n_tokens + size - 1) / size || sqe->position % size ||
		__builtin_add_overflow(sqe->position, sqe->n_tokens, &end) || end > (uint64_t)1 << 48)
		return -EINVAL;
	tokens = (uint64_t)sqe->block_offset + sqe->n_tokens;
	if (tokens > UINT32_MAX || sqe->n_blocks < (tokens + m->block_tokens - 1) / m->block_tokens ||
		!in_arena(s, sqe->blocks_off, sqe->n_blocks, sizeof *q->blocks))
		return -EINVAL;
	q->blocks = malloc((size_t)sqe->n_blocks * sizeof *q->blocks);
	if (!q->blocks)
		return -ENOMEM;
	memcpy(q->blocks, s->segment.arena + sqe->blocks_off, (size_t)sqe->n_blocks * sizeof *q->blocks);
	for (uint32_t i = 0; i < sqe->n_blocks; i++)
		if (q->blocks[i] >= m->n_blocks)
			return -EINVAL;
	q->mapping = mapping_ref(m);
	q->model = m->model;
	return take_events(q, m);
}

static int request_take(struct request *q)
{
	const uint8_t op = q->sqe.op;
	int r = 0;

	if (op == WIRE_SYNC)
		return 0;
	if (op == WIRE_PUT || op == WIRE_GET || op == WIRE_OBSERVE) {
		r = take_run(q);
	} else {
		q->model = session_model(q->session, q->sqe.object);
		r = q->model ? 0 : -ENOENT;
	}
	r = r ? r : take_keys(q);
	q->taken_bytes = (q->keys ? (uint64_t)q->sqe.n_chunks * 32 : 0) +
			 (q->blocks ? (uint64_t)q->sqe.n_blocks * sizeof *q->blocks : 0);
	q->session->taken_bytes += q->taken_bytes;
	return r;
}

/* LOOKUP, PIN and UNPIN take no time. */
static void run_at_once(struct request *q)
{
	uint32_t n = 0;

	if (q->sqe.op == WIRE_LOOKUP && q->n_chunks) {
		struct index_key id;

		request_chunk_id(q, 0, &id);
		q->n_chunks = (uint32_t)cache_look(
			q->daemon->cache, id.owner, (const uint8_t(*)[32])q->keys, q->n_chunks);
		request_end(q);
		return;
	}
	for (; n < q->n_chunks && !q->status; n++) {
		struct index_key id;
		struct index_entry *e;

		request_chunk_id(q, n, &id);
		if (q->sqe.op == WIRE_UNPIN) {
			if (session_unpin(q->session, &id))
				break;
			continue;
		}
		e = cache_peek(q->daemon->cache, &id);
		if (!e)
			break;
		q->status = session_pin(q->session, e);
	}
	q->n_chunks = n;
	request_end(q);
}

void request_start(struct session *s, const struct wire_sqe *sqe)
{
	struct daemon *d = s->daemon;
	struct request *q;
	int r;

	if (sqe->op < DAEMON_OPS)
		d->counters.n_requests[sqe->op]++;
	if (sqe->op == WIRE_NOP || sqe->op >= DAEMON_OPS) {
		d->counters.n_bad_requests += sqe->op != WIRE_NOP;
		complete_now(s, sqe, sqe->op == WIRE_NOP ? 0 : -EOPNOTSUPP, 0);
		return;
	}
	q = calloc(1, sizeof *q);
	if (!q) {
		complete_now(s, sqe, -ENOMEM, 0);
		return;
	}
	q->started_ns = board_now_ns();
	q->serial = ++d->counters.n_taken;
	q->session = s;
	q->daemon = d;
	q->sqe = *sqe;
	r = request_take(q);
	if (r) {
		d->counters.n_bad_requests++;
		q->status = r;
		q->n_chunks = 0;
		request_end(q);
		return;
	}
	switch (sqe->op) {
	case WIRE_LOOKUP:
	case WIRE_PIN:
	case WIRE_UNPIN: run_at_once(q); break;
	case WIRE_OBSERVE: observe_start(q); break;
	case WIRE_SYNC:
		q->wait.fn = synced;
		cache_sync(d->cache, &q->wait);
		break;
	default:
		if (sqe->op == WIRE_GET) {
			request_find_phases(q);
			request_choose_restore(q);
		}
		signals_await(&q->signals, is_ready);
	}
}
