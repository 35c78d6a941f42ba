/*
 * Streams, images and frames. The lengths of the streams are seen by the host before it lays an image out; as
 * many chunks go at a time as there is room for.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/bytes/xxh3.h"
#include "policy/policy.h"
#include "runtime/cuda/encoder.h"

enum {
	/* A level takes two or three bits; where all of a stream's took more than this, the host has it. */
	LEVEL_BITS_MAX = 10,
};

static void state_error(const struct device_encoder *e, uint32_t number, struct frame_info *info)
{
	for (uint32_t plane = 0; plane < e->geometry->n_planes; plane++) {
		double sum = 0, worst = 0;
		size_t n = 0;

		for (uint32_t t = 0; t < info->n_tokens; t++) {
			const double error = (double)device_encoder_errors(e, number, plane)[t];

			if (token_class_is_raw(e->classes[number * CODEC_TOKENS_MAX + t]))
				continue;
			sum += error;
			worst = error > worst ? error : worst;
			n++;
		}
		info->error[plane].max = (float)worst;
		info->error[plane].mean = n ? (float)(sum / (double)n) : 0;
	}
}

static struct image *make_image(const struct device_encoder *e, uint32_t number)
{
	const struct codec_chunk *chunk = e->batch[number].chunk;
	const struct codec_options *o = e->batch[number].options;
	const uint8_t *classes = e->classes + number * CODEC_TOKENS_MAX;
	struct frame_info info = {.position = chunk->position,
		.n_tokens = chunk->n_tokens,
		.rung = (uint8_t)o->rung,
		.rung_salient = (uint8_t)o->rung_salient,
		.rung_redundant = (uint8_t)o->rung_redundant,
		.policy_version = o->policy_version,
		.raw_bytes = geometry_token_bytes(e->geometry) * chunk->n_tokens};

	memcpy(info.transform, o->transform->id, 16);
	memcpy(info.name_space, o->name_space, 16);
	memcpy(info.key, o->key, 32);
	memcpy(info.parent, o->parent, 32);
	geometry_fingerprint(e->geometry, info.fingerprint);
	for (uint32_t t = 0; t < chunk->n_tokens; t++)
		info.n_raw += (uint32_t)token_class_is_raw(classes[t]);
	state_error(e, number, &info);
	return image_new(&info, e->t->n_parts, classes);
}

/* Of the chunks in work: [first, end). */
struct range {
	uint32_t first, end;
	struct codec_device_stream *streams;
	CUdeviceptr streams_at, lengths_at;
	int32_t *lengths;
	uint32_t n_streams, bands_max;
	uint32_t first_of[DEVICE_BATCH_MAX + 1]; /* streams of chunk i: from first_of[i] to first_of[i + 1] */
};

/* Room for a chunk's streams. False: none. */
static bool add_streams(struct device_encoder *e, struct range *w, uint32_t number)
{
	const struct codec_device_chunk *chunk = &e->chunks[number];

	for (uint32_t p = 0; p < e->t->n_parts; p++) {
		const struct codec_device_part *part = &e->t->parts[p];

		for (uint32_t k = 0, first = 0; k < CODEC_CLASSES; first += chunk->n_of[k++]) {
			const uint32_t n = chunk->n_of[k], rung = chunk->rung[k];
			const uint32_t lanes = n < LEVELS_LANES ? n : LEVELS_LANES;
			const uint64_t room = levels_bands(part->active[rung]) + 4 * lanes + 256 +
					      (uint64_t)part->active[rung] * n * LEVEL_BITS_MAX / 8;
			const CUdeviceptr at = n ? arena_take(&e->codec->arena, room) : 0;

			if (!n)
				continue;
			if (!at)
				return false;
			w->streams[w->n_streams++] = (struct codec_device_stream){.body = (uint8_t *)at,
				.len = (uint32_t)room,
				.block = number * e->t->n_parts + p,
				.coded_class = k,
				.first = first,
				.n = n};
			if (levels_bands(part->active[rung]) > w->bands_max)
				w->bands_max = levels_bands(part->active[rung]);
		}
	}
	return true;
}

