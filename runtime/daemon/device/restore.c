#include "runtime/daemon/device/restore.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/driver.h"
#include "runtime/daemon/device/gpu.h"
#include "runtime/stats/board.h"

static void lay_pages(const struct device_memory *m, struct kv_pages *pages)
{
	for (uint32_t i = 0; i < m->n_planes; i++)
		pages[i] = (struct kv_pages){.base = (uint8_t *)(uintptr_t)m->planes[i].base,
			.block_stride = m->planes[i].block_stride,
			.token_stride = m->planes[i].token_stride,
			.head_stride = m->planes[i].head_stride};
}

bool restore_serves(const struct device_memory *m, const struct geometry *g, const struct transform *t,
	uint32_t chunk_tokens)
{
	struct kv_pages *pages = malloc(m->n_planes * sizeof *pages);
	bool serves;

	if (!pages)
		return false;
	lay_pages(m, pages);
	serves = device_codec_serves(g, t, pages, chunk_tokens);
	free(pages);
	return serves;
}

struct restore *restore_new(struct coders *c, struct device_memory *memory, struct lane **lane,
	const struct geometry *g, const struct transform *t, const uint32_t *phase_end, uint32_t n_phases)
{
	struct restore *r = calloc(1, sizeof *r);

	if (!r)
		return NULL;
	r->coders = c;
	r->memory = memory;
	r->lane = lane;
	r->geometry = g;
	r->transform = t;
	r->n_phases = n_phases;
	r->pages = malloc(memory->n_planes * sizeof *r->pages);
	r->phases = calloc(n_phases, sizeof *r->phases);
	if (!r->pages || !r->phases)
		return restore_free(r);
	lay_pages(memory, r->pages);
	for (uint32_t i = 0; i < n_phases; i++)
		r->phases[i].end_layer = phase_end[i];
	return r;
}

struct restore *restore_free(struct restore *r)
{
	if (!r)
		return NULL;
	for (uint32_t i = 0; i < r->n; i++)
		free(r->own[i]);
	free(r->pages);
	free(r->phases);
	free(r);
	return NULL;
}

static void add(struct restore *r, const struct codec_chunk *where, const struct device_decode *decode)
{
	r->chunks[r->n] = *where;
	r->chunks[r->n].geometry = r->geometry;
	r->chunks[r->n].pages = r->pages;
	r->decode[r->n] = *decode;
	r->decode[r->n].chunk = &r->chunks[r->n];
	r->n++;
}

int restore_add(struct restore *r, const struct codec_chunk *where, const void *frame, size_t len)
{
	struct image *image;
	int status;

	if (r->n == DEVICE_BATCH_MAX)
		return -ENOSPC;
	status = image_read(frame, len, r->geometry, r->transform, &image);
	if (status)
		return status;
	r->own[r->n] = image;
	add(r, where, &(struct device_decode){.image = image, .frame = frame, .len = len});
	return 0;
}

int restore_add_image(
	struct restore *r, const struct codec_chunk *where, const struct image *image, CUdeviceptr at)
{
	if (r->n == DEVICE_BATCH_MAX)
		return -ENOSPC;
	if (memcmp(image->info.transform, r->transform->id, 16) != 0)
		return -ESTALE;
	add(r, where, &(struct device_decode){.image = image, .image_at = at});
	return 0;
}

struct image *restore_take_image(struct restore *r, uint32_t i)
{
	struct image *image = r->own[i];

	r->own[i] = NULL;
	return image;
}

/* ---- on the lane ---- */

/* The event of a phase: each its own, the last one's for all that have none, and what is left over with it.
 */
static void name_events(struct restore *r)
{
	for (uint32_t i = 0; r->n_events && i + 1 < r->n_phases && i + 1 < r->n_events; i++)
		r->phases[i].event = event_group_event(r->group, r->first_event + i);
}

static int record_rest(struct restore *r, const struct cuda_driver *cu)
{
	const uint32_t first = r->n_phases < r->n_events ? r->n_phases - 1 : r->n_events - 1;
	int status = 0;

	for (uint32_t i = first; r->n_events && !status && i < r->n_events; i++)
		status = device_status(cu->cuEventRecord(
			event_group_event(r->group, r->first_event + i), device_codec_stream(r->codec)));
	return status;
}

static int launch(struct lane_task *t)
{
	struct restore *r = (struct restore *)t;
	const struct cuda_driver *cu = device_driver(lane_device(t->lane));
	int status;

	if (!r->memory->keep.is_open)
		return -ESTALE;
	r->started_ns = board_now_ns();
	name_events(r);
	status = device_codec_decode_start(
		r->codec, r->geometry, r->transform, r->decode, r->n, r->phases, r->n_phases, NULL, NULL);
	if (status)
		return status;
	status = record_rest(r, cu);
	if (!status)
		status = device_codec_landed(r->codec, &t->landed);
	if (status) {
		cu->cuStreamSynchronize(device_codec_stream(r->codec));
		t->landed = NULL;
		return status;
	}
	r->is_launched = true;
	return 0;
}

static int nothing(struct lane_task *t)
{
	(void)t;
	return 0;
}

/* ---- on the front thread ---- */

static void ended(struct restore *r)
{
	const int status = r->task.status;

	if (--r->n_under_way)
		return;
	if (!status)
		device_codec_decode_finish(r->codec, r->decode, r->n);
	coders_give(r->coders, r->codec, status ? 0 : r->n);
	r->codec = NULL;
	r->done(r, status);
}

static void worked(struct lane_task *t)
{
	ended((struct restore *)t);
}

static void told(struct lane_task *t)
{
	struct restore *r = (struct restore *)((char *)t - offsetof(struct restore, after));

	if (r->is_launched && r->n_events)
		r->recorded(r);
	ended(r);
}

static void lent(struct coder_wait *w, struct device_codec *codec)
{
	struct restore *r = (struct restore *)((char *)w - offsetof(struct restore, wait));

	r->codec = codec;
	if (!*r->lane) {
		r->n_under_way = 1;
		r->task.status = -ECANCELED;
		ended(r);
		return;
	}
	r->n_under_way = 2;
	r->task = (struct lane_task){.run = launch, .done = worked, .what = "restore"};
	r->after = (struct lane_task){.run = nothing, .done = told, .what = "tell of events"};
	lane_submit(*r->lane, &r->task);
	lane_submit(*r->lane, &r->after);
}

void restore_start(struct restore *r)
{
	r->wait.fn = lent;
	coders_want(r->coders, &r->wait);
}
