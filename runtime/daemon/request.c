#include "runtime/daemon/request.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "policy/policy.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/device/chunk.h"
#include "runtime/daemon/device/gpu.h"
#include "runtime/daemon/device/resident.h"
#include "runtime/daemon/device/restore.h"
#include "runtime/daemon/device/signals.h"
#include "runtime/daemon/observe.h"
#include "runtime/daemon/shadow/fidelity.h"
#include "shm/cistern.h"

enum {
	/* Chunks of one request that may be on their way at once: enough to keep disk and workers busy. */
	WINDOW = 16,
	SUCCESSORS = 16,            /* that are looked for, to see whether the window has left a chunk */
	LAYERS_PER_PHASE_PLAIN = 8, /* of a layerwise GET, where no transform says which layers go together */
	PHASES_MAX = GEOMETRY_LAYERS_MAX,
	TRACED_NS = 10000, /* requests that took less leave no span */
};

struct request;

/* One chunk of a request on its way. */
struct step {
	struct job job; /* first of these two: a step is found from either */
	struct cache_wait wait;
	struct request *request;
	uint32_t chunk;
	struct index_entry *entry;
	int status;
	bool missing;
	uint8_t *frame; /* PUT: what the job made */
	size_t frame_bytes;
	struct frame_info info;
	const struct transform
		*transform;    /* GET: which the frame names; PUT: the model's, as it was then; held */
	struct sample *sample; /* PUT: to learn from; NULL: none */
	struct shadow *shadow; /* PUT: the original, to compare with; NULL: none */
	uint32_t n_class[BOARD_CLASSES]; /* PUT */
	struct plan plan;                /* PUT: what the policies make of the chunk */
	struct device_chunk *staged;     /* of memory on the GPU, while it is in the daemon's hands */
	bool unhanded;                   /* its copy from or to the GPU is still to be handed to the lane */
	/* PUT: as classified. on_device: the staged copy is encoded on the GPU. */
	uint8_t *classes; /* [n_tokens] */
	struct codec_options options;
	bool on_device;
	struct sinks_view view; /* what of the copy the host gets then */
	struct codec_chunk device_view;
	struct coder_put coder;
	struct image *image;        /* of the frame that was made so */
	struct tier_frame resident; /* GET: its image in the GPU's memory, held; bytes 0: none */
};

struct request {
	struct session *session;
	struct daemon *daemon;
	struct wire_sqe sqe;
	struct mapping *mapping;
	const struct model *model;
	uint8_t (*keys)[32]; /* [n_chunks] */
	uint8_t parent[32];
	uint64_t taken_bytes; /* of keys and blocks */
	uint32_t *blocks;
	uint32_t n_chunks; /* that are still wanted: a miss cuts it */
	uint32_t next;     /* chunk to start next */
	uint32_t n_active;
	uint32_t n_done; /* REMOVE: how many there were */
	int status;
	uint64_t bytes;
	uint32_t n_phases, phase;
	uint32_t phase_end[PHASES_MAX]; /* GET: layers [0, phase_end[i]) are complete after phase i */
	bool starting;
	struct cache_wait wait; /* SYNC */
	uint64_t serial, started_ns;
	struct observation *observation; /* OBSERVE */
	struct signals signals;          /* memory on the GPU */
	uint32_t n_unhanded;             /* steps */
	bool recorded;                   /* the phase's events are, or are about to be */
	struct restore *restore; /* GET that is decoded on the GPU; NULL: chunk by chunk, on the host */
	const struct transform *restore_transform; /* held with it */
	struct step *steps[DEVICE_BATCH_MAX]; /* whose frames are in the pool: they wait for each other */
	uint32_t n_ready;
	bool restoring;
};

static void go_on(struct request *q);

static void complete_now(struct session *s, const struct wire_sqe *sqe, int status, uint32_t n_chunks)
{
	const struct wire_cqe cqe = {.user_data = sqe->user_data, .status = status, .n_chunks = n_chunks};

	session_complete(s, &cqe);
	session_request_ended(s);
}

static struct stats_cache *stats_of(const struct request *q)
{
	return board_cache(q->daemon->board, q->session->name_space, q->model->fingerprint);
}

