#include "runtime/daemon/observe.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/formula.h"
#include "policy/sinks/observe.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/device/chunk.h"
#include "runtime/daemon/shadow/fidelity.h"

enum { QUERIES_MAX = 65536 };

/* Bytes that follow the header; 0: the header does not add up. */
static uint64_t wanted_bytes(const struct observation *o)
{
	const struct wire_observation *h = &o->head;
	const struct geometry *g = &o->model->geometry;
	const struct plane *p = &g->planes[0];
	uint64_t n;

	if (!h->n_queries || h->n_queries > QUERIES_MAX || h->n_queries > o->n_tokens)
		return 0;
	if (h->kind == WIRE_SUMS)
		return (uint64_t)o->n_tokens * sizeof(float);
	if (h->kind != WIRE_QUERIES || !h->n_heads || h->n_heads > GEOMETRY_HEADS_MAX ||
		h->n_heads % p->n_heads || !h->n_layers || h->first_layer >= g->n_layers ||
		h->n_layers > g->n_layers - h->first_layer || !(h->scale >= 0 && h->scale < 1e6f))
		return 0;
	/* All factors are bounded: no product can pass 2^64. */
	n = (uint64_t)h->n_layers * h->n_queries * h->n_heads;
	if (__builtin_mul_overflow(n, (uint64_t)p->dim * dtype_bytes(p->dtype), &n))
		return 0;
	return n + h->n_queries * sizeof(uint32_t);
}

static bool positions_rise(const struct observation *o)
{
	uint32_t last = 0;

	for (uint32_t i = 0; i < o->head.n_queries; i++) {
		uint32_t position;

		memcpy(&position, o->data + i * sizeof position, sizeof position);
		if (position >= o->n_tokens || (i && position <= last))
			return false;
		last = position;
	}
	return true;
}

int observation_take(struct observation *o, const struct session *s, uint64_t data_off)
{
	const uint64_t room = s->segment.arena_bytes;
	uint64_t wanted;

	if (data_off > room || room - data_off < sizeof o->head)
		return -EINVAL;
	memcpy(&o->head, s->segment.arena + data_off, sizeof o->head);
	wanted = wanted_bytes(o);
	if (!wanted || wanted > room - data_off - sizeof o->head)
		return -EINVAL;
	o->data = malloc(wanted);
	o->observed.drawing = malloc(3 * (size_t)o->n_tokens * sizeof(float));
	if (!o->data || !o->observed.drawing)
		return -ENOMEM;
	o->observed.resting = o->observed.drawing + o->n_tokens;
	o->observed.asked = o->observed.resting + o->n_tokens;
	memcpy(o->data, s->segment.arena + data_off + sizeof o->head, wanted);
	o->data_bytes = wanted;
	return o->head.kind == WIRE_QUERIES && !positions_rise(o) ? -EINVAL : 0;
}

/* ---- on a worker ---- */

static float element(const uint8_t *at, uint32_t dtype)
{
	uint16_t half;
	float x;

	if (dtype == DTYPE_F32) {
		memcpy(&x, at, sizeof x);
		return x;
	}
	memcpy(&half, at, sizeof half);
	return dtype == DTYPE_F16 ? f16_to_f32(half) : bf16_to_f32(half);
}

