#include "tools/calibration.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/policy.h"
#include "runtime/codec.h"
#include "tools/calibration-metric.h"

enum {
	/* Of a capture's chunks one in so many is encoded to count levels, and so many of them at most. No
	 * power of two, as sequences often are one long. They are those that calibrate.h holds out, or
	 * nearly. */
	COUNT_EVERY = 7,
	COUNT_CHUNKS_MAX = 32,
	/* What is counted depends a little on the tables that were there before. */
	COUNT_ROUNDS = 2,
	SCRATCH_BYTES = 64 << 20,
};

struct run {
	const struct kernels *kernels;
	const struct calibration_options *options;
	char *const *paths;
	size_t n_paths;
	struct geometry geometry;
	struct calibrate *calibrate;
	uint64_t n_skipped;
	uint32_t chunk_tokens;
	/* Room for one chunk of the widest part: */
	float *x, *cos, *sin;
	uint16_t *tokens;
	char *why;
	size_t why_len;
};

__attribute__((format(printf, 3, 4))) static int fail(struct run *run, int code, const char *format, ...)
{
	va_list args;

	if (run->why && run->why_len) {
		va_start(args, format);
		vsnprintf(run->why, run->why_len, format, args);
		va_end(args);
	}
	return code;
}

void calibration_options_init(struct calibration_options *o)
{
	*o = (struct calibration_options){.skip_positions = 4, .window_tokens = 128};
	calibrate_options_init(&o->calibrate);
}

/* Opens a capture and sees that it is of the same model as the first. */
static int open_capture(struct run *run, size_t i, struct capture **out)
{
	uint8_t want[16], got[16];
	char why[200] = "";
	int r = capture_open(run->paths[i], &run->options->capture, out, why, sizeof why);

	if (r < 0)
		return fail(run, r, "%s: %s", run->paths[i], why[0] ? why : strerror(-r));
	if (i == 0 && !run->calibrate) {
		run->geometry = (*out)->geometry;
		return 0;
	}
	geometry_fingerprint(&run->geometry, want);
	geometry_fingerprint(&(*out)->geometry, got);
	if (memcmp(want, got, sizeof want) == 0)
		return 0;
	*out = capture_free(*out);
	return fail(run, -EINVAL, "%s: not of the model that %s is of", run->paths[i], run->paths[0]);
}

static int make_room(struct run *run)
{
	size_t n = run->chunk_tokens, widest = 0;

	for (uint32_t i = 0; i < calibrate_n_parts(run->calibrate); i++) {
		struct transform_part part;

		calibrate_part(run->calibrate, i, &part);
		if (part.n_features > widest)
			widest = part.n_features;
	}
	run->x = malloc(n * widest * sizeof *run->x);
	run->cos = malloc(n * GEOMETRY_ROPE_MAX / 2 * sizeof *run->cos);
	run->sin = malloc(n * GEOMETRY_ROPE_MAX / 2 * sizeof *run->sin);
	run->tokens = malloc(n * sizeof *run->tokens);
	return run->x && run->cos && run->sin && run->tokens ? 0 : -ENOMEM;
}

static void free_room(struct run *run)
{
	free(run->x);
	free(run->cos);
	free(run->sin);
	free(run->tokens);
}

/* Features of up to a chunk's tokens from first on: x [n, p]. *end gets where to go on. Returns n. */
static size_t gather(struct run *run, const struct capture *capture, const struct transform_part *part,
	uint32_t first, uint32_t *end)
{
	const struct plane *plane = &run->geometry.planes[part->plane];
	struct rope_table rope = {run->cos, run->sin};
	struct kv_run tokens = capture_run(capture, first);
	size_t n = 0, width = plane_width(plane), rope_pairs = plane->rope_dim / 2;
	uint32_t t = first;

	for (; t < capture->n_tokens && t - first < run->chunk_tokens; t++) {
		if (capture->positions[t] < run->options->skip_positions)
			continue;
		if (plane->rope_kind != ROPE_NONE)
			run->kernels->rope_fill(plane, &capture->positions[t], 1, run->cos + n * rope_pairs,
				run->sin + n * rope_pairs);
		run->tokens[n++] = (uint16_t)(t - first);
	}
	for (uint32_t layer = 0; layer < part->n_layers; layer++)
		run->kernels->gather(plane,
			&capture->pages[(part->first_layer + layer) * run->geometry.n_planes + part->plane],
			&tokens, run->tokens, n, plane->rope_kind != ROPE_NONE ? &rope : NULL, NULL, NULL,
			run->x + layer * width, part->n_features);
	*end = t;
	return n;
}

