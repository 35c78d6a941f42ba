#include "runtime/cuda/forecast.h"

#include <string.h>

#include "policy/policy.h"

enum {
	/* Few tokens take what each stream does beside them: they count as so many. */
	CODED_MIN = 32,
	SLACK_BYTES = 4096,
};
/* If chunks are alike, one is larger than the largest of the last 32 once in 33; with this, hardly ever. What
 * is reserved beyond need leaves gaps between images (docs/decisions.md). */
static const double MARGIN = 1.03125, FIRST_MARGIN = 2;

/* That of a transform and rung, or the one that was not asked for the longest, made it. */
static struct forecast_kind *kind_of(struct forecast *f, const struct codec_options *o)
{
	struct forecast_kind *k = &f->kinds[0];

	for (int i = 0; i < FORECAST_KINDS; i++) {
		struct forecast_kind *other = &f->kinds[i];

		if (other->last_use && other->rung == o->rung &&
			!memcmp(other->transform, o->transform->id, 16)) {
			other->last_use = ++f->clock;
			return other;
		}
		if (other->last_use < k->last_use)
			k = other;
	}
	*k = (struct forecast_kind){.rung = o->rung, .last_use = ++f->clock};
	memcpy(k->transform, o->transform->id, 16);
	return k;
}

static uint32_t count_raw(const struct codec_chunk *chunk, const struct codec_options *o)
{
	uint32_t n = 0;

	for (uint32_t t = 0; t < chunk->n_tokens; t++)
		n += token_class_is_raw(o->classes[t]) != 0;
	return n;
}

static double count_coded(const struct codec_chunk *chunk, uint32_t n_raw)
{
	const uint32_t n = chunk->n_tokens - n_raw;

	return n && n < CODED_MIN ? CODED_MIN : n;
}

uint64_t forecast_image(
	struct forecast *f, const struct codec_chunk *chunk, const struct codec_options *options)
{
	const struct forecast_kind *k = kind_of(f, options);
	const double token_bytes = (double)geometry_token_bytes(chunk->geometry);
	const uint32_t n_raw = count_raw(chunk, options);
	double each = 0;

	for (uint32_t i = 0; i < k->n && i < FORECAST_CHUNKS; i++)
		if ((double)k->token_bytes[i] > each)
			each = (double)k->token_bytes[i];
	each = k->n ? each * MARGIN
		    : token_bytes / (double)options->transform->rung_ratio[options->rung] * FIRST_MARGIN;
	return (uint64_t)(n_raw * token_bytes + count_coded(chunk, n_raw) * each) + SLACK_BYTES;
}

void forecast_learn(struct forecast *f, const struct codec_chunk *chunk, const struct codec_options *options,
	uint64_t image_bytes)
{
	struct forecast_kind *k = kind_of(f, options);
	const uint32_t n_raw = count_raw(chunk, options);
	const double coded_bytes =
		(double)image_bytes - n_raw * (double)geometry_token_bytes(chunk->geometry);
	const double n = count_coded(chunk, n_raw);

	if (n > 0)
		k->token_bytes[k->n++ % FORECAST_CHUNKS] = (float)(coded_bytes / n);
}