/* The queries of one layer, [n_queries, n_heads, dim], over the sequence's keys there. */
static int judge_layer(struct observation *o, uint32_t l)
{
	const struct wire_observation *h = &o->head;
	const struct plane *p = &o->model->geometry.planes[0];
	const uint32_t n_planes = o->model->geometry.n_planes;
	const struct kv_run mapped = {o->blocks, o->mapping->block_tokens, o->block_offset};
	const size_t layer = (size_t)h->n_queries * h->n_heads * p->dim, es = dtype_bytes(p->dtype);
	const uint8_t *from = o->data + h->n_queries * sizeof(uint32_t) + l * layer * es;
	const struct codec_chunk staged = o->staged ? device_chunk_view(o->staged) : (struct codec_chunk){0};
	float *values = malloc(layer * sizeof *values);
	uint64_t *positions = malloc(h->n_queries * sizeof *positions);
	int r = values && positions ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < h->n_queries && !r; i++) {
		uint32_t position;

		memcpy(&position, o->data + i * sizeof position, sizeof position);
		positions[i] = position;
	}
	if (!r) {
		const struct detection_queries q = {.n_queries = h->n_queries,
			.n_heads = h->n_heads,
			.positions = positions,
			.scale = observation_scale(h, p->dim),
			.values = values};

		for (size_t i = 0; i < layer; i++, from += es)
			values[i] = element(from, p->dtype);
		r = detection_observe(o->detection, p,
			o->staged ? staged.pages
				  : &o->mapping->pages[(size_t)(h->first_layer + l) * n_planes],
			o->staged ? &staged.run : &mapped, o->n_tokens, o->daemon->config->chunk_tokens, &q,
			&o->observed);
	}
	free(values);
	free(positions);
	return r;
}

/* Chunks that end before the first of the queries: what these give to tokens of their own chunk says more of
 * how near they are. */
static void judge_sums(struct observation *o)
{
	const uint32_t size = o->daemon->config->chunk_tokens;
	const uint32_t first = o->n_tokens - o->head.n_queries;

	for (uint32_t t = 0; t < first / size * size; t++) {
		float sum;

		memcpy(&sum, o->data + t * sizeof sum, sizeof sum);
		sum = observe_sum(sum, o->head.n_queries, o->n_tokens);
		o->observed.drawing[t] = o->observed.resting[t] = o->observed.asked[t] = sum;
	}
}

/* Too little to say anything yet, or no memory: what was known stays. */
static int teach_chunk(struct observation *o, uint32_t c)
{
	const uint32_t size = o->daemon->config->chunk_tokens;
	const struct codec_chunk chunk =
		o->staged ? device_chunk_view(o->staged)
			  : (struct codec_chunk){.geometry = &o->model->geometry,
				    .pages = o->mapping->pages,
				    .run = {o->blocks, o->mapping->block_tokens, o->block_offset + c * size},
				    .n_tokens = size,
				    .position = (uint64_t)c * size};

	return detection_learn(o->detection, &chunk, o->learner, o->observed.resting + c * size);
}

static void begin(struct observation *o)
{
	for (size_t t = 0; t < 3 * (size_t)o->n_tokens; t++)
		o->observed.drawing[t] = NAN;
	if (o->head.kind == WIRE_SUMS)
		judge_sums(o);
	fidelity_fill(o);
}

static void count_judged(struct observation *o)
{
	const uint32_t size = o->daemon->config->chunk_tokens;

	while ((o->n_judged + 1) * size <= o->n_tokens && !isnan(o->observed.resting[o->n_judged * size]))
		o->n_judged++;
}

static void make_detector(struct observation *o)
{
	sinks_learner_detector(o->learner, o->mistaken_max, log(o->multiple), &o->learned);
}

static void run_all(struct observation *o)
{
	int r = 0;

	begin(o);
	for (uint32_t l = 0; o->head.kind == WIRE_QUERIES && l < o->head.n_layers && !o->status; l++)
		o->status = judge_layer(o, l);
	if (o->status)
		return;
	count_judged(o);
	for (uint32_t c = 0; o->learner && c < o->n_judged && !r; c++)
		r = teach_chunk(o, c);
	if (o->learner && !r)
		make_detector(o);
}

static void run(struct job *job, struct codec *codec)
{
	struct observation *o = (struct observation *)job;

	(void)codec;
	if (!o->detection) {
		o->status = -ENOMEM; /* picks are not filled, and with a status not used */
		return;
	}
	switch (o->piece) {
	case OBSERVE_ALL: run_all(o); break;
	case OBSERVE_SUMS: begin(o); break;
	case OBSERVE_LAYER: o->status = judge_layer(o, o->next_layer++); break;
	case OBSERVE_COUNT: count_judged(o); break;
	case OBSERVE_CHUNK:
		/* After one that could not be learned from, none is. */
		o->next_chunk = teach_chunk(o, o->next_chunk) ? UINT32_MAX : o->next_chunk + 1;
		break;
	case OBSERVE_END: make_detector(o); break;
	}
}