static int learn_part(struct run *run, uint32_t i)
{
	struct transform_part part;
	int r = 0;

	calibrate_part(run->calibrate, i, &part);
	for (size_t f = 0; f < run->n_paths && r == 0; f++) {
		struct capture *capture;
		uint32_t at = 0;

		r = open_capture(run, f, &capture);
		if (r < 0)
			return r;
		while (at < capture->n_tokens && r == 0) {
			uint32_t first = at;
			size_t n = gather(run, capture, &part, first, &at);

			run->n_skipped += i == 0 ? at - first - n : 0;
			r = calibrate_add(run->calibrate, i, run->x, part.n_features, n);
		}
		capture_free(capture);
	}
	if (r == 0)
		r = calibrate_learn(run->calibrate, i);
	if (r == -ENODATA)
		return fail(run, r, "fewer than two usable tokens in all captures");
	if (r == -EDOM)
		return fail(run, r, "the covariance of plane %u, layers from %u on, has no decomposition",
			part.plane, part.first_layer);
	return r;
}

/* What the captures' queries say of the features. With none, all count alike. */
static int learn_metric(struct run *run, uint64_t *n_queries)
{
	struct metric *m = NULL;
	float *weight = NULL;
	uint32_t n_heads = 0;
	int r = 0;

	*n_queries = 0;
	for (size_t f = 0; f < run->n_paths && r == 0; f++) {
		struct capture *capture;

		r = open_capture(run, f, &capture);
		if (r < 0)
			break;
		if (capture->queries.n && !m) {
			n_heads = capture->queries.n_heads;
			r = metric_new(&run->geometry, n_heads, &m);
			if (r == -EINVAL)
				fail(run, r, "%s: %u query heads do not share the value heads evenly",
					run->paths[f], n_heads);
		}
		if (r == 0 && capture->queries.n && capture->queries.n_heads != n_heads)
			r = fail(run, -EINVAL, "%s: %u query heads, not %u as before", run->paths[f],
				capture->queries.n_heads, n_heads);
		if (r == 0 && capture->queries.n) {
			r = calibration_metric_add(run->kernels, capture, run->options->skip_positions,
				run->options->window_tokens, m);
			*n_queries += capture->queries.n;
		}
		capture_free(capture);
	}
	for (uint32_t i = 0; i < calibrate_n_parts(run->calibrate) && r == 0 && m; i++) {
		struct transform_part part;

		calibrate_part(run->calibrate, i, &part);
		free(weight);
		weight = malloc(part.n_features * sizeof *weight);
		if (!weight) {
			r = -ENOMEM;
			break;
		}
		metric_weights(m, part.plane, part.first_layer, part.n_layers, weight);
		r = calibrate_set_weight(run->calibrate, i, weight);
	}
	free(weight);
	metric_free(m);
	return r;
}

/* Encodes a chunk at every other rung, which between them meet every class of component. */
static int count_chunk(struct run *run, struct codec *codec, const struct transform *t,
	const struct capture *capture, uint32_t first, struct levels_counts *counts)
{
	struct codec_chunk chunk = {.geometry = &run->geometry,
		.pages = capture->pages,
		.run = capture_run(capture, first),
		.position = capture->positions[first]};
	uint8_t classes[FRAME_TOKENS_MAX];
	int r = 0;

	/* Positions are those of one sequence, so a run of them. */
	while (chunk.n_tokens < run->chunk_tokens && first + chunk.n_tokens < capture->n_tokens &&
		capture->positions[first + chunk.n_tokens] == chunk.position + chunk.n_tokens)
		chunk.n_tokens++;
	for (uint32_t i = 0; i < chunk.n_tokens; i++)
		classes[i] = chunk.position + i < run->options->skip_positions ? TOKEN_SINK : TOKEN_PLAIN;
	for (uint32_t rung = 0; rung < t->n_rungs && !r; rung += 2) {
		const struct codec_options options = {.transform = t,
			.rung = rung,
			.rung_salient = rung,
			.classes = classes,
			.counts = counts};
		uint8_t *frame;
		size_t len;

		r = codec_encode(codec, &chunk, &options, &frame, &len, NULL);
		if (!r)
			free(frame);
	}
	return r;
}

