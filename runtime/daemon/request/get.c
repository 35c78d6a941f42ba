#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/request/internal.h"
#include "base/log.h"
#include "runtime/daemon/device/resident.h"
#include "shm/cistern.h"

enum {
	SUCCESSORS = 16,            /* that are looked for, to see whether the window has left a chunk */
	LAYERS_PER_PHASE_PLAIN = 8, /* of a layerwise GET, where no transform says which layers go together */
};

static void get_run(struct job *job, struct codec *codec)
{
	struct step *step = (struct step *)job;
	const struct request *q = step->request;
	const struct codec_chunk chunk = step_chunk(step);
	const uint32_t first = q->phase ? q->phase_end[q->phase - 1] : 0;

	step->status = codec ? codec_decode(codec, cache_frame(step->entry), step->entry->frame_bytes,
				       step->transform, &chunk, first, q->phase_end[q->phase] - first)
			     : -ENOMEM;
}

/* Where the tokens end that are kept behind this chunk, as far as the request goes; no further than is asked
 * here. */
static uint64_t kept_until(const struct request *q, uint32_t chunk)
{
	uint32_t n = chunk + 1;
	struct index_key id;

	for (; n < q->n_chunks && n <= chunk + SUCCESSORS; n++) {
		request_chunk_id(q, n, &id);
		if (!cache_peek(q->daemon->cache, &id))
			break;
	}
	return q->sqe.position + (uint64_t)(n - 1) * q->daemon->config->chunk_tokens +
	       request_chunk_tokens(q, n - 1);
}

/* A chunk that was the end of its sequence once may have been passed over when it was that no longer. */
static void tell_steward(const struct request *q, const struct step *step)
{
	if (!step->entry->settled && !step->entry->dead)
		steward_read(q->daemon->steward, step->entry,
			q->sqe.position + (uint64_t)step->chunk * q->daemon->config->chunk_tokens +
				request_chunk_tokens(q, step->chunk),
			kept_until(q, step->chunk));
}

/* The tokens are where they belong, or cannot be had. */
void get_end(struct step *step, int status)
{
	struct request *q = step->request;

	if (!status)
		board_decoded(request_stats(q), step->entry->raw_bytes, step->entry->frame_bytes, !q->phase,
			step->job.ended_ns - step->job.started_ns);
	if (!status && !q->phase) {
		tell_steward(q, step);
		q->daemon->counters.n_get_chunks++;
		q->bytes += step->entry->frame_bytes;
	}
	cache_release(q->daemon->cache, step->entry);
	step_end(step, status);
}

static void get_staged(struct device_chunk *c, int status)
{
	get_end(c->owner, status);
}

static void get_done(struct job *job)
{
	struct step *step = (struct step *)job;
	struct request *q = step->request;
	int status = step->status;

	step_trace(step, TRACE_DECODE, step->entry->frame_bytes);
	if (status == -EBADMSG || status == -ESTALE || status == -ENOTSUP) {
		get_damaged(step, status);
		status = -EBADMSG;
	}
	if (!status && step->staged) {
		const uint32_t first = q->phase ? q->phase_end[q->phase - 1] : 0;

		device_chunk_scatter(step->staged, first, q->phase_end[q->phase] - first, get_staged);
		return;
	}
	get_end(step, status);
}

static void get_lent(struct device_chunk *c, int status)
{
	struct step *step = c->owner;

	if (status)
		get_end(step, status);
	else
		workers_submit(step->request->daemon->workers, &step->job);
}

static void get_fetched(struct cache_wait *wait, int status)
{
	static const uint8_t plain[16] = {0};
	struct step *step = step_of_wait(wait);
	struct request *q = step->request;
	struct frame_info info;

	if (!status && q->restore_transform && !q->session->closed) {
		q->steps[q->n_ready++] = step;
		request_go_on(q);
		return;
	}
	if (!status && q->sqe.op == WIRE_GET && !q->session->closed) {
		status = frame_parse(cache_frame(step->entry), step->entry->frame_bytes, &info, NULL, 0);
		if (!status)
			step_use_transform(step, registry_transform(q->daemon->registry, info.transform));
		/* A frame whose transform is not loaded is one that we cannot read: the client's miss. */
		if (!status && !step->transform && memcmp(info.transform, plain, 16) != 0) {
			cache_release(q->daemon->cache, step->entry);
			request_cut(q, step->chunk, 0);
			step_end(step, 0);
			return;
		}
		step->status = status;
		step->job.run = get_run;
		step->job.done = get_done;
		if (status) {
			get_done(&step->job);
		} else if (!q->mapping->device) {
			workers_submit(q->daemon->workers, &step->job);
		} else if (step_stage(step)) {
			get_end(step, -ENOMEM);
		} else {
			device_chunk_lend(step->staged, get_lent);
		}
		return;
	}
	if (!status)
		q->bytes += step->entry->frame_bytes;
	cache_release(q->daemon->cache, step->entry);
	step_end(step, status);
}

void get_start(struct request *q, uint32_t chunk)
{
	struct index_key id;
	struct step *step;
	struct index_entry *e;

	request_chunk_id(q, chunk, &id);
	e = cache_find(q->daemon->cache, &id);
	if (!e) {
		request_cut(q, chunk, 0);
		return;
	}
	step = step_new(q, chunk);
	if (!step)
		return;
	step->entry = e;
	step->wait.fn = get_fetched;
	cache_hold(e);
	if (q->restore_transform && resident_find(q->daemon->gpu, q->daemon->cache, e, &step->resident))
		get_fetched(&step->wait, 0);
	else
		cache_fetch(q->daemon->cache, e, &step->wait);
}

/* Where a layerwise GET may stop: after layers that no part reaches across; without parts anywhere, and then
 * as often as there are events. */
void request_find_phases(struct request *q)
{
	const uint32_t n_layers = q->model->geometry.n_layers;
	const struct transform *t = q->model->transform;
	const uint32_t plain =
		q->signals.n ? (n_layers + q->signals.n - 1) / q->signals.n : LAYERS_PER_PHASE_PLAIN;

	q->n_phases = 0;
	for (uint32_t end = 1; end <= n_layers && (q->sqe.flags & CISTERN_LAYERWISE || q->signals.n); end++) {
		bool whole = t || end % plain == 0 || end == n_layers;

		for (uint32_t i = 0; t && i < t->n_parts; i++)
			if (t->parts[i].first_layer < end &&
				t->parts[i].first_layer + t->parts[i].n_layers > end)
				whole = false;
		if (whole)
			q->phase_end[q->n_phases++] = end;
	}
	if (!q->n_phases)
		q->phase_end[q->n_phases++] = n_layers;
}
