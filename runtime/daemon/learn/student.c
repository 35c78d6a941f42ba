#include "runtime/daemon/learn/student.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "policy/calibrate.h"
#include "policy/policy.h"

enum {
	/* Between two versions so many chunks' levels are counted, at every so many-th rung. */
	COUNT_CHUNKS_MAX = 16,
	COUNT_RUNGS = 3,
};

struct student {
	const struct geometry *geometry;
	const struct kernels *kernels;
	uint32_t chunk_tokens;
	struct calibrate *calibrate;
	float *x, *c, *rope; /* room for a chunk: [n, p], [r, n], cos and sin */
	size_t x_room, c_room, rope_room;
	struct codec *codec;          /* to count levels with; NULL: none were yet */
	struct levels_counts *counts; /* [planes] since the last version */
	uint32_t n_counted;           /* chunks */
};

/* One part's tokens on their way through. */
struct gathered {
	uint16_t tokens[FRAME_TOKENS_MAX];
	uint64_t positions[FRAME_TOKENS_MAX];
	size_t n;
};

static int make_calibrate(
	struct student *s, const struct student_options *options, uint64_t *needed, char *why, size_t why_len)
{
	struct calibrate_options o;
	uint32_t layers = s->geometry->n_layers;
	uint64_t bytes;

	calibrate_options_init(&o);
	o.chunk_tokens = options->chunk_tokens;
	o.keep = 1;
	for (o.layers_per_group = 0;; o.layers_per_group = layers) {
		struct transform_part part;
		int r = calibrate_new(s->geometry, &o, &s->calibrate, why, why_len);

		if (r < 0)
			return r;
		bytes = calibrate_bytes(s->calibrate);
		if (bytes <= options->memory_bytes)
			return 0;
		calibrate_part(s->calibrate, 0, &part);
		s->calibrate = calibrate_free(s->calibrate);
		if (part.n_layers == 1)
			break;
		layers = part.n_layers / 2;
	}
	if (needed)
		*needed = bytes;
	return -ENOSPC;
}

int student_new(const struct geometry *geometry, const struct kernels *kernels,
	const struct student_options *options, struct student **out, uint64_t *needed, char *why,
	size_t why_len)
{
	struct student *s = calloc(1, sizeof *s);
	int r;

	if (!s)
		return -ENOMEM;
	s->geometry = geometry;
	s->kernels = kernels;
	s->chunk_tokens = options->chunk_tokens;
	r = make_calibrate(s, options, needed, why, why_len);
	if (r < 0)
		student_free(s);
	else
		*out = s;
	return r;
}

struct student *student_free(struct student *s)
{
	if (s) {
		calibrate_free(s->calibrate);
		free(s->x);
		free(s->c);
		free(s->rope);
		codec_free(s->codec);
		free(s->counts);
		free(s);
	}
	return NULL;
}

uint64_t student_bytes(const struct student *s)
{
	return calibrate_bytes(s->calibrate);
}

static float *room(float **memory, size_t *have, size_t want)
{
	if (*have < want) {
		free(*memory);
		*memory = malloc(want * sizeof **memory);
		*have = *memory ? want : 0;
	}
	return *memory;
}

static void find_coded(const struct chunk_copy *chunk, const uint8_t *classes, struct gathered *g)
{
	g->n = 0;
	for (uint32_t t = 0; t < chunk->n_tokens; t++)
		if (!token_class_is_raw(classes[t])) {
			g->tokens[g->n] = (uint16_t)t;
			g->positions[g->n++] = chunk->position + t;
		}
}

/* Features of a layer group: s->x [n, p], rotation undone, in the metric of part, if it has one. */
static int gather(struct student *s, const struct chunk_copy *chunk, const struct gathered *g,
	const struct transform_part *part)
{
	const struct codec_chunk view = chunk_copy_view(chunk);
	const struct plane *plane = &s->geometry->planes[part->plane];
	const size_t width = plane_width(plane), n_angles = g->n * (plane->rope_dim / 2);
	const bool rotated = plane->rope_kind != ROPE_NONE && n_angles;
	struct rope_table rope = {0};

	if (!room(&s->x, &s->x_room, g->n * part->n_features) ||
		!room(&s->rope, &s->rope_room, 2 * n_angles + 1))
		return -ENOMEM;
	if (rotated) {
		s->kernels->rope_fill(plane, g->positions, g->n, s->rope, s->rope + n_angles);
		rope = (struct rope_table){.cos = s->rope, .sin = s->rope + n_angles};
	}
	for (uint32_t l = 0; l < part->n_layers; l++)
		s->kernels->gather(plane,
			&view.pages[(size_t)(part->first_layer + l) * s->geometry->n_planes + part->plane],
			&view.run, g->tokens, g->n, rotated ? &rope : NULL,
			part->mean ? part->mean + l * width : NULL,
			part->weight ? part->weight + l * width : NULL, s->x + l * width, part->n_features);
	return 0;
}

/* The components that a rung codes, and of them only those that held nearly all of the variance in
 * calibration: at a fine rung of a small model all are coded, and where the energy lies would not show. */