static int count_levels(
	struct run *run, struct codec *codec, const struct transform *t, struct levels_counts *counts)
{
	uint32_t n_chunks = 0, n_counted = 0;
	int r = 0;

	for (size_t f = 0; f < run->n_paths && r == 0 && n_counted < COUNT_CHUNKS_MAX; f++) {
		struct capture *capture;

		r = open_capture(run, f, &capture);
		if (r < 0)
			return r;
		for (uint32_t at = 0; at < capture->n_tokens && r == 0 && n_counted < COUNT_CHUNKS_MAX;
			at += run->chunk_tokens) {
			/* The only chunk of a short capture counts, too. */
			if (n_chunks++ % COUNT_EVERY != COUNT_EVERY - 1 && run->n_paths > COUNT_EVERY)
				continue;
			r = count_chunk(run, codec, t, capture, at, counts);
			n_counted++;
		}
		capture_free(capture);
	}
	return r;
}

/* Makes the tables those of the levels that the captures have. */
static int refine_tables(struct run *run)
{
	struct levels_counts *counts = calloc(GEOMETRY_PLANES_MAX, sizeof *counts);
	struct codec *codec = codec_new(run->kernels, SCRATCH_BYTES);
	struct transform *t = NULL;
	void *data = NULL;
	size_t len;
	int r = counts && codec ? 0 : -ENOMEM;

	if (!r)
		r = calibrate_finish(run->calibrate, NULL, &data, &len, NULL);
	if (!r)
		r = transform_parse(data, len, &t, run->why, run->why_len);
	if (!r)
		r = count_levels(run, codec, t, counts);
	if (!r)
		calibrate_count_levels(run->calibrate, counts);
	transform_unref(t);
	free(data);
	codec_free(codec);
	free(counts);
	return r;
}

static int learn_all(struct run *run, struct calibration *out)
{
	int r = make_room(run);

	if (r == 0 && !run->options->no_metric)
		r = learn_metric(run, &out->n_queries);
	for (uint32_t i = 0; i < calibrate_n_parts(run->calibrate) && r == 0; i++)
		r = learn_part(run, i);
	if (r < 0)
		return r;
	for (int round = 0; round < COUNT_ROUNDS && r == 0; round++)
		r = refine_tables(run);
	if (r < 0)
		return r;
	r = calibrate_finish(run->calibrate, run->options->note, &out->data, &out->len, &out->report);
	if (r == -EINVAL)
		return fail(run, r, "the note is not UTF-8 text");
	return r;
}

int calibration_run(const struct kernels *kernels, const struct calibration_options *options,
	char *const *paths, size_t n_paths, struct calibration *out, char *why, size_t why_len)
{
	struct run run = {.kernels = kernels,
		.options = options,
		.paths = paths,
		.n_paths = n_paths,
		.chunk_tokens = options->calibrate.chunk_tokens,
		.why = why,
		.why_len = why_len};
	struct calibration found = {0};
	struct capture *first;
	int r;

	if (n_paths == 0)
		return fail(&run, -EINVAL, "no capture to learn from");
	r = open_capture(&run, 0, &first);
	if (r < 0)
		return r;
	capture_free(first);
	r = calibrate_new(&run.geometry, &options->calibrate, &run.calibrate, why, why_len);
	if (r == 0)
		r = learn_all(&run, &found);
	if (r == -ENOMEM)
		fail(&run, r, "out of memory");
	if (r == 0) {
		found.geometry = run.geometry;
		found.n_skipped = run.n_skipped;
		*out = found;
	}
	free_room(&run);
	calibrate_free(run.calibrate);
	return r;
}