/* Counts it, and draws it into the trace unless it took no time, so that lookups do not push out all else. */
static void note_end(const struct request *q)
{
	const uint64_t ns = board_now_ns() - q->started_ns;

	if (q->model)
		board_request(stats_of(q), q->sqe.op, q->status, q->n_chunks, q->sqe.n_chunks, ns);
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

static void trace_job(const struct step *step, enum trace_name name, uint64_t bytes)
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

static void end_restore(struct request *q)
{
	q->restore = restore_free(q->restore);
	if (q->restore_transform)
		registry_release(q->daemon->registry, q->restore_transform);
	q->restore_transform = NULL;
}

static void request_end(struct request *q)
{
	struct session *s = q->session;
	const struct wire_cqe cqe = {.user_data = q->sqe.user_data,
		.status = q->status,
		.n_chunks = q->sqe.op == WIRE_REMOVE ? q->n_done : q->n_chunks,
		.n_layers = q->sqe.op == WIRE_GET && !q->status ? q->model->geometry.n_layers : 0,
		.bytes = q->bytes};

	note_end(q);
	mapping_unref(q->mapping);
	end_restore(q);
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

static void chunk_id(const struct request *q, uint32_t chunk, struct index_key *out)
{
	index_key_make(out, q->session->name_space, q->model->fingerprint, q->keys[chunk]);
}

static uint32_t chunk_tokens(const struct request *q, uint32_t chunk)
{
	const uint32_t size = q->daemon->config->chunk_tokens;
	const uint32_t left = q->sqe.n_tokens - chunk * size;

	return left < size ? left : size;
}

/* The chunk where it lies in the client's memory, or in the copy of what lies on the GPU. */
static struct codec_chunk chunk_of(const struct step *step)
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
		.n_tokens = chunk_tokens(q, chunk),
		.position = q->sqe.position + first};
}

/* The request is as good as its first bad chunk. */
static void cut(struct request *q, uint32_t chunk, int status)
{
	if (chunk >= q->n_chunks)
		return;
	q->n_chunks = chunk;
	q->status = status;
}

static void step_end(struct step *step, int status)
{
	struct request *q = step->request;

	if (status)
		cut(q, step->chunk, status);
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
	go_on(q);
}

static struct step *step_new(struct request *q, uint32_t chunk)
{
	struct step *step = calloc(1, sizeof *step);

	if (!step) {
		cut(q, chunk, -ENOMEM);
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
static void use_transform(struct step *step, const struct transform *t)
{
	step->transform = t;
	if (t)
		registry_hold(step->request->daemon->registry, t);
}

static struct step *step_of_wait(struct cache_wait *wait)
{
	return (struct step *)((char *)wait - offsetof(struct step, wait));
}

/* ---- memory on the GPU: a step goes by way of a copy, and events are recorded behind the copying ---- */

static void tell(struct request *q, uint32_t n_layers)
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
		cut(q, 0, status);
	else
		tell(q, q->sqe.op == WIRE_GET ? q->phase_end[q->phase] : 0);
	q->n_active--;
	go_on(q);
}

/* Once all of the phase is with the lane: what is recorded now comes behind it. */
static void record_events(struct request *q)
{
	const uint32_t n = q->signals.n;
	const bool is_last = q->sqe.op == WIRE_PUT || q->phase + 1 == q->n_phases;
	const uint32_t from = q->phase < n ? q->phase : n - 1;

	if (!n || q->recorded || q->restore || q->n_unhanded || q->next < q->n_chunks || q->session->closed ||
		(!q->n_chunks && (q->status || q->sqe.op == WIRE_GET)))
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
	record_events(step->request);
}

static int stage(struct step *step)
{
	struct request *q = step->request;
	const uint32_t first = step->chunk * q->daemon->config->chunk_tokens;
	const struct device_tokens tokens = {.geometry = &q->model->geometry,
		.run = {.blocks = q->blocks,
			.block_tokens = q->mapping->block_tokens,
			.offset = q->sqe.block_offset + first},
		.n_tokens = chunk_tokens(q, step->chunk),
		.position = q->sqe.position + first,
		.n_planes = q->model->geometry.n_layers * q->model->geometry.n_planes};

	step->staged = device_chunk_new(q->daemon->gpu, q->mapping->device, &q->session->lane, &tokens);
	if (!step->staged)
		return -ENOMEM;
	step->staged->owner = step;
	step->staged->handed = handed;
	return 0;
}

static void is_ready(struct signals *g, int status)
{
	struct request *q = (struct request *)((char *)g - offsetof(struct request, signals));

	if (status)
		cut(q, 0, status);
	go_on(q);
}

/* ---- PUT ---- */

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
	const struct codec_chunk chunk = chunk_of(step);
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
		board_encoded(
			stats_of(q), &step->info, step->n_class, step->job.ended_ns - step->job.started_ns);
		steward_put(q->daemon->steward, step->entry, q->sqe.preset, step->info.position,
			step->n_class[TOKEN_WINDOW], q->sqe.position + q->sqe.n_tokens);
		if (step->image) {
			resident_fill(q->daemon->gpu, q->daemon->cache, step->entry, step->image);
			step->image = NULL;
		}
		cache_release(q->daemon->cache, step->entry);
	}
	step_end(step, status);
}

