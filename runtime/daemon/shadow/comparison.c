#include "runtime/daemon/shadow/comparison.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool rest(void *arg)
{
	return background_rest(arg);
}

static void run(struct task *task, struct background *b)
{
	struct comparison *c = (struct comparison *)task;
	struct codec *codec = background_codec(b);
	const struct codec_chunk restored = chunk_copy_view(c->restored);

	c->status = codec ? codec_decode(codec, c->frame, c->frame_bytes, c->transform, &restored, 0,
				    c->restored->geometry->n_layers)
			  : -ENOMEM;
	if (codec)
		codec_trim(codec); /* between comparisons nothing is kept that is not counted */
	if (!c->status && !background_rest(b))
		c->status = -ECANCELED;
	if (!c->status)
		c->status = attention_error_measure(
			c->kernels, c->shadow->copy, c->restored, &c->queries->queries, rest, b, &c->error);
}

static void fini(struct comparison *c)
{
	query_sample_free(c->queries);
	chunk_copy_free(c->restored);
	free(c->frame);
	budget_give(c->budget, c->bytes);
	free(c);
}

struct comparison *comparison_new(struct budget *b, const struct kernels *kernels, struct shadow *shadow,
	struct query_sample *queries, const void *frame, size_t frame_bytes,
	const struct transform *transform, void (*done)(struct task *task, bool ran))
{
	const struct chunk_copy *original = shadow->copy;
	const size_t bytes = sizeof(struct comparison) + frame_bytes + original->len_bytes;
	struct comparison *c = NULL;

	if (budget_take(b, bytes)) {
		c = calloc(1, sizeof *c);
		if (!c)
			budget_give(b, bytes);
	}
	if (!c) {
		query_sample_free(queries);
		return NULL;
	}
	*c = (struct comparison){.task = {.run = run, .done = done},
		.budget = b,
		.bytes = bytes,
		.kernels = kernels,
		.shadow = shadow,
		.queries = queries,
		.transform = transform,
		.frame = malloc(frame_bytes),
		.frame_bytes = frame_bytes,
		.restored = chunk_copy_new(original->geometry, original->n_tokens),
		.status = -ECANCELED};
	if (!c->frame || !c->restored) {
		fini(c);
		return NULL;
	}
	memcpy(c->frame, frame, frame_bytes);
	chunk_copy_place(c->restored, original->n_tokens, original->position);
	shadow->state = SHADOW_COMPARED;
	return c;
}

struct comparison *comparison_free(struct comparison *c, struct shadows *shadows)
{
	if (c) {
		shadows_compared(shadows, c->shadow);
		fini(c);
	}
	return NULL;
}
