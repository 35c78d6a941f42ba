#include "runtime/daemon/device/resident.h"

#include <stdlib.h>

#include "runtime/daemon/device/coders.h"
#include "runtime/daemon/device/pool.h"

enum { FILLS_MAX = 64 }; /* under way: they keep frames in the pool in RAM */

struct fill {
	struct coder_fill coder; /* first */
	struct gpu *gpu;
	struct cache *cache;
	struct index_entry *entry;
	struct image *image;
	struct tier_frame frame;
};

static uint32_t number_of(const struct cache *c, const struct index_entry *e)
{
	return index_number(cache_index(c), e);
}

bool resident_find(
	struct gpu *g, const struct cache *c, const struct index_entry *e, struct tier_frame *frame)
{
	return !e->dead && tier_find(device_pool_tier(g->pool), number_of(c, e), frame);
}

void resident_release(struct gpu *g, const struct tier_frame *frame)
{
	tier_release(device_pool_tier(g->pool), frame);
}

static void filled(struct coder_fill *coder)
{
	struct fill *f = (struct fill *)coder;
	struct tier *tier = device_pool_tier(f->gpu->pool);

	if (coder->status)
		free(f->image);
	else
		tier_filled(tier, &f->frame, f->image);
	tier_release(tier, &f->frame);
	f->gpu->n_fills--;
	cache_release(f->cache, f->entry);
	free(f);
}

void resident_fill(struct gpu *g, struct cache *c, struct index_entry *e, struct image *image)
{
	struct fill *f = g->n_fills < FILLS_MAX && !e->dead && e->record ? malloc(sizeof *f) : NULL;

	if (f)
		*f = (struct fill){.gpu = g, .cache = c, .entry = e, .image = image};
	if (!f || tier_reserve(device_pool_tier(g->pool), number_of(c, e), (uint32_t)image->len_bytes + 1,
			  &f->frame)) {
		free(f);
		free(image);
		return;
	}
	f->coder = (struct coder_fill){.image = image,
		.frame = cache_frame(e),
		.len = e->frame_bytes,
		.to = f->frame.at,
		.done = filled};
	g->n_fills++;
	cache_hold(e);
	coders_fill(g->coders, &f->coder);
}
