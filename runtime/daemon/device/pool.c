#include "runtime/daemon/device/pool.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "kernels/cuda/driver.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/memory.h"
#include "runtime/cuda/tier.h"
#include "runtime/daemon/device/lane.h"

enum { RETRY_MS = 20 };

struct device_pool {
	struct lane_task task; /* first; there is one change at a time */
	struct lane *lane;
	struct memory *memory;
	struct tier *tier;
	uint64_t room_bytes, slab_bytes;
	uint64_t mapped_bytes; /* as of the last change */
	bool changing;
	bool waiting; /* for frames beyond the new end */
	uint64_t wanted_bytes;
	uint64_t now_mapped_bytes; /* the lane's answer */
	device_pool_fn *fn;
	void *arg;
};

/* ---- on the lane ---- */

static int remap(struct lane_task *t)
{
	struct device_pool *p = (struct device_pool *)t;
	const int r = memory_resize(p->memory, p->wanted_bytes, &p->now_mapped_bytes);

	return r == -EAGAIN ? -EIO : r;
}

static int take_down(struct lane_task *t)
{
	struct device_pool *p = (struct device_pool *)t;

	p->memory = memory_free(p->memory);
	return 0;
}

/* ---- on the front thread ---- */

int device_pool_new(const struct device *d, struct lanes *lanes, struct device_pool **out)
{
	struct device_pool *p = calloc(1, sizeof *p);
	struct memory_options options = {0};
	struct memory_stats stats;
	size_t total = 0;
	int r;

	if (!p)
		return -ENOMEM;
	if (device_driver(d)->cuDeviceTotalMem(&total, device_ordinal(d)))
		total = 0;
	options.room_bytes = total;
	r = memory_new(d, &options, &p->memory);
	if (!r) {
		memory_get_stats(p->memory, &stats);
		p->room_bytes = stats.room_bytes;
		p->slab_bytes = stats.slab_bytes;
		r = tier_new(memory_range(p->memory), p->room_bytes, &p->tier);
	}
	if (!r)
		r = lane_new(lanes, "pool", &p->lane);
	if (r) {
		tier_free(p->tier);
		memory_free(p->memory);
		free(p);
		return r;
	}
	*out = p;
	return 0;
}

/* A task that has not begun when its lane closes is not carried out: the lane closes with its return. */
static void gone(struct lane_task *t)
{
	struct device_pool *p = (struct device_pool *)t;

	lane_close(p->lane);
	free(p);
}

struct device_pool *device_pool_free(struct device_pool *p)
{
	if (!p)
		return NULL;
	assert(!p->changing);
	p->tier = tier_free(p->tier);
	p->task.run = take_down;
	p->task.done = gone;
	p->task.what = "free the pool";
	lane_submit(p->lane, &p->task);
	return NULL;
}

static void over(struct device_pool *p, int status)
{
	device_pool_fn *fn = p->fn;

	p->changing = false;
	p->mapped_bytes = p->now_mapped_bytes;
	if (fn)
		fn(p->arg, status, tier_limit(p->tier));
}

static void remapped(struct lane_task *t)
{
	struct device_pool *p = (struct device_pool *)t;
	int status = t->status;

	/* Growing: what could be had is used. Shrinking: the tier has let go already, whatever the driver
	 * says. */
	if (p->now_mapped_bytes > tier_limit(p->tier) && p->wanted_bytes > tier_limit(p->tier)) {
		const uint64_t usable =
			p->now_mapped_bytes < p->wanted_bytes ? p->now_mapped_bytes : p->wanted_bytes;
		const int r = tier_set_limit(p->tier, usable);

		status = status ? status : r;
	}
	over(p, status);
}

static void start(struct device_pool *p)
{
	p->waiting = false;
	if (p->wanted_bytes < tier_limit(p->tier) && tier_set_limit(p->tier, p->wanted_bytes)) {
		p->waiting = true;
		return;
	}
	p->task.run = remap;
	p->task.done = remapped;
	p->task.what = "resize the pool";
	p->now_mapped_bytes = p->mapped_bytes;
	lane_submit(p->lane, &p->task);
}

int device_pool_resize(struct device_pool *p, uint64_t size_bytes, device_pool_fn *fn, void *arg)
{
	const uint64_t size = size_bytes - size_bytes % p->slab_bytes;

	if (p->changing)
		return -EBUSY;
	if (size > p->room_bytes || (size_bytes && !size))
		return -EINVAL;
	p->changing = true;
	p->wanted_bytes = size;
	p->fn = fn;
	p->arg = arg;
	start(p);
	return 0;
}

int device_pool_tick(struct device_pool *p)
{
	if (p->waiting)
		start(p);
	return p->waiting ? RETRY_MS : -1;
}

bool device_pool_is_changing(const struct device_pool *p)
{
	return p->changing;
}

struct tier *device_pool_tier(const struct device_pool *p)
{
	return p->tier;
}

uint64_t device_pool_slab_bytes(const struct device_pool *p)
{
	return p->slab_bytes;
}

json_t *device_pool_status(const struct device_pool *p)
{
	struct tier_stats s;

	tier_get_stats(p->tier, &s);
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "size_bytes",
		(json_int_t)s.limit_bytes, "mapped_bytes", (json_int_t)p->mapped_bytes, "slab_bytes",
		(json_int_t)p->slab_bytes, "used_bytes", (json_int_t)s.used_bytes, "frames",
		(json_int_t)s.n_frames, "hits", (json_int_t)s.n_hits, "misses", (json_int_t)s.n_misses,
		"filled", (json_int_t)s.n_filled, "evicted", (json_int_t)s.n_evicted);
}
