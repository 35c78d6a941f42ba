#include "runtime/reencode.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "policy/policy.h"
#include "runtime/chunk-copy.h"

/* What is left of the bound for the second of two errors; 0: nothing. */
static double bound_left(double max_error, const struct frame_info *old)
{
	const double lost = fmax((double)old->error[0].max, (double)old->error[1].max);

	return fmax(0, (max_error - lost) / (1 + lost));
}

/* The errors of both, one after the other. When tokens left the coded set, the old frame's mean is not
 * theirs. */
static void add_errors(const struct frame_info *old, struct frame_info *info)
{
	for (int plane = 0; plane < 2; plane++) {
		const struct frame_error *a = &old->error[plane];
		struct frame_error *b = &info->error[plane];

		b->mean = (info->n_raw == old->n_raw ? a->mean : a->max) + b->mean * (1 + a->max);
		b->max = a->max + b->max * (1 + a->max);
	}
}

int reencode(struct codec *codec, const struct geometry *g, const void *frame, size_t len,
	const struct reencode_options *options, uint8_t **out, size_t *out_len, struct frame_info *info_out)
{
	uint8_t classes[FRAME_TOKENS_MAX], *data = NULL;
	struct codec_options encode = {.transform = options->to,
		.rung = options->rung,
		.classes = classes,
		.policy_version = options->policy_version};
	struct frame_info old, info;
	struct codec_chunk chunk;
	struct chunk_copy *copy;
	size_t data_len;
	int r = frame_parse(frame, len, &old, NULL, 0);

	if (!r)
		r = frame_classes(frame, len, classes);
	if (r)
		return r;
	if (options->max_error > 0) {
		encode.max_error = bound_left(options->max_error, &old);
		if (encode.max_error == 0)
			return -ERANGE;
	}
	memcpy(encode.name_space, old.name_space, 16);
	memcpy(encode.key, old.key, 32);
	memcpy(encode.parent, old.parent, 32);
	copy = chunk_copy_new(g, old.n_tokens);
	if (!copy)
		return -ENOMEM;
	chunk_copy_place(copy, old.n_tokens, old.position);
	chunk = chunk_copy_view(copy);
	r = codec_decode(codec, frame, len, options->from, &chunk, 0, g->n_layers);
	if (!r)
		r = codec_encode(codec, &chunk, &encode, &data, &data_len, &info);
	if (!r && data_len >= len)
		r = -ERANGE;
	if (!r) {
		add_errors(&old, &info);
		r = frame_restate_error(data, data_len, info.error);
	}
	if (r) {
		free(data);
	} else {
		*out = data;
		*out_len = data_len;
		if (info_out)
			*info_out = info;
	}
	chunk_copy_free(copy);
	return r;
}