/* As many chunks from first on as there is room for; at least one, or -ENOSPC. */
static int range_new(struct device_encoder *e, uint32_t first, struct range *w)
{
	const size_t most = (e->n - first) * e->t->n_parts * CODEC_CLASSES;

	*w = (struct range){.first = first, .end = first};
	w->streams = post_take(&e->codec->post, most * sizeof *w->streams, &w->streams_at);
	w->lengths = pinned_take(e->codec, (most + 1) * sizeof *w->lengths);
	w->lengths_at = arena_take(&e->codec->arena, (most + 1) * sizeof *w->lengths);
	if (!w->streams || !w->lengths || !w->lengths_at)
		return -ENOSPC;
	while (w->end < e->n) {
		const uint64_t used = e->codec->arena.used;
		const uint32_t n_streams = w->n_streams;

		w->first_of[w->end] = n_streams;
		if (add_streams(e, w, w->end)) {
			w->first_of[++w->end] = w->n_streams;
			continue;
		}
		e->codec->arena.used = used;
		w->n_streams = n_streams;
		break;
	}
	return w->end > first ? 0 : -ENOSPC;
}

/* Streams of the range, and how long each is; what the stream had to do before, errors on their way to the
 * host among it, is done when this returns. */
static int encode_streams(struct device_encoder *e, struct range *w)
{
	struct device_codec *c = e->codec;
	const struct codec_rans_args a = {.parts = (const struct codec_device_part *)e->t->parts_at,
		.chunks = (const struct codec_device_chunk *)e->chunks_at,
		.blocks = (const struct codec_device_block *)e->blocks_at,
		.streams = (struct codec_device_stream *)w->streams_at,
		.n_streams = w->n_streams,
		.status = (int32_t *)w->lengths_at};
	int r = post_send(c);

	if (r || !w->n_streams)
		return r ? r : device_codec_wait(c);
	r = device_codec_launch(c, DEVICE_KERNEL_codec_rans_offsets, w->n_streams,
		round_up(w->bands_max + 1, CODEC_OFFSET_BANDS) / CODEC_OFFSET_BANDS, 1,
		32 * CODEC_OFFSET_WARPS, 0, &a);
	if (!r)
		r = device_codec_launch(c, DEVICE_KERNEL_codec_rans_encode, w->n_streams, 1, 1, 32, 0, &a);
	if (!r)
		r = device_status(c->driver->cuMemcpyDtoHAsync(
			w->lengths, w->lengths_at, w->n_streams * sizeof *w->lengths, c->stream));
	return r ? r : device_codec_wait(c);
}

/* Raw bytes first, then the streams, as frames have them. -ENOSPC: a stream did not fit. */
static int place(struct device_encoder *e, const struct range *w, uint32_t number, struct image *image)
{
	const struct geometry *g = e->geometry;

	for (uint32_t plane = 0; image->info.n_raw && plane < g->n_planes; plane++)
		for (uint32_t b = 0; b < dtype_bytes(g->planes[plane].dtype); b++) {
			const uint64_t len =
				(uint64_t)image->info.n_raw * plane_width(&g->planes[plane]) * g->n_layers;

			if (len > UINT32_MAX)
				return -ENOSPC;
			image->raw[plane][b] =
				(struct image_stream){.offset = image->len_bytes, .len = (uint32_t)len};
			image->len_bytes += len;
		}
	for (uint32_t i = w->first_of[number]; i < w->first_of[number + 1]; i++) {
		const struct codec_device_stream *s = &w->streams[i];

		if (w->lengths[i] < 0)
			return -ENOSPC;
		image->streams[s->block % e->t->n_parts][s->coded_class] =
			(struct image_stream){.offset = image->len_bytes, .len = (uint32_t)w->lengths[i]};
		image->len_bytes += (uint64_t)w->lengths[i];
	}
	return 0;
}

/* Images of a range that are to be brought together: streams to be moved, raw tokens to be split, and all of
 * both to be summed up. */
struct assembly {
	struct codec_move *moves;
	struct codec_raw_job *jobs;
	struct xxh3_range *ranges;
	uint64_t **sums;  /* [n_ranges] where each goes */
	uint64_t *hashes; /* pinned, [n_ranges] */
	CUdeviceptr moves_at, jobs_at, ranges_at, hashes_at;
	uint32_t n_moves, n_jobs, n_ranges, raw_max;
	uint8_t *bytes[DEVICE_BATCH_MAX]; /* pinned: a copy of each image */
};

