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

void resident_reserve(struct gpu *g, const struct cache *c, const struct index_entry *e,
	struct device_encode *encode, struct tier_frame *frame)
{
	struct tier *tier = device_pool_tier(g->pool);
	const uint64_t bytes =
		tier_limit(tier) ? forecast_image(&g->forecast, encode->chunk, encode->options) : 0;

	/* What the tier hands out is mapped: its limit never passes that (pool.h). */
	if (!bytes || bytes > UINT32_MAX || e->dead ||
		tier_reserve(tier, number_of(c, e), (uint32_t)bytes, frame))
		return;
	encode->room_at = frame->at;
	encode->room_bytes = frame->bytes;
}

void resident_encoded(struct gpu *g, const struct device_encode *encode, struct tier_frame *frame)
{
	struct tier *tier = device_pool_tier(g->pool);

	if (!encode->status)
		forecast_learn(&g->forecast, encode->chunk, encode->options, encode->image->len_bytes + 1);
	if (!frame->bytes)
		return;
	if (!encode->status && encode->image_at) {
		tier_trim(tier, frame, (uint32_t)encode->image->len_bytes + 1);
		return;
	}
	g->n_outgrown += !encode->status;
	tier_release(tier, frame);
	frame->bytes = 0;
}

void resident_keep(struct gpu *g, const struct tier_frame *frame, struct image *image)
{
	g->n_placed += tier_filled(device_pool_tier(g->pool), frame, image);
}

static void filled(struct coder_fill *coder)
{
	struct fill *f = (struct fill *)coder;
	struct tier *tier = device_pool_tier(f->gpu->pool);

	if (coder->status)
		free(f->image);
	else
		f->gpu->n_uploaded += tier_filled(tier, &f->frame, f->image);
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