static void put_done(struct job *job);

static void put_copied(struct device_chunk *c, int status)
{
	struct step *step = c->owner;

	step->status = status;
	if (status)
		put_done(&step->job);
	else
		workers_submit(step->request->daemon->workers, &step->job);
}

static void put_coded(struct coder_put *p)
{
	struct step *step = (struct step *)((char *)p - offsetof(struct step, coder));

	step->on_device = false;
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
				.done = put_coded};
		coders_put(q->daemon->gpu->coders, &step->coder);
		return;
	}
	trace_job(step, TRACE_ENCODE, step->frame_bytes);
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

/* Encoded on the GPU, a chunk need not cross the bus: the host sees the layers that are searched for sinks,
 * unless it is to learn from it. */
static void choose_device(struct step *step)
{
	const struct request *q = step->request;

	step->on_device = q->daemon->gpu->coders && device_codec_serves(&q->model->geometry, step->transform,
							    NULL, step->staged->n_tokens);
	if (!step->on_device || step->sample || step->shadow)
		return;
	sinks_view_init(&step->view, &q->model->geometry);
	step->staged->layers = step->view.layers;
	step->staged->n_layers = step->view.n_layers;
}

static void put_start(struct request *q, uint32_t chunk)
{
	struct cache *cache = q->daemon->cache;
	struct index_key id;
	struct step *step;

	chunk_id(q, chunk, &id);
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
	use_transform(step, q->model->transform);
	step->sample = learn_sample(q->daemon->learn, q->model, chunk_tokens(q, chunk));
	step->shadow = fidelity_lend(q->daemon->fidelity, q->session, q->model, &id, chunk_tokens(q, chunk));
	governor_plan(q->daemon->governor, q->session->tenant, q->model, step->transform, &id,
		chunk_tokens(q, chunk), q->sqe.preset, &step->plan);
	step->job.run = put_run;
	step->job.done = put_done;
	if (!q->mapping->device) {
		workers_submit(q->daemon->workers, &step->job);
		return;
	}
	step->status = stage(step);
	if (step->status) {
		put_done(&step->job);
		return;
	}
	choose_device(step);
	device_chunk_gather(step->staged, put_copied);
}

/* ---- GET and PREFETCH ---- */

static void get_run(struct job *job, struct codec *codec)
{
	struct step *step = (struct step *)job;
	const struct request *q = step->request;
	const struct codec_chunk chunk = chunk_of(step);
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
		chunk_id(q, n, &id);
		if (!cache_peek(q->daemon->cache, &id))
			break;
	}
	return q->sqe.position + (uint64_t)(n - 1) * q->daemon->config->chunk_tokens + chunk_tokens(q, n - 1);
}

/* A chunk that was the end of its sequence once may have been passed over when it was that no longer. */
static void tell_steward(const struct request *q, const struct step *step)
{
	if (!step->entry->settled && !step->entry->dead)
		steward_read(q->daemon->steward, step->entry,
			q->sqe.position + (uint64_t)step->chunk * q->daemon->config->chunk_tokens +
				chunk_tokens(q, step->chunk),
			kept_until(q, step->chunk));
}

