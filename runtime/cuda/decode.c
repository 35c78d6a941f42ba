/*
 * Images into an engine's pages. First every stream's levels, for a chunk alone has too few streams to keep
 * a device busy; then, phase by phase, the products, which write to the pages.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cuda/codec-internal.h"

struct decoder {
	struct device_codec *codec;
	const struct geometry *geometry;
	const struct device_transform *t;
	struct device_decode *batch;
	size_t n;
	const struct device_phase *phases;
	size_t n_phases;
	struct codec_device_chunk *chunks; /* in the post, as all that follows */
	struct codec_device_block *blocks; /* by phase, then chunk, then part */
	struct codec_device_stream *streams;
	struct codec_raw_job *jobs;
	CUdeviceptr chunks_at, blocks_at, streams_at, jobs_at;
	uint32_t n_streams, n_jobs;
	uint32_t tokens_max, coded_max, raw_max;
};

/* By way of pinned memory, which is waited for when it is full. */
static int send_image(
	struct device_codec *c, const struct image *image, const void *frame, size_t len, CUdeviceptr to)
{
	uint8_t *bytes = pinned_take(c, image->len_bytes + 1);
	int r = 0;

	if (!bytes) {
		r = device_codec_wait(c);
		c->pinned_used = c->pinned_kept;
		bytes = pinned_take(c, image->len_bytes + 1);
	}
	if (!r)
		r = bytes ? image_fill(image, frame, len, bytes) : -ENOSPC;
	return r ? r : device_status(c->driver->cuMemcpyHtoDAsync(to, bytes, image->len_bytes, c->stream));
}

static int take_bytes(struct decoder *d, const struct device_decode *from, CUdeviceptr *at)
{
	if (from->image_at) {
		*at = from->image_at;
		return 0;
	}
	*at = arena_take(&d->codec->arena, from->image->len_bytes + 1);
	return *at ? send_image(d->codec, from->image, from->frame, from->len, *at) : -ENOSPC;
}

static int add_chunk(struct decoder *d, uint32_t number)
{
	struct device_decode *from = &d->batch[number];
	struct codec_device_chunk *chunk = &d->chunks[number];
	const struct image *image = from->image;
	CUdeviceptr bytes;
	int r;

	if (image->info.position != from->chunk->position || image->info.n_tokens != from->chunk->n_tokens)
		return -ESTALE;
	r = device_codec_chunk(d->codec, d->t, from->chunk, chunk);
	if (!r)
		r = device_codec_list(d->codec, image->classes, chunk);
	if (!r)
		r = take_bytes(d, from, &bytes);
	if (r)
		return r;
	chunk->rung[0] = image->info.rung;
	chunk->rung[1] = image->info.rung_salient;
	chunk->rung[2] = image->info.rung_redundant;
	d->n_jobs += device_codec_raw_jobs(d->geometry, image, bytes, number, d->jobs + d->n_jobs);
	for (uint32_t part = 0; chunk->n_coded && part < d->t->n_parts; part++)
		for (uint32_t k = 0, first = 0; k < CODEC_CLASSES; first += chunk->n_of[k++])
			if (chunk->n_of[k])
				d->streams[d->n_streams++] = (struct codec_device_stream){
					.body = (uint8_t *)(bytes + image->streams[part][k].offset),
					.len = image->streams[part][k].len,
					.block = number * d->t->n_parts + part, /* see add_blocks */
					.coded_class = k,
					.first = first,
					.n = chunk->n_of[k]};
	d->tokens_max = chunk->n_tokens > d->tokens_max ? chunk->n_tokens : d->tokens_max;
	d->coded_max = chunk->n_coded > d->coded_max ? chunk->n_coded : d->coded_max;
	d->raw_max = chunk->n_raw > d->raw_max ? chunk->n_raw : d->raw_max;
	return 0;
}

/* The phase in which a part is done. */
static size_t phase_of(const struct decoder *d, const struct codec_device_part *part)
{
	size_t phase = 0;

	while (phase + 1 < d->n_phases && d->phases[phase].end_layer <= part->first_layer)
		phase++;
	return phase;
}

