#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/request/internal.h"
#include "policy/policy.h"
#include "runtime/daemon/device/gpu.h"
#include "runtime/daemon/device/resident.h"
#include "runtime/daemon/shadow/fidelity.h"

/* Which tokens encoding has found salient or redundant is in the frame alone. */
static void count_ranked(struct step *step)
{
	uint8_t classes[FRAME_TOKENS_MAX];

	if (frame_classes(step->frame, step->frame_bytes, classes))
		return;
	for (uint32_t i = 0; i < step->info.n_tokens; i++)
		if (classes[i] == TOKEN_SALIENT || classes[i] == TOKEN_REDUNDANT) {
			step->n_class[classes[i]]++;
			step->n_class[TOKEN_PLAIN]--;
		}
}

/* Classes and options, once: an encoding on the GPU that fails is done again by the host's codec. */
static int put_classify(struct step *step, const struct codec_chunk *chunk)
{
	const struct request *q = step->request;
	int r;

	step->classes = malloc(chunk->n_tokens);
	if (!step->classes)
		return -ENOMEM;
	step->options = (struct codec_options){.transform = step->transform, .classes = step->classes};
	codec_follow(&step->options, step->plan.policy, step->plan.rate.rung);
	memcpy(step->options.name_space, q->session->name_space, 16);
	memcpy(step->options.key, q->keys[step->chunk], 32);
	memcpy(step->options.parent, step->chunk ? q->keys[step->chunk - 1] : q->parent, 32);
	r = plan_classify(&step->plan, chunk, q->sqe.position + q->sqe.n_tokens, step->classes);
	for (uint32_t i = 0; !r && i < chunk->n_tokens; i++)
		step->n_class[step->classes[i] % BOARD_CLASSES]++;
	return r;
}

static void put_run(struct job *job, struct codec *codec)
{
	struct step *step = (struct step *)job;
	const struct kernels *kernels = step->request->daemon->kernels;
	const struct codec_chunk chunk = step_chunk(step);
	const bool is_first = !step->classes;

	step->status = codec ? 0 : -ENOMEM;
	if (!step->status && is_first)
		step->status = put_classify(step, &chunk);
	if (step->status)
		return;
	if (!step->on_device)
		step->status = codec_encode(
			codec, &chunk, &step->options, &step->frame, &step->frame_bytes, &step->info);
	if (!step->on_device && !step->status && step->options.rank)
		count_ranked(step);
	if (!is_first)
		return;
	if (!step->status && step->sample)
		sample_fill(step->sample, kernels, &chunk, step->classes);
	if (!step->status && step->shadow)
		shadow_fill(step->shadow, kernels, &chunk);
	plan_learn(&step->plan, &chunk);
}

static void put_filled(struct cache_wait *wait, int status)
{
	struct step *step = step_of_wait(wait);
	struct request *q = step->request;
	struct daemon_counters *n = &q->daemon->counters;

	if (status) {
		cache_abandon(q->daemon->cache, step->entry);
	} else {
		n->n_put_chunks++;
		n->put_frame_bytes += step->frame_bytes;
		n->put_raw_bytes += step->info.raw_bytes;
		n->put_raw_section_bytes += step->info.raw_section_bytes;
		q->bytes += step->frame_bytes;
		board_encoded(request_stats(q), &step->info, step->n_class,
			step->job.ended_ns - step->job.started_ns);
		steward_put(q->daemon->steward, step->entry, q->sqe.preset, step->info.position,
			step->n_class[TOKEN_WINDOW], q->sqe.position + q->sqe.n_tokens);
		if (step->image && step->resident.bytes)
			resident_keep(q->daemon->gpu, &step->resident, step->image);
		else if (step->image)
			resident_fill(q->daemon->gpu, q->daemon->cache, step->entry, step->image);
		step->image = NULL;
		cache_release(q->daemon->cache, step->entry);
	}
	step_end(step, status);
}

static void put_done(struct job *job);

/* The host's copy has what it is to have. */
static void put_copied(struct device_chunk *c, int status)
{
	struct step *step = c->owner;
	struct gpu *g = step->request->daemon->gpu;

	step->status = status;
	if (status) {
		put_done(&step->job);
		return;
	}
	if (step->on_device && step->view.n_layers && (!c->layers || c->n_layers)) {
		g->search.n_copied++;
		g->search.to_host_bytes += device_chunk_host_bytes(c);
	}
	workers_submit(step->request->daemon->workers, &step->job);
}

/* ---- the search for sinks, from statistics ---- */

static void put_measured(struct device_chunk *c, int status)
{
	struct step *step = c->owner;
	struct gpu *g = step->request->daemon->gpu;

	if (status) {
		/* Then the host computes them, of a copy. */
		c->layers = NULL;
		device_chunk_fetch(c, put_copied);
		return;
	}
	g->search.n_measured++;
	g->search.to_host_bytes += step->statistics.down_bytes;
	g->search.to_device_bytes += step->statistics.up_bytes;
	step->given = device_chunk_statistics(c);
	step->plan.given = &step->given;
	put_copied(c, 0);
}

static void put_gathered(struct device_chunk *c, int status)
{
	struct step *step = c->owner;

	if (status)
		put_copied(c, status);
	else
		device_chunk_measure(c, step->request->daemon->kernels, put_measured);
}