/* ---- on the front thread ---- */

static void finish(struct observation *o)
{
	struct governor *g = o->daemon->governor;
	const uint32_t size = o->daemon->config->chunk_tokens;

	for (uint32_t c = 0; c < o->n_judged && !o->status; c++) {
		struct index_key id;

		index_key_make(&id, o->name_space, o->model->fingerprint, o->keys[c]);
		governor_saw(g, &id, o->observed.drawing + c * size, o->observed.asked + c * size, size);
	}
	if (o->learner)
		governor_take_lesson(g, o->model, o->learner, o->learned);
	governor_return_detection(g, o->detection);
	fidelity_observed(o->daemon->fidelity, o);
	o->done(o);
}

static void go_on(struct observation *o);

static void piece_done(struct job *job)
{
	struct observation *o = (struct observation *)job;

	o->staged = device_chunk_free(o->staged);
	if (o->status || o->piece == OBSERVE_ALL || o->piece == OBSERVE_END)
		finish(o);
	else
		go_on(o);
}

static void piece_gathered(struct device_chunk *c, int status)
{
	struct observation *o = c->owner;

	o->status = status;
	if (status)
		piece_done(&o->job);
	else
		workers_submit(o->daemon->workers, &o->job);
}

/* OBSERVE_ALL: there is none. */
static enum observation_piece next_piece(const struct observation *o)
{
	if (o->piece == OBSERVE_SUMS || o->piece == OBSERVE_LAYER)
		return o->head.kind == WIRE_QUERIES && o->next_layer < o->head.n_layers ? OBSERVE_LAYER
											: OBSERVE_COUNT;
	if (!o->learner || o->next_chunk == UINT32_MAX)
		return OBSERVE_ALL;
	return o->next_chunk < o->n_judged ? OBSERVE_CHUNK : OBSERVE_END;
}

/* The next piece of an observation of memory on the GPU; what it reads is gathered first. */
static void go_on(struct observation *o)
{
	const struct geometry *g = &o->model->geometry;
	const uint32_t size = o->daemon->config->chunk_tokens;
	struct device_tokens tokens = {.geometry = g,
		.run = {o->blocks, o->mapping->block_tokens, o->block_offset},
		.n_tokens = o->n_tokens,
		.n_planes = 1};

	o->piece = next_piece(o);
	if (o->piece == OBSERVE_ALL) {
		finish(o);
		return;
	}
	if (o->piece == OBSERVE_COUNT || o->piece == OBSERVE_END) {
		workers_submit(o->daemon->workers, &o->job);
		return;
	}
	if (o->piece == OBSERVE_LAYER) {
		tokens.first_plane = (o->head.first_layer + o->next_layer) * g->n_planes;
	} else {
		tokens.run.offset += o->next_chunk * size;
		tokens.n_tokens = size;
		tokens.position = (uint64_t)o->next_chunk * size;
		tokens.n_planes = g->n_layers * g->n_planes;
	}
	o->staged = device_chunk_new(o->daemon->gpu, o->mapping->device, o->lane, &tokens);
	if (!o->staged) {
		o->status = -ENOMEM;
		finish(o);
		return;
	}
	o->staged->owner = o;
	device_chunk_gather(o->staged, piece_gathered);
}

void observation_start(struct observation *o)
{
	struct governor *g = o->daemon->governor;
	const struct policy *p = &policies_of(o->daemon->policies, o->name_space)->policy[0];

	o->detection = governor_lend_detection(g);
	o->learner = governor_lend_learner(g, o->model);
	o->mistaken_max = p->sink_budget;
	o->multiple = p->sink_multiple;
	fidelity_pick(o->daemon->fidelity, o);
	o->job.run = run;
	o->job.done = piece_done;
	o->piece = o->mapping->device ? OBSERVE_SUMS : OBSERVE_ALL;
	workers_submit(o->daemon->workers, &o->job);
}

void observation_fini(struct observation *o)
{
	free(o->data);
	free(o->observed.drawing);
}