static int assembly_new(struct device_encoder *e, const struct range *w, struct assembly *a)
{
	struct device_codec *c = e->codec;
	const size_t n_chunks = w->end - w->first;
	const size_t n_ranges = w->n_streams + n_chunks * CODEC_PLANES_MAX * IMAGE_ELEMENT_BYTES;

	*a = (struct assembly){0};
	a->moves = post_take(&c->post, (w->n_streams + 1) * sizeof *a->moves, &a->moves_at);
	a->jobs = post_take(&c->post, n_chunks * CODEC_PLANES_MAX * sizeof *a->jobs, &a->jobs_at);
	a->ranges = post_take(&c->post, n_ranges * sizeof *a->ranges, &a->ranges_at);
	a->hashes = pinned_take(c, n_ranges * sizeof *a->hashes);
	a->hashes_at = arena_take(&c->arena, n_ranges * sizeof *a->hashes);
	if (!a->moves || !a->jobs || !a->ranges || !a->hashes || !a->hashes_at)
		return -ENOSPC;
	a->sums = malloc(n_ranges * sizeof *a->sums);
	return a->sums ? 0 : -ENOMEM;
}

static void sum_up(struct assembly *a, CUdeviceptr at, struct image_stream *s)
{
	a->ranges[a->n_ranges] = (struct xxh3_range){(const uint8_t *)(at + s->offset), s->len, 0};
	a->sums[a->n_ranges++] = &s->checksum;
}

/* An image where it may stay, or in scratch memory, and its place in pinned memory. -ENOSPC: no place (bytes
 * is NULL then), or a stream that was too long. */
static int add_image(struct device_encoder *e, const struct range *w, uint32_t number, struct assembly *a)
{
	struct device_encode *out = &e->batch[number];
	struct device_codec *c = e->codec;
	struct image *image = out->image = make_image(e, number);
	uint8_t *bytes;
	CUdeviceptr at;
	int r;

	if (!image)
		return -ENOMEM;
	r = place(e, w, number, image);
	if (r)
		return r;
	bytes = pinned_take(c, image->len_bytes + 1);
	if (!bytes)
		return -ENOSPC;
	out->image_at = image->len_bytes < out->room_bytes ? out->room_at : 0;
	at = out->image_at ? out->image_at : arena_take(&c->arena, image->len_bytes + 1);
	if (!at)
		return -ENOSPC;
	a->bytes[number] = bytes;
	out->bytes_at = at;
	for (uint32_t i = w->first_of[number]; i < w->first_of[number + 1]; i++) {
		const struct codec_device_stream *s = &w->streams[i];
		struct image_stream *to = &image->streams[s->block % e->t->n_parts][s->coded_class];

		a->moves[a->n_moves++] = (struct codec_move){
			s->body + s->len - to->len, (uint8_t *)(at + to->offset), to->len};
		sum_up(a, at, to);
	}
	a->n_jobs += device_codec_raw_jobs(e->geometry, image, at, number, a->jobs + a->n_jobs);
	for (uint32_t plane = 0; image->info.n_raw && plane < e->geometry->n_planes; plane++)
		for (uint32_t b = 0; b < dtype_bytes(e->geometry->planes[plane].dtype); b++)
			sum_up(a, at, &image->raw[plane][b]);
	if (image->info.n_raw > a->raw_max)
		a->raw_max = image->info.n_raw;
	return 0;
}

/* To the host, while the sums are made. */
static int copy_images(struct device_encoder *e, const struct range *w, const struct assembly *a)
{
	struct device_codec *c = e->codec;
	int r = device_status(c->driver->cuEventRecord(c->reached, c->stream));

	r = r ? r : device_status(c->driver->cuStreamWaitEvent(c->copies, c->reached, 0));
	for (uint32_t i = w->first; !r && i < w->end; i++)
		if (!e->batch[i].status)
			r = device_status(c->driver->cuMemcpyDtoHAsync(
				a->bytes[i], e->batch[i].bytes_at, e->batch[i].image->len_bytes, c->copies));
	return r ? r : device_status(c->driver->cuEventRecord(c->landed, c->copies));
}

