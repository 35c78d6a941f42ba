#include "runtime/daemon/steward/errand.h"

#include <errno.h>

#include "policy/rate.h"
#include "runtime/daemon/daemon.h"

static void run_settle(struct errand *e, struct codec *codec)
{
	const struct settle_options options = {
		.transform = e->transform, .policy = &e->policy, .detector = e->detector, .seen = e->seen};

	e->status = settle(codec, e->detection, &e->model->geometry, cache_frame(e->entry),
		e->entry->frame_bytes, &options, &e->settled);
	if (e->status)
		return;
	e->frame = e->settled.frame;
	e->frame_bytes = e->settled.frame_bytes;
	e->info = e->settled.info;
}

static uint32_t coarser(uint32_t rung, uint32_t than)
{
	return rung > than ? rung : than;
}

/* The wanted rung, or the coarsest one finer than that which keeps to the bound. */
static void run_coarsen(struct errand *e, struct codec *codec)
{
	const struct frame_info *before = &e->before;

	e->status = -ERANGE;
	for (uint32_t rung = e->rung; rung > before->rung && e->status == -ERANGE; rung--) {
		const struct codec_options options = {.transform = e->transform,
			.rung = rung,
			.rung_salient = coarser(rate_salient_rung(&e->policy, rung), before->rung_salient),
			.rung_redundant = coarser(
				rate_redundant_rung(&e->policy, e->transform, rung), before->rung_redundant),
			.max_error = e->policy.max_error,
			.policy_version = e->policy.version};

		e->status = codec_transcode(codec, &e->model->geometry, cache_frame(e->entry),
			e->entry->frame_bytes, &options, &e->frame, &e->frame_bytes, &e->info);
	}
}

void errand_run(struct task *task, struct background *b)
{
	struct errand *e = (struct errand *)task;
	struct codec *codec = background_codec(b);

	e->started_ns = board_now_ns();
	if (!codec)
		e->status = -ENOMEM;
	else if (e->kind == ERRAND_SETTLE)
		run_settle(e, codec);
	else
		run_coarsen(e, codec);
	e->ended_ns = board_now_ns();
}
