#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/device/resident.h"
#include "runtime/daemon/request/internal.h"
#include "shm/cistern.h"

struct stats_cache *request_stats(const struct request *q)
{
	return board_cache(q->daemon->board, q->session->name_space, q->model->fingerprint);
}

void step_trace(const struct step *step, enum trace_name name, uint64_t bytes)
{
	if (!step->job.ended_ns) /* it never came to a worker */
		return;
	board_trace(step->request->daemon->board,
		&(struct trace_event){.start_ns = step->job.started_ns,
			.duration_ns = step->job.ended_ns - step->job.started_ns,
			.track = TRACE_WORKER,
			.lane = step->job.worker,
			.name = name,
			.status = step->status,
			.request = step->request->serial,
			.n_chunks = 1,
			.bytes = bytes});
}

void request_chunk_id(const struct request *q, uint32_t chunk, struct index_key *out)
{
	index_key_make(out, q->session->name_space, q->model->fingerprint, q->keys[chunk]);
}

uint32_t request_chunk_tokens(const struct request *q, uint32_t chunk)
{
	const uint32_t size = q->daemon->config->chunk_tokens;
	const uint32_t left = q->sqe.n_tokens - chunk * size;

	return left < size ? left : size;
}

/* The chunk where it lies in the client's memory, or in the copy of what lies on the GPU. */
struct codec_chunk step_chunk(const struct step *step)
{
	const struct request *q = step->request;
	const uint32_t chunk = step->chunk, first = chunk * q->daemon->config->chunk_tokens;

	if (step->staged)
		return device_chunk_view(step->staged);

	return (struct codec_chunk){.geometry = &q->model->geometry,
		.pages = q->mapping->pages,
		.run = {.blocks = q->blocks,
			.block_tokens = q->mapping->block_tokens,
			.offset = q->sqe.block_offset + first},
		.n_tokens = request_chunk_tokens(q, chunk),
		.position = q->sqe.position + first};
}

/* The request is as good as its first bad chunk. */
void request_cut(struct request *q, uint32_t chunk, int status)
{
	if (chunk >= q->n_chunks)
		return;
	q->n_chunks = chunk;
	q->status = status;
}

void step_end(struct step *step, int status)
{
	struct request *q = step->request;

	if (status)
		request_cut(q, step->chunk, status);
	if (step->transform)
		registry_release(q->daemon->registry, step->transform);
	plan_end(&step->plan);
	device_chunk_free(step->staged);
	q->n_unhanded -= step->unhanded;
	free(step->classes);
	free(step->image);
	if (step->resident.bytes)
		resident_release(q->daemon->gpu, &step->resident);
	free(step);
	q->n_active--;
	request_go_on(q);
}

struct step *step_new(struct request *q, uint32_t chunk)
{
	struct step *step = calloc(1, sizeof *step);

	if (!step) {
		request_cut(q, chunk, -ENOMEM);
		return NULL;
	}
	step->request = q;
	step->chunk = chunk;
	step->unhanded = q->mapping && q->mapping->device;
	q->n_unhanded += step->unhanded;
	q->n_active++;
	return step;
}

/* Until the step ends. */
void step_use_transform(struct step *step, const struct transform *t)
{
	step->transform = t;
	if (t)
		registry_hold(step->request->daemon->registry, t);
}

/* ---- memory on the GPU ---- */

void request_tell(struct request *q, uint32_t n_layers)
{
	const struct wire_cqe cqe = {.user_data = q->sqe.user_data,
		.flags = CISTERN_MORE,
		.n_chunks = q->n_chunks,
		.n_layers = n_layers};

	session_complete(q->session, &cqe);
}

static void recorded(struct signals *g, int status)
{
	struct request *q = (struct request *)((char *)g - offsetof(struct request, signals));

	if (status)
		request_cut(q, 0, status);
	else
		request_tell(q, q->sqe.op == WIRE_GET ? q->phase_end[q->phase] : 0);
	q->n_active--;
	request_go_on(q);
}

/* Once all of the phase is with the lane: what is recorded now comes behind it. */
void request_record_events(struct request *q)
{
	const uint32_t n = q->signals.n;
	const bool is_last = q->sqe.op == WIRE_PUT || q->phase + 1 == q->n_phases;
	const uint32_t from = q->phase < n ? q->phase : n - 1;

	if (!n || q->recorded || q->restore_transform || q->n_unhanded || q->next < q->n_chunks ||
		q->session->closed || (!q->n_chunks && (q->status || q->sqe.op == WIRE_GET)))
		return;
	/* The last event is for all groups that have none of their own, and fires with the last of them. */
	if (!is_last && from + 1 >= n)
		return;
	q->recorded = true;
	q->n_active++;
	signals_record(&q->signals, from, is_last ? n : from + 1, recorded);
}

static void handed(struct device_chunk *c)
{
	struct step *step = c->owner;

	step->unhanded = false;
	step->request->n_unhanded--;
	request_record_events(step->request);
}

int step_stage(struct step *step)
{
	struct request *q = step->request;
	const uint32_t first = step->chunk * q->daemon->config->chunk_tokens;
	const struct device_tokens tokens = {.geometry = &q->model->geometry,
		.run = {.blocks = q->blocks,
			.block_tokens = q->mapping->block_tokens,
			.offset = q->sqe.block_offset + first},
		.n_tokens = request_chunk_tokens(q, step->chunk),
		.position = q->sqe.position + first,
		.n_planes = q->model->geometry.n_layers * q->model->geometry.n_planes};

	step->staged = device_chunk_new(q->daemon->gpu, q->mapping->device, &q->session->lane, &tokens);
	if (!step->staged)
		return -ENOMEM;
	step->staged->owner = step;
	step->staged->handed = handed;
	return 0;
}