static size_t n_main(const struct transform_part *part, float step)
{
	const size_t n = transform_active(part, step);
	double total = 0, sum = 0;
	size_t k = 0;

	for (size_t i = 0; i < n; i++)
		total += (double)part->deviation[i] * (double)part->deviation[i];
	while (k < n && sum < 0.99 * total) {
		sum += (double)part->deviation[k] * (double)part->deviation[k];
		k++;
	}
	return k;
}

/* Every plane's energy counts as a share of its own, so that neither drowns the other. */
static int measure_energy(struct student *s, const struct chunk_copy *chunk, const struct gathered *g,
	const struct transform *t, uint32_t rung, double *inside_out, double *total_out)
{
	double inside[GEOMETRY_PLANES_MAX] = {0}, total[GEOMETRY_PLANES_MAX] = {0};

	*inside_out = *total_out = 0;
	for (uint32_t i = 0; i < t->n_parts; i++) {
		const struct transform_part *part = &t->parts[i];
		const size_t k = n_main(part, t->step[rung < t->n_rungs ? rung : t->n_rungs - 1]);
		const size_t n_values = g->n * part->n_features;
		int r = gather(s, chunk, g, part);

		if (r < 0)
			return r;
		if (!room(&s->c, &s->c_room, (k + 1) * g->n))
			return -ENOMEM;
		s->kernels->project(
			part->basis, k, part->n_features, s->x, part->n_features, g->n, s->c, g->n);
		for (size_t j = 0; j < n_values; j++)
			total[part->plane] += (double)s->x[j] * (double)s->x[j];
		for (size_t j = 0; j < k * g->n; j++)
			inside[part->plane] += (double)s->c[j] * (double)s->c[j];
	}
	for (uint32_t plane = 0; plane < s->geometry->n_planes; plane++)
		if (total[plane] > 0) {
			*inside_out += (double)g->n * inside[plane] / total[plane];
			*total_out += (double)g->n;
		}
	return 0;
}

/* Encodes the chunk at a few rungs, for what its levels are: the next transform's tables. */
static int count_levels(
	struct student *s, const struct chunk_copy *chunk, const uint8_t *classes, const struct transform *t)
{
	const struct codec_chunk view = chunk_copy_view(chunk);
	int r = 0;

	if (!s->counts)
		s->counts = calloc(GEOMETRY_PLANES_MAX, sizeof *s->counts);
	if (!s->codec)
		s->codec = codec_new(s->kernels, 0);
	if (!s->counts || !s->codec)
		return -ENOMEM;
	for (uint32_t rung = 0; rung < t->n_rungs && !r; rung += COUNT_RUNGS) {
		const struct codec_options options = {.transform = t,
			.rung = rung,
			.rung_salient = rung,
			.rung_redundant = rung,
			.classes = classes,
			.counts = s->counts};
		uint8_t *frame;
		size_t len;

		r = codec_encode(s->codec, &view, &options, &frame, &len, NULL);
		if (!r)
			free(frame);
	}
	s->n_counted += !r;
	return r;
}

int student_take(struct student *s, const struct chunk_copy *chunk, const uint8_t *classes,
	const struct transform *t, uint32_t rung, double *inside, double *total)
{
	struct gathered g;
	int r = 0;

	*inside = *total = 0;
	find_coded(chunk, classes, &g);
	for (uint32_t i = 0; i < calibrate_n_parts(s->calibrate) && !r && g.n; i++) {
		struct transform_part part;

		calibrate_part(s->calibrate, i, &part);
		r = gather(s, chunk, &g, &part);
		if (!r)
			r = calibrate_add(s->calibrate, i, s->x, part.n_features, g.n);
	}
	if (!r && t && g.n)
		r = measure_energy(s, chunk, &g, t, rung, inside, total);
	if (!r && t && g.n && s->n_counted < COUNT_CHUNKS_MAX)
		r = count_levels(s, chunk, classes, t);
	return r;
}

void student_fade(struct student *s, uint64_t n_tokens)
{
	for (uint32_t i = 0; i < calibrate_n_parts(s->calibrate); i++)
		calibrate_fade(s->calibrate, i, n_tokens);
}

int student_learn(struct student *s, bool (*rest)(void *arg), void *arg, void **data, size_t *len,
	struct transform **out)
{
	char why[200];
	void *bytes = NULL;
	size_t n = 0;
	int r = 0;

	for (uint32_t i = 0; i < calibrate_n_parts(s->calibrate) && !r; i++) {
		r = calibrate_learn(s->calibrate, i);
		if (!r && !rest(arg))
			r = -ECANCELED;
	}
	if (!r && s->n_counted) {
		calibrate_count_levels(s->calibrate, s->counts);
		memset(s->counts, 0, GEOMETRY_PLANES_MAX * sizeof *s->counts);
		s->n_counted = 0;
	}
	if (!r)
		r = calibrate_finish(s->calibrate, "learned by the daemon", &bytes, &n, NULL);
	if (!r)
		r = transform_parse(bytes, n, out, why, sizeof why);
	if (r) {
		free(bytes);
		return r == -EBADMSG ? -EDOM : r;
	}
	*data = bytes;
	*len = n;
	return 0;
}
