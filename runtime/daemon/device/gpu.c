#include "runtime/daemon/device/gpu.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "kernels/cuda/driver.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/tier.h"
#include "runtime/daemon/device/coders.h"
#include "runtime/daemon/device/pool.h"

enum {
	IMPORTS_MAX = 4096, /* allocations */
	POOL_END_MS = 1000,
	CODERS = 2, /* one works while the other's results are looked at */
};

static void pool_is_there(void *arg, int status, uint64_t size_bytes)
{
	(void)arg;
	if (status)
		log_warning("device: the pool has %llu MiB: %s", (unsigned long long)size_bytes >> 20,
			status == -ENOMEM ? "the GPU has no more to give" : strerror(-status));
	else
		log_info("device: the pool has %llu MiB", (unsigned long long)size_bytes >> 20);
}

static int set_up(
	struct gpu *g, const struct config *c, const struct device_options *o, char *why, size_t why_len)
{
	const struct import_limits limits = {.n_allocations = IMPORTS_MAX, .bytes = c->device_max_mapped};
	int r = device_new(o, &g->device, why, why_len);

	if (r)
		return r;
	if (device_driver(g->device)->cuDeviceGetUuid(&g->uuid, device_ordinal(g->device)))
		memset(&g->uuid, 0, sizeof g->uuid);
	g->imports = imports_new(g->device, &limits);
	if (!g->imports)
		return -ENOMEM;
	r = lanes_new(g->device, &g->lanes);
	if (!r)
		r = lane_new(g->lanes, "own", &g->own);
	if (!r)
		r = staging_new(g->lanes, c->device_staging, &g->staging);
	if (!r)
		r = device_pool_new(g->device, g->lanes, &g->pool);
	if (!r)
		r = coders_new(
			g->device, CODERS, device_codec_scratch(g->device), c->device_share, &g->coders);
	if (r || !c->device_pool)
		return r;
	/* Engines may come before it is there: they are served without. */
	r = device_pool_resize(g->pool, c->device_pool, pool_is_there, NULL);
	if (r == -EINVAL)
		snprintf(why, why_len,
			"device_pool is more than the GPU has, or less than a slab of %llu MiB",
			(unsigned long long)device_pool_slab_bytes(g->pool) >> 20);
	return r;
}

int gpu_new(const struct config *c, struct gpu **out)
{
	const struct device_options o = {.ordinal = c->device < 0 ? -1 : c->device};
	char why[200] = "out of memory";
	struct gpu *g;
	int r;

	*out = NULL;
	if (c->device == CONFIG_DEVICE_NONE || strcmp(c->backend, "host") == 0) {
		log_info("device: none: %s",
			c->device == CONFIG_DEVICE_NONE ? "device = none" : "backend = host");
		return 0;
	}
	g = calloc(1, sizeof *g);
	r = g ? set_up(g, c, &o, why, sizeof why) : -ENOMEM;
	if (!r) {
		log_info("device: %s", device_describe(g->device));
		*out = g;
		return 0;
	}
	gpu_free(g);
	if (r == -ENODEV && c->device == CONFIG_DEVICE_AUTO) {
		log_info("device: none: %s", why);
		return 0;
	}
	log_error("device: %s", why);
	return r;
}

struct gpu *gpu_free(struct gpu *g)
{
	if (!g)
		return NULL;
	if (g->lanes) {
		/* A change of size that has begun ends first: nobody holds a frame, and the driver needs
		 * moments. */
		for (int i = 0; i < POOL_END_MS && g->pool && device_pool_is_changing(g->pool); i++) {
			lanes_reap(g->lanes);
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
		}
		if (g->pool && device_pool_is_changing(g->pool))
			return NULL;
		g->pool = device_pool_free(g->pool);
		g->staging = staging_free(g->staging);
		lane_close(g->own);
		/* A lane that is stuck in the driver uses all of this still; the process ends without it. */
		if (!lanes_free(g->lanes))
			return NULL;
	}
	g->coders = coders_free(g->coders);
	g->imports = imports_free(g->imports);
	g->device = device_free(g->device);
	free(g);
	return NULL;
}

void gpu_forget(struct gpu *g, uint32_t number)
{
	tier_forget(device_pool_tier(g->pool), number);
}

void gpu_reap(struct gpu *g)
{
	lanes_reap(g->lanes);
	coders_reap(g->coders);
}

static int earlier(int a_ms, int b_ms)
{
	return a_ms < 0 ? b_ms : b_ms < 0 || a_ms < b_ms ? a_ms : b_ms;
}

int gpu_tick(struct gpu *g, int timeout_ms)
{
	timeout_ms = earlier(timeout_ms, lanes_watch(g->lanes));
	timeout_ms = earlier(timeout_ms, device_pool_tick(g->pool));
	timeout_ms = earlier(timeout_ms, coders_tick(g->coders));
	return earlier(timeout_ms, staging_tick(g->staging));
}

bool gpu_is_idle(const struct gpu *g)
{
	return !lanes_n_busy(g->lanes) && !staging_n_busy(g->staging) && !coders_n_busy(g->coders);
}

/* placed: images that were made in the pool; uploaded: brought there over the bus; outgrown: larger than the
 * room that was reserved for them. */
static json_t *pool_status(const struct gpu *g)
{
	json_t *pool = device_pool_status(g->pool);

	json_object_set_new(pool, "placed", json_integer((json_int_t)g->n_placed));
	json_object_set_new(pool, "uploaded", json_integer((json_int_t)g->n_uploaded));
	json_object_set_new(pool, "outgrown", json_integer((json_int_t)g->n_outgrown));
	return pool;
}

json_t *gpu_status(const struct gpu *g)
{
	struct import_stats imports;

	if (!g)
		return json_null();
	imports_get_stats(g->imports, &imports);
	return json_pack("{s:s, s:{s:i, s:I, s:i, s:I, s:I}, s:o, s:o, s:o, s:o, s:{s:I, s:I, s:I, s:I}}",
		"name", device_describe(g->device), "mapped", "allocations", (int)imports.n_allocations,
		"bytes", (json_int_t)imports.bytes, "events", (int)imports.n_events, "opened",
		(json_int_t)imports.n_opened, "stale", (json_int_t)imports.n_stale, "staging",
		staging_status(g->staging), "pool", pool_status(g), "lanes", lanes_status(g->lanes), "codec",
		coders_status(g->coders), "search", "measured", (json_int_t)g->search.n_measured, "copied",
		(json_int_t)g->search.n_copied, "to_host_bytes", (json_int_t)g->search.to_host_bytes,
		"to_device_bytes", (json_int_t)g->search.to_device_bytes);
}