/* Blocks in the order of their phases: numbers[chunk * n_parts + part] is where one stands. */
static int add_blocks(struct decoder *d, uint32_t *numbers, uint32_t *phase_first)
{
	uint32_t used = 0;

	for (size_t phase = 0; phase < d->n_phases; phase++) {
		phase_first[phase] = used;
		for (uint32_t i = 0; i < d->n; i++)
			for (uint32_t p = 0; p < d->t->n_parts; p++) {
				const struct codec_device_part *part = &d->t->parts[p];
				const struct codec_device_chunk *chunk = &d->chunks[i];
				struct codec_device_block *block = &d->blocks[used];

				if (phase_of(d, part) != phase)
					continue;
				numbers[i * d->t->n_parts + p] = used++;
				*block = (struct codec_device_block){.part = p,
					.chunk = i,
					.stride = round_up(chunk->n_coded ? chunk->n_coded : 1, CODEC_TILE)};
				for (uint32_t k = 0; k < CODEC_CLASSES; k++) {
					const uint32_t r = part->active[chunk->rung[k]];
					const uint32_t wide = part->wide[chunk->rung[k]];

					if (chunk->n_of[k] && r > block->k)
						block->k = r;
					if (chunk->n_of[k] && wide > block->k_wide)
						block->k_wide = wide;
				}
				block->values = (uint16_t *)arena_take(
					&d->codec->arena, (uint64_t)(codec_value_rows(block->k) +
								     codec_value_rows(block->k_wide) + 1) *
								  block->stride * sizeof *block->values);
				if (!block->values)
					return -ENOSPC;
			}
	}
	phase_first[d->n_phases] = used;
	for (uint32_t i = 0; i < d->n_streams; i++)
		d->streams[i].block = numbers[d->streams[i].block];
	return 0;
}

static int prepare(struct decoder *d, uint32_t *numbers, uint32_t *phase_first)
{
	struct post *p = &d->codec->post;
	const size_t n_blocks = d->n * d->t->n_parts;
	int r = 0;

	d->chunks = post_take(p, d->n * sizeof *d->chunks, &d->chunks_at);
	d->blocks = post_take(p, n_blocks * sizeof *d->blocks, &d->blocks_at);
	d->streams = post_take(p, n_blocks * CODEC_CLASSES * sizeof *d->streams, &d->streams_at);
	d->jobs = post_take(p, d->n * CODEC_PLANES_MAX * sizeof *d->jobs, &d->jobs_at);
	if (!d->chunks || !d->blocks || !d->streams || !d->jobs)
		return -ENOSPC;
	for (uint32_t i = 0; !r && i < d->n; i++)
		r = d->batch[i].status = add_chunk(d, i);
	return r ? r : add_blocks(d, numbers, phase_first);
}

/* One phase's products, and its event. */
static int run_phase(struct decoder *d, size_t phase, uint32_t first, uint32_t end)
{
	const struct device_phase *p = &d->phases[phase];
	const struct codec_reconstruct_args a = {(const struct codec_device_part *)d->t->parts_at,
		(const struct codec_device_chunk *)d->chunks_at,
		(const struct codec_device_block *)d->blocks_at + first};
	uint32_t columns = 0;
	int r = 0;

	for (uint32_t i = first; i < end; i++) {
		const uint32_t n = d->t->parts[d->blocks[i].part].n_columns;

		columns = n > columns ? n : columns;
	}
	if (d->coded_max && end > first)
		r = device_codec_launch(d->codec, DEVICE_KERNEL_codec_reconstruct, columns / CODEC_TILE,
			round_up(d->coded_max, CODEC_TILE) / CODEC_TILE, end - first, CODEC_THREADS,
			CODEC_RECONSTRUCT_SHARED, &a);
	if (!r && p->event)
		r = device_status(d->codec->driver->cuEventRecord(p->event, d->codec->stream));
	return r;
}