static struct step *step_of_coder(struct coder_put *p)
{
	return (struct step *)((char *)p - offsetof(struct step, coder));
}

static void put_begins(struct coder_put *p)
{
	struct step *step = step_of_coder(p);
	struct daemon *d = step->request->daemon;

	resident_reserve(d->gpu, d->cache, step->entry, &p->encode, &step->resident);
}

static void put_coded(struct coder_put *p)
{
	struct step *step = step_of_coder(p);

	step->on_device = false;
	resident_encoded(step->request->daemon->gpu, &p->encode, &step->resident);
	if (p->encode.status) {
		/* What the GPU cannot do, the host can. */
		if (step->staged->layers)
			device_chunk_fetch(step->staged, put_copied);
		else
			workers_submit(step->request->daemon->workers, &step->job);
		return;
	}
	step->frame = p->encode.frame;
	step->frame_bytes = p->encode.len;
	step->info = p->encode.info;
	step->image = p->encode.image;
	step->job.started_ns = p->started_ns;
	step->job.ended_ns = p->ended_ns;
	put_done(&step->job);
}

static void put_done(struct job *job)
{
	struct step *step = (struct step *)job;
	struct request *q = step->request;
	struct index_entry *e = step->entry;
	struct store_record what = {0};

	if (step->on_device && !step->status) {
		step->device_view = device_chunk_view(step->staged);
		step->device_view.pages = step->staged->device_pages;
		step->coder =
			(struct coder_put){.encode = {.chunk = &step->device_view, .options = &step->options},
				.begins = put_begins,
				.done = put_coded};
		coders_put(q->daemon->gpu->coders, &step->coder);
		return;
	}
	step_trace(step, TRACE_ENCODE, step->frame_bytes);
	step->staged = device_chunk_free(step->staged);
	if (step->sample)
		learn_take(q->daemon->learn, step->sample);
	if (step->shadow)
		fidelity_take(q->daemon->fidelity, step->shadow, step->status ? NULL : step->frame,
			step->frame_bytes);
	if (step->status) {
		cache_abandon(q->daemon->cache, e);
		step_end(step, step->status);
		return;
	}
	governor_note(q->daemon->governor, &step->plan, &step->info);
	memcpy(what.parent, step->info.parent, 32);
	memcpy(what.name_space, step->info.name_space, 16);
	memcpy(what.fingerprint, step->info.fingerprint, 16);
	memcpy(what.transform, step->info.transform, 16);
	what.n_tokens = step->info.n_tokens;
	what.position = step->info.position;
	what.raw_bytes = step->info.raw_bytes;
	step->wait.fn = put_filled;
	cache_fill(q->daemon->cache, e, &what, step->frame, step->frame_bytes, &step->wait);
}

/* Encoded on the GPU, a chunk need not cross the bus. For the search for sinks the host gets statistics of
 * some layers; or these layers, when it learns from them what tokens are like, and all when there is more to
 * learn from the chunk. */
static void choose_device(struct step *step)
{
	const struct request *q = step->request;
	const enum plan_need need = plan_needs(&step->plan);
	struct device_chunk *staged = step->staged;

	step->on_device = q->daemon->gpu->coders &&
			  device_codec_serves(&q->model->geometry, step->transform, NULL, staged->n_tokens);
	if (!step->on_device || step->sample || step->shadow)
		return;
	sinks_view_init(&step->view, &q->model->geometry);
	staged->layers = step->view.layers;
	if (need == PLAN_STATISTICS) {
		device_statistics_init(
			&step->statistics, &q->model->geometry, step->plan.detector, staged->n_tokens);
		if (device_statistics_save(&step->statistics) &&
			device_chunk_want_statistics(staged, &step->statistics))
			return;
	}
	staged->n_layers = need == PLAN_NOTHING ? 0 : step->view.n_layers;
}

void put_start(struct request *q, uint32_t chunk)
{
	struct cache *cache = q->daemon->cache;
	struct index_key id;
	struct step *step;

	request_chunk_id(q, chunk, &id);
	/* One that somebody else is putting now counts as kept: its key says that it is the same. */
	if (cache_peek(cache, &id) || cache_is_reserved(cache, &id))
		return;
	step = step_new(q, chunk);
	if (!step)
		return;
	step->entry = cache_reserve(cache, &id);
	if (!step->entry) {
		step_end(step, -ENOMEM);
		return;
	}
	step_use_transform(step, q->model->transform);
	step->sample = learn_sample(q->daemon->learn, q->model, request_chunk_tokens(q, chunk));
	step->shadow =
		fidelity_lend(q->daemon->fidelity, q->session, q->model, &id, request_chunk_tokens(q, chunk));
	governor_plan(q->daemon->governor, q->session->tenant, q->model, step->transform, &id,
		request_chunk_tokens(q, chunk), q->sqe.preset, &step->plan);
	step->job.run = put_run;
	step->job.done = put_done;
	if (!q->mapping->device) {
		workers_submit(q->daemon->workers, &step->job);
		return;
	}
	step->status = step_stage(step);
	if (step->status) {
		put_done(&step->job);
		return;
	}
	choose_device(step);
	device_chunk_gather(step->staged, step->staged->statistics ? put_gathered : put_copied);
}