/* The tokens are where they belong, or cannot be had. */
static void get_end(struct step *step, int status)
{
	struct request *q = step->request;

	if (!status)
		board_decoded(stats_of(q), step->entry->raw_bytes, step->entry->frame_bytes, !q->phase,
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

static void get_damaged(struct step *step, int status);

static void get_done(struct job *job)
{
	struct step *step = (struct step *)job;
	struct request *q = step->request;
	int status = step->status;

	trace_job(step, TRACE_DECODE, step->entry->frame_bytes);
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

/* ---- GET on the GPU: chunks wait for each other, and are restored together ---- */

static void restore_steps(struct request *q);

static void get_damaged(struct step *step, int status)
{
	struct cache *cache = step->request->daemon->cache;

	stats_of(step->request)->damaged++;
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
			tell(q, q->phase_end[i]);
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
	end_restore(q);
	q->next = 0;
	q->starting = true;
	for (uint32_t i = 0; i < n; i++) {
		cache_release(q->daemon->cache, steps[i]->entry);
		step_end(steps[i], 0);
	}
	q->starting = false;
	go_on(q);
}

static void restored(struct restore *r, int status)
{
	struct request *q = r->owner;
	bool any_bad = false;

	for (uint32_t i = 0; i < r->n; i++)
		if (r->decode[i].status == -EBADMSG || r->decode[i].status == -ESTALE) {
			get_damaged(q->steps[i], r->decode[i].status);
			cut(q, q->steps[i]->chunk, -EBADMSG);
			any_bad = true;
		}
	q->restoring = false;
	if (any_bad) {
		/* Those before it, once more. */
		drop_cut(q);
		if (q->n_ready)
			restore_steps(q);
		else
			go_on(q);
		return;
	}
	for (uint32_t i = 0;
		!status && !q->signals.n && q->sqe.flags & CISTERN_LAYERWISE && i + 1 < q->n_phases; i++)
		tell(q, q->phase_end[i]);
	if (status)
		cut(q, q->steps[0]->chunk, status);
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
		.n_tokens = chunk_tokens(q, step->chunk),
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

static void try_restore(struct request *q)
{
	const bool all_begun =
		q->next >= q->n_chunks || q->n_active == DEVICE_BATCH_MAX || q->session->closed;

	if (q->restore && !q->restoring && all_begun && q->n_ready && q->n_ready == q->n_active)
		restore_steps(q);
}

/* Whether it is to be one, which the first chunk's transform does not tell yet. */
static void choose_restore(struct request *q)
{
	const struct gpu *g = q->daemon->gpu;
	const struct transform *t = q->model->transform;

	if (!q->mapping->device || !g->coders || !t ||
		!restore_serves(q->mapping->device, &q->model->geometry, t, q->daemon->config->chunk_tokens))
		return;
	q->restore = restore_new(g->coders, q->mapping->device, &q->session->lane, &q->model->geometry, t,
		q->phase_end, q->n_phases);
	if (q->restore) {
		registry_hold(q->daemon->registry, t);
		q->restore_transform = t;
	}
}

static void get_fetched(struct cache_wait *wait, int status)
{
	static const uint8_t plain[16] = {0};
	struct step *step = step_of_wait(wait);
	struct request *q = step->request;
	struct frame_info info;

	if (!status && q->restore && !q->session->closed) {
		q->steps[q->n_ready++] = step;
		go_on(q);
		return;
	}
	if (!status && q->sqe.op == WIRE_GET && !q->session->closed) {
		status = frame_parse(cache_frame(step->entry), step->entry->frame_bytes, &info, NULL, 0);
		if (!status)
			use_transform(step, registry_transform(q->daemon->registry, info.transform));
		/* A frame whose transform is not loaded is one that we cannot read: the client's miss. */
		if (!status && !step->transform && memcmp(info.transform, plain, 16) != 0) {
			cache_release(q->daemon->cache, step->entry);
			cut(q, step->chunk, 0);
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
		} else if (stage(step)) {
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

static void get_start(struct request *q, uint32_t chunk)
{
	struct index_key id;
	struct step *step;
	struct index_entry *e;

	chunk_id(q, chunk, &id);
	e = cache_find(q->daemon->cache, &id);
	if (!e) {
		cut(q, chunk, 0);
		return;
	}
	step = step_new(q, chunk);
	if (!step)
		return;
	step->entry = e;
	step->wait.fn = get_fetched;
	cache_hold(e);
	if (q->restore && resident_find(q->daemon->gpu, q->daemon->cache, e, &step->resident))
		get_fetched(&step->wait, 0);
	else
		cache_fetch(q->daemon->cache, e, &step->wait);
}

/* Where a layerwise GET may stop: after layers that no part reaches across; without parts anywhere, and then
 * as often as there are events. */
static void find_phases(struct request *q)
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

	chunk_id(q, chunk, &id);
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
static void go_on(struct request *q)
{
	if (q->starting)
		return;
	for (;;) {
		q->starting = true;
		while (q->next < q->n_chunks && q->n_active < (q->restore ? DEVICE_BATCH_MAX : WINDOW) &&
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
		record_events(q);
		if (q->n_active) {
			try_restore(q);
			return;
		}
		if (q->session->closed || q->sqe.op != WIRE_GET || !q->n_chunks || q->restore ||
			q->phase + 1 == q->n_phases)
			break;
		if (!q->signals.n)
			tell(q, q->phase_end[q->phase]);
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

		chunk_id(q, 0, &id);
		q->n_chunks = (uint32_t)cache_look(
			q->daemon->cache, id.owner, (const uint8_t(*)[32])q->keys, q->n_chunks);
		request_end(q);
		return;
	}
	for (; n < q->n_chunks && !q->status; n++) {
		struct index_key id;
		struct index_entry *e;

		chunk_id(q, n, &id);
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
			find_phases(q);
			choose_restore(q);
		}
		signals_await(&q->signals, is_ready);
	}
}
