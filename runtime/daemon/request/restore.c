/* GET on the GPU: chunks wait for each other, and are restored together. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/request/internal.h"
#include "base/log.h"
#include "runtime/daemon/device/resident.h"
#include "runtime/stats/board.h"
#include "shm/cistern.h"

static void restore_steps(struct request *q);

void get_damaged(struct step *step, int status)
{
	struct cache *cache = step->request->daemon->cache;

	request_stats(step->request)->damaged++;
	log_warning("a frame could not be decoded (%s); its chunk is dropped",
		status == -ENOTSUP ? "it is of another version of the format" : strerror(-status));
	if (!step->entry->dead)
		cache_remove(cache, step->entry, NULL);
}

static void restore_told(struct restore *r)
{
	struct request *q = r->owner;

	for (uint32_t i = 0; i < r->n_phases; i++)
		if (i + 1 < r->n_events || i + 1 == r->n_phases)
			request_tell(q, q->phase_end[i]);
}

/* Ends steps; new ones may begin meanwhile. Those of chunks from first on have this status. */
static void end_steps(struct request *q, int status)
{
	struct step *steps[DEVICE_BATCH_MAX];
	const uint32_t n = q->n_ready;

	memcpy(steps, q->steps, n * sizeof *steps);
	q->n_ready = 0;
	for (uint32_t i = 0; i < n; i++) {
		steps[i]->job.started_ns = q->restore ? q->restore->started_ns : 0;
		steps[i]->job.ended_ns = board_now_ns();
		get_end(steps[i], status);
	}
}

/* What is not wanted any more, for a chunk before it is missing. */
static void drop_cut(struct request *q)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < q->n_ready; i++) {
		struct step *step = q->steps[i];

		if (step->chunk < q->n_chunks) {
			q->steps[n++] = step;
			continue;
		}
		q->n_active--;
		cache_release(q->daemon->cache, step->entry);
		q->n_unhanded -= step->unhanded;
		if (step->resident.bytes)
			resident_release(q->daemon->gpu, &step->resident);
		free(step);
	}
	q->n_ready = n;
}

/* Chunk by chunk by way of the host, from the start: frames of an older transform are among them, or there is
 * no room for so many at once. */
static void restore_otherwise(struct request *q)
{
	struct step *steps[DEVICE_BATCH_MAX];
	const uint32_t n = q->n_ready;

	memcpy(steps, q->steps, n * sizeof *steps);
	q->n_ready = 0;
	request_end_restore(q);
	q->next = 0;
	q->starting = true;
	for (uint32_t i = 0; i < n; i++) {
		cache_release(q->daemon->cache, steps[i]->entry);
		step_end(steps[i], 0);
	}
	q->starting = false;
	request_go_on(q);
}

static void restored(struct restore *r, int status)
{
	struct request *q = r->owner;
	bool any_bad = false;

	for (uint32_t i = 0; i < r->n; i++)
		if (r->decode[i].status == -EBADMSG || r->decode[i].status == -ESTALE) {
			get_damaged(q->steps[i], r->decode[i].status);
			request_cut(q, q->steps[i]->chunk, -EBADMSG);
			any_bad = true;
		}
	q->restoring = false;
	if (any_bad) {
		/* Those before it, once more. */
		drop_cut(q);
		if (q->n_ready)
			restore_steps(q);
		else
			request_go_on(q);
		return;
	}
	for (uint32_t i = 0;
		!status && !q->signals.n && q->sqe.flags & CISTERN_LAYERWISE && i + 1 < q->n_phases; i++)
		request_tell(q, q->phase_end[i]);
	if (status)
		request_cut(q, q->steps[0]->chunk, status);
	for (uint32_t i = 0; !status && i < r->n; i++) {
		struct image *image = restore_take_image(r, i);

		if (image)
			resident_fill(q->daemon->gpu, q->daemon->cache, q->steps[i]->entry, image);
	}
	end_steps(q, status);
}

static int restore_add_step(struct request *q, const struct step *step)
{
	const uint32_t first = step->chunk * q->daemon->config->chunk_tokens;
	const struct codec_chunk where = {.run = {.blocks = q->blocks,
						  .block_tokens = q->mapping->block_tokens,
						  .offset = q->sqe.block_offset + first},
		.n_tokens = request_chunk_tokens(q, step->chunk),
		.position = q->sqe.position + first};

	if (step->resident.bytes)
		return restore_add_image(q->restore, &where, step->resident.note, step->resident.at);
	return restore_add(q->restore, &where, cache_frame(step->entry), step->entry->frame_bytes);
}

static void restore_steps(struct request *q)
{
	const bool is_last = q->next >= q->n_chunks;
	struct restore *r;
	int status = 0;

	drop_cut(q);
	restore_free(q->restore);
	r = q->restore = restore_new(q->daemon->gpu->coders, q->mapping->device, &q->session->lane,
		&q->model->geometry, q->restore_transform, q->phase_end, q->n_phases);
	for (uint32_t i = 0; r && !status && i < q->n_ready; i++)
		status = restore_add_step(q, q->steps[i]);
	if (!r || status) {
		restore_otherwise(q);
		return;
	}
	r->group = q->signals.group;
	r->first_event = q->signals.first;
	r->n_events = is_last ? q->signals.n : 0;
	r->recorded = restore_told;
	r->done = restored;
	r->owner = q;
	q->restoring = true;
	restore_start(r);
}

void request_try_restore(struct request *q)
{
	const bool all_begun =
		q->next >= q->n_chunks || q->n_active == DEVICE_BATCH_MAX || q->session->closed;

	if (q->restore_transform && !q->restoring && all_begun && q->n_ready && q->n_ready == q->n_active)
		restore_steps(q);
}

/* Whether it is to be one, which the first chunk's transform does not tell yet. */
void request_choose_restore(struct request *q)
{
	const struct gpu *g = q->daemon->gpu;
	const struct transform *t = q->model->transform;

	if (!q->mapping->device || !g->coders || !t ||
		!restore_serves(q->mapping->device, &q->model->geometry, t, q->daemon->config->chunk_tokens))
		return;
	registry_hold(q->daemon->registry, t);
	q->restore_transform = t;
}
