#include "runtime/daemon/device/chunk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/driver.h"
#include "runtime/cuda/device.h"
#include "runtime/daemon/device/gpu.h"

enum { ALIGN = 256 };

static size_t aligned(size_t bytes)
{
	return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* Bytes of a token in planes before this one, of those that the slot has. */
static uint64_t packed_before(const struct device_chunk *c, uint32_t plane)
{
	const struct device_memory *m = c->memory;
	const uint64_t start = m->planes[c->first_plane].packed_bytes;

	if (c->first_plane + plane < m->n_planes)
		return m->planes[c->first_plane + plane].packed_bytes - start;
	return m->planes[m->n_planes - 1].packed_bytes - start +
	       (uint64_t)m->planes[m->n_planes - 1].n_heads * m->planes[m->n_planes - 1].head_bytes;
}

struct device_chunk *device_chunk_new(
	struct gpu *g, struct device_memory *memory, struct lane **lane, const struct device_tokens *tokens)
{
	struct device_chunk *c = calloc(1, sizeof *c);
	const struct kv_run *run = &tokens->run;

	if (!c)
		return NULL;
	c->gpu = g;
	c->memory = memory;
	c->lane = lane;
	c->geometry = tokens->geometry;
	c->first_plane = tokens->first_plane;
	c->n_planes = tokens->n_planes;
	c->n_tokens = tokens->n_tokens;
	c->position = tokens->position;
	c->blocks = run->blocks + run->offset / run->block_tokens;
	c->block_tokens = run->block_tokens;
	c->offset = run->offset % run->block_tokens;
	c->n_blocks = (uint32_t)(((uint64_t)c->offset + c->n_tokens + c->block_tokens - 1) / c->block_tokens);
	c->blocks_bytes = aligned((size_t)c->n_blocks * sizeof *c->blocks);
	c->data_bytes = (size_t)(packed_before(c, c->n_planes) * c->n_tokens);
	c->pages = calloc(2 * c->n_planes, sizeof *c->pages);
	c->device_pages = c->pages + c->n_planes;
	return c->pages ? c : device_chunk_free(c);
}

struct device_chunk *device_chunk_free(struct device_chunk *c)
{
	if (c && c->slot)
		staging_give(c->gpu->staging, c->slot);
	if (c)
		free(c->pages);
	free(c);
	return NULL;
}

struct codec_chunk device_chunk_view(const struct device_chunk *c)
{
	static const uint32_t block;

	return (struct codec_chunk){.geometry = c->geometry,
		.pages = c->pages,
		.run = {.blocks = &block, .block_tokens = c->n_tokens},
		.n_tokens = c->n_tokens,
		.position = c->position};
}

uint64_t device_chunk_host_bytes(const struct device_chunk *c)
{
	const uint32_t n_planes = c->geometry->n_planes;
	uint64_t bytes = 0;

	for (uint32_t i = 0; c->layers && i < c->n_layers; i++)
		bytes += packed_before(c, (c->layers[i] + 1) * n_planes) -
			 packed_before(c, c->layers[i] * n_planes);
	return c->layers ? bytes * c->n_tokens : c->data_bytes;
}

/* ---- statistics ---- */

static size_t statistics_start(const struct device_chunk *c)
{
	return c->blocks_bytes + aligned(c->data_bytes);
}

bool device_chunk_want_statistics(struct device_chunk *c, const struct device_statistics *s)
{
	if (!staging_fits(c->gpu->staging, statistics_start(c) + device_statistics_bytes(s)))
		return false;
	c->statistics = s;
	return true;
}

struct detection_statistics device_chunk_statistics(const struct device_chunk *c)
{
	return device_statistics_given(c->statistics, c->slot->host + statistics_start(c));
}

/* ---- on the lane ---- */

static int copy_blocks(const struct device_chunk *c, const struct cuda_driver *cu, CUstream stream)
{
	const size_t len = c->n_blocks * sizeof *c->blocks;

	memcpy(c->slot->host, c->blocks, len);
	return device_status(cu->cuMemcpyHtoDAsync(c->slot->device, c->slot->host, len, stream));
}

static int launch(const struct device_chunk *c, CUstream stream)
{
	const uint32_t first = c->first_plane + c->from_plane;
	const uint32_t grid[3] = {
		(c->n_tokens + PAGES_TILE - 1) / PAGES_TILE, c->to_plane - c->from_plane, 1};
	const struct pages_args args = {.planes = c->memory->table + first * sizeof *c->memory->planes,
		.blocks = c->slot->device,
		.packed = c->slot->device + c->blocks_bytes,
		.skipped = c->n_tokens * c->memory->planes[c->first_plane].packed_bytes,
		.n_tokens = c->n_tokens,
		.block_tokens = c->block_tokens,
		.offset = c->offset};

	return device_launch(c->gpu->device,
		c->is_gather ? DEVICE_KERNEL_pages_gather : DEVICE_KERNEL_pages_scatter, grid, PAGES_THREADS,
		0, stream, &args);
}

/* Planes [from, to) of the slot to the host. */
static int copy_to_host(
	const struct device_chunk *c, const struct cuda_driver *cu, uint32_t from, uint32_t to, CUstream copy)
{
	const size_t start = c->blocks_bytes + packed_before(c, from) * c->n_tokens;
	const size_t end = c->blocks_bytes + packed_before(c, to) * c->n_tokens;

	return device_status(
		cu->cuMemcpyDtoHAsync(c->slot->host + start, c->slot->device + start, end - start, copy));
}

static int copy_wanted(const struct device_chunk *c, const struct cuda_driver *cu, CUstream copy)
{
	const uint32_t n_planes = c->geometry->n_planes;
	int r = c->layers ? 0 : copy_to_host(c, cu, 0, c->n_planes, copy);

	for (uint32_t i = 0; !r && c->layers && i < c->n_layers; i++)
		r = copy_to_host(c, cu, c->layers[i] * n_planes, (c->layers[i] + 1) * n_planes, copy);
	return r;
}

static int gather(struct device_chunk *c, const struct cuda_driver *cu, CUstream work, CUstream copy)
{
	struct staging_slot *slot = c->slot;
	int r = copy_blocks(c, cu, work);

	r = r ? r : launch(c, work);
	r = r ? r : device_status(cu->cuEventRecord(slot->reached, work));
	r = r ? r : device_status(cu->cuStreamWaitEvent(copy, slot->reached, 0));
	r = r ? r : copy_wanted(c, cu, copy);
	return r ? r : device_status(cu->cuEventRecord(slot->landed, copy));
}

static int scatter(struct device_chunk *c, const struct cuda_driver *cu, CUstream work, CUstream copy)
{
	const size_t start = c->blocks_bytes + packed_before(c, c->from_plane) * c->n_tokens;
	const size_t end = c->blocks_bytes + packed_before(c, c->to_plane) * c->n_tokens;
	struct staging_slot *slot = c->slot;
	int r = copy_blocks(c, cu, copy);

	r = r ? r
	      : device_status(
			cu->cuMemcpyHtoDAsync(slot->device + start, slot->host + start, end - start, copy));
	r = r ? r : device_status(cu->cuEventRecord(slot->reached, copy));
	r = r ? r : device_status(cu->cuStreamWaitEvent(work, slot->reached, 0));
	r = r ? r : launch(c, work);
	return r ? r : device_status(cu->cuEventRecord(slot->landed, work));
}

static int move(struct lane_task *t)
{
	struct device_chunk *c = (struct device_chunk *)t;
	const struct cuda_driver *cu = device_driver(c->gpu->device);
	const CUstream work = lane_work(t->lane), copy = lane_copy(t->lane);
	int r;

	if (!c->memory->keep.is_open)
		return -ESTALE;
	r = c->is_gather ? gather(c, cu, work, copy) : scatter(c, cu, work, copy);
	if (!r) {
		t->landed = c->slot->landed;
		return 0;
	}
	/* Something may be under way: the slot must not be another's before that has ended. Both streams are
	 * this engine's alone. */
	cu->cuStreamSynchronize(copy);
	cu->cuStreamSynchronize(work);
	return -EIO;
}

static int fetch(struct lane_task *t)
{
	struct device_chunk *c = (struct device_chunk *)t;
	const struct cuda_driver *cu = device_driver(c->gpu->device);
	int r = copy_to_host(c, cu, 0, c->n_planes, lane_copy(t->lane));

	if (!r)
		r = device_status(cu->cuEventRecord(c->slot->landed, lane_copy(t->lane)));
	if (!r)
		t->landed = c->slot->landed;
	else
		cu->cuStreamSynchronize(lane_copy(t->lane));
	return r ? -EIO : 0;
}

/* On our own lane: the slot is ours, and the engine's events do not wait for it. */
static int measure(struct lane_task *t)
{
	struct device_chunk *c = (struct device_chunk *)t;
	const struct cuda_driver *cu = device_driver(c->gpu->device);
	const CUstream stream = lane_work(t->lane);
	const CUdeviceptr device = c->slot->device + statistics_start(c);
	struct codec_chunk chunk = device_chunk_view(c);
	uint8_t *host = c->slot->host + statistics_start(c);
	int r;

	chunk.pages = c->device_pages;
	device_statistics_fill(c->statistics, c->kernels, &chunk, host, device);
	r = device_statistics_launch(c->statistics, c->gpu->device, host, device, stream);
	if (!r)
		r = device_status(cu->cuEventRecord(c->slot->landed, stream));
	if (!r)
		t->landed = c->slot->landed;
	else
		cu->cuStreamSynchronize(stream);
	return r ? -EIO : 0;
}

/* ---- on the front thread ---- */

static void moved(struct lane_task *t)
{
	struct device_chunk *c = (struct device_chunk *)t;

	c->fn(c, t->status);
}

static void start_moving(struct device_chunk *c)
{
	if (!*c->lane) {
		c->fn(c, -ECANCELED);
		return;
	}
	c->task.run = move;
	c->task.done = moved;
	c->task.what = c->is_gather ? "gather" : "scatter";
	lane_submit(*c->lane, &c->task);
	if (c->handed)
		c->handed(c);
}

/* The view's pages. */
static void lay_out(struct device_chunk *c)
{
	for (uint32_t i = 0; i < c->n_planes; i++) {
		const struct pages_plane *p = &c->memory->planes[c->first_plane + i];
		const size_t token = (size_t)p->n_heads * p->head_bytes;

		c->pages[i] = (struct kv_pages){
			.base = c->slot->host + c->blocks_bytes + packed_before(c, i) * c->n_tokens,
			.block_stride = token * c->n_tokens,
			.token_stride = token,
			.head_stride = p->head_bytes};
		c->device_pages[i] = c->pages[i];
		c->device_pages[i].base = (uint8_t *)(uintptr_t)(c->slot->device + c->blocks_bytes +
								 packed_before(c, i) * c->n_tokens);
	}
}

static struct device_chunk *of_wait(struct staging_wait *w)
{
	return (struct device_chunk *)((char *)w - offsetof(struct device_chunk, wait));
}

static void lent(struct staging_wait *w, struct staging_slot *slot, int status)
{
	struct device_chunk *c = of_wait(w);

	if (!status) {
		c->slot = slot;
		lay_out(c);
	}
	if (!status && c->is_gather)
		start_moving(c);
	else
		c->fn(c, status);
}

static void want_slot(struct device_chunk *c)
{
	c->wait.fn = lent;
	c->wait.owner = c->lane;
	c->wait.bytes = c->statistics ? statistics_start(c) + device_statistics_bytes(c->statistics)
				      : c->blocks_bytes + c->data_bytes;
	staging_want(c->gpu->staging, &c->wait);
}

void device_chunk_gather(struct device_chunk *c, void (*fn)(struct device_chunk *c, int status))
{
	c->fn = fn;
	c->is_gather = true;
	c->from_plane = 0;
	c->to_plane = c->n_planes;
	want_slot(c);
}

void device_chunk_fetch(struct device_chunk *c, void (*fn)(struct device_chunk *c, int status))
{
	c->fn = fn;
	if (!*c->lane) {
		fn(c, -ECANCELED);
		return;
	}
	c->task = (struct lane_task){.run = fetch, .done = moved, .what = "fetch"};
	lane_submit(*c->lane, &c->task);
}

void device_chunk_measure(
	struct device_chunk *c, const struct kernels *kernels, void (*fn)(struct device_chunk *c, int status))
{
	c->fn = fn;
	c->kernels = kernels;
	c->task = (struct lane_task){.run = measure, .done = moved, .what = "measure"};
	lane_submit(c->gpu->own, &c->task);
}

void device_chunk_lend(struct device_chunk *c, void (*fn)(struct device_chunk *c, int status))
{
	c->fn = fn;
	c->is_gather = false;
	want_slot(c);
}

void device_chunk_scatter(
	struct device_chunk *c, uint32_t first, uint32_t n, void (*fn)(struct device_chunk *c, int status))
{
	const uint32_t n_planes = c->geometry->n_planes;

	c->fn = fn;
	c->is_gather = false;
	c->from_plane = first * n_planes;
	c->to_plane = (first + n) * n_planes;
	start_moving(c);
}