/* Everything that was added, on the device and from there to the host. */
static int assemble(struct device_encoder *e, const struct range *w, struct assembly *a)
{
	struct device_codec *c = e->codec;
	const struct codec_move_args move = {(const struct codec_move *)a->moves_at};
	const struct codec_raw_args raw = {
		(const struct codec_device_chunk *)e->chunks_at, (const struct codec_raw_job *)a->jobs_at};
	const struct xxh3_ranges_args sums = {
		(const struct xxh3_range *)a->ranges_at, (uint64_t *)a->hashes_at, a->n_ranges};
	uint32_t grid[3];
	int r = post_send(c);

	if (!r && a->n_moves)
		r = device_codec_launch(
			c, DEVICE_KERNEL_codec_move, a->n_moves, 1, 1, CODEC_THREADS, 0, &move);
	if (!r && a->n_jobs)
		r = device_codec_launch(c, DEVICE_KERNEL_codec_raw_split, a->raw_max, e->geometry->n_layers,
			a->n_jobs, CODEC_THREADS, 0, &raw);
	r = r ? r : copy_images(e, w, a);
	xxh3_grid(a->n_ranges, grid);
	if (!r && a->n_ranges)
		r = device_codec_launch(
			c, DEVICE_KERNEL_xxh3_ranges, grid[0], grid[1], grid[2], XXH3_THREADS, 0, &sums);
	r = r ? r : device_status(c->driver->cuEventRecord(c->placed, c->stream));
	if (!r && a->n_ranges)
		r = device_status(c->driver->cuMemcpyDtoHAsync(
			a->hashes, a->hashes_at, a->n_ranges * sizeof *a->hashes, c->stream));
	/* Whoever waits for the stream waits for the copies, too. */
	r = r ? r : device_status(c->driver->cuStreamWaitEvent(c->stream, c->landed, 0));
	if (r)
		c->driver->cuStreamSynchronize(c->copies);
	return r;
}

/* Ends the range before a chunk whose image does not fit beside the others'. */
static int finish_range(struct device_encoder *e, struct range *w)
{
	const size_t pinned_before = e->codec->pinned_used;
	struct assembly a;
	int r = assembly_new(e, w, &a);

	for (uint32_t i = w->first; !r && i < w->end; i++) {
		e->batch[i].status = add_image(e, w, i, &a);
		if (!a.bytes[i] && e->batch[i].status == -ENOSPC && i > w->first) {
			free(e->batch[i].image);
			e->batch[i].image = NULL;
			w->end = i;
			break;
		}
		/* A chunk that does not fit is the host's; a device that fails ends everything. */
		r = e->batch[i].status == -ENOSPC || e->batch[i].status == -ENOMEM ? 0 : e->batch[i].status;
	}
	r = r ? r : assemble(e, w, &a);
	const int waited = device_codec_wait(e->codec);

	for (uint32_t i = 0; !r && !waited && i < a.n_ranges; i++)
		*a.sums[i] = a.hashes[i];
	for (uint32_t i = w->first; !r && !waited && i < w->end; i++) {
		struct device_encode *out = &e->batch[i];

		if (!out->status)
			out->status = image_frame(out->image, a.bytes[i], e->geometry, e->transform,
				&out->info, &out->frame, &out->len);
	}
	free(a.sums);
	e->codec->pinned_used = pinned_before;
	return r ? r : waited;
}

int device_encoder_write(struct device_encoder *e)
{
	int r = 0;

	/* The lists change the chunks' descriptions: sent again. */
	for (uint32_t i = 0; !r && i < e->n; i++)
		r = device_codec_list(e->codec, e->classes + i * CODEC_TOKENS_MAX, &e->chunks[i]);
	if (!r)
		r = device_status(e->codec->driver->cuMemcpyHtoDAsync(
			e->chunks_at, e->chunks, e->n * sizeof *e->chunks, e->codec->stream));
	for (uint32_t first = 0; !r && first < e->n;) {
		struct range w;

		e->codec->arena.used = e->kept;
		r = range_new(e, first, &w);
		if (!r)
			r = encode_streams(e, &w);
		if (!r && !e->settled)
			r = device_encoder_settle(e);
		if (!r)
			r = finish_range(e, &w);
		first = w.end;
		if (!r)
			e->n_done = first;
	}
	return r;
}