static int run(struct decoder *d, const uint32_t *phase_first, int32_t *status,
	void (*recorded)(void *arg, size_t phase), void *arg)
{
	struct device_codec *c = d->codec;
	const uint64_t status_bytes = (d->n_streams + 1) * sizeof *status;
	const CUdeviceptr status_at = arena_take(&c->arena, status_bytes);
	const struct codec_rans_args rans = {.parts = (const struct codec_device_part *)d->t->parts_at,
		.chunks = (const struct codec_device_chunk *)d->chunks_at,
		.blocks = (const struct codec_device_block *)d->blocks_at,
		.streams = (struct codec_device_stream *)d->streams_at,
		.n_streams = d->n_streams,
		.status = (int32_t *)status_at};
	const struct codec_raw_args raw = {
		(const struct codec_device_chunk *)d->chunks_at, (const struct codec_raw_job *)d->jobs_at};
	int r = status_at ? post_send(c) : -ENOSPC;

	if (!r)
		r = device_codec_rope(c, d->t, d->geometry, d->chunks_at, d->n, d->tokens_max);
	if (!r && d->n_streams)
		r = device_codec_launch(c, DEVICE_KERNEL_codec_rans_decode, d->n_streams, 1, 1, 32, 0, &rans);
	if (!r && d->n_jobs)
		r = device_codec_launch(c, DEVICE_KERNEL_codec_raw_join, d->raw_max, d->geometry->n_layers,
			d->n_jobs, CODEC_THREADS, 0, &raw);
	for (size_t phase = 0; !r && phase < d->n_phases; phase++) {
		r = run_phase(d, phase, phase_first[phase], phase_first[phase + 1]);
		if (!r && recorded)
			recorded(arg, phase);
	}
	if (!r && d->n_streams)
		r = device_status(c->driver->cuMemcpyDtoHAsync(status, status_at, status_bytes, c->stream));
	return r;
}

static bool phases_fit(const struct decoder *d)
{
	if (!d->n_phases || d->phases[d->n_phases - 1].end_layer != d->geometry->n_layers)
		return false;
	for (size_t i = 1; i < d->n_phases; i++)
		if (d->phases[i].end_layer <= d->phases[i - 1].end_layer)
			return false;
	return true;
}

int device_codec_decode_start(struct device_codec *c, const struct geometry *g, const struct transform *t,
	struct device_decode *batch, size_t n, const struct device_phase *phases, size_t n_phases,
	void (*recorded)(void *arg, size_t phase), void *arg)
{
	struct decoder d = {
		.codec = c, .geometry = g, .batch = batch, .n = n, .phases = phases, .n_phases = n_phases};
	uint32_t phase_first[GEOMETRY_LAYERS_MAX + 1], *numbers = NULL;
	int32_t *status = NULL;
	int r;

	if (!n || n > DEVICE_BATCH_MAX || n_phases > GEOMETRY_LAYERS_MAX || !phases_fit(&d))
		return -EINVAL;
	r = device_codec_begin(c);
	if (!r)
		r = device_codec_transform(c, g, t, &d.t);
	if (r)
		return r;
	numbers = malloc(n * d.t->n_parts * sizeof *numbers);
	status = pinned_take(c, (n * d.t->n_parts * CODEC_CLASSES + 1) * sizeof *status);
	c->pinned_kept = c->pinned_used;
	r = numbers && status ? prepare(&d, numbers, phase_first) : -ENOMEM;
	if (!r)
		r = run(&d, phase_first, status, recorded, arg);
	free(numbers);
	/* What was sent is still being read. */
	if (r)
		device_codec_wait(c);
	else
		c->decoding = (struct decoding){status, d.streams, d.blocks, d.n_streams};
	return r;
}

void device_codec_decode_finish(struct device_codec *c, struct device_decode *batch, size_t n)
{
	const struct decoding *d = &c->decoding;

	for (size_t i = 0; i < n; i++)
		batch[i].status = 0;
	for (uint32_t i = 0; i < d->n_streams; i++)
		if (d->status[i])
			batch[d->blocks[d->streams[i].block].chunk].status = -EBADMSG;
}

int device_codec_decode(struct device_codec *c, const struct geometry *g, const struct transform *t,
	struct device_decode *batch, size_t n, const struct device_phase *phases, size_t n_phases,
	void (*recorded)(void *arg, size_t phase), void *arg)
{
	int r = device_codec_decode_start(c, g, t, batch, n, phases, n_phases, recorded, arg);

	if (!r)
		r = device_codec_wait(c);
	if (!r)
		device_codec_decode_finish(c, batch, n);
	return r;
}

int device_codec_upload(
	struct device_codec *c, const struct image *image, const void *frame, size_t len, CUdeviceptr to)
{
	int r = device_codec_begin(c);

	c->pinned_kept = 0;
	if (!r)
		r = send_image(c, image, frame, len, to);
	const int waited = device_codec_wait(c);

	return r ? r : waited;
}
