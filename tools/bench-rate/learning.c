#include "tools/bench-rate/learning.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/covariance.h"
#include "policy/pca.h"
#include "tools/calibration.h"
#include "tools/capture.h"

enum {
	CHUNK_TOKENS = 256,
	SAMPLE_TOKENS = 1024, /* that the allocation is decided on */
};

static int make_transform(
	struct learning *l, const struct learning_options *o, char *const *paths, size_t n_paths)
{
	struct calibration_options options;
	struct calibration c;
	char why[400] = "";
	int r;

	calibration_options_init(&options);
	options.calibrate.layers_per_group = o->layers_per_group;
	options.skip_positions = o->skip_positions;
	options.note = "cistern bench rate";
	r = calibration_run(l->kernels, &options, paths, n_paths, &c, why, sizeof why);
	if (r == 0) {
		l->geometry = c.geometry;
		l->transform_bytes = c.len;
		l->n_tokens = c.report.n_tokens;
		r = transform_parse(c.data, c.len, &l->transform, why, sizeof why);
		free(c.data);
	}
	if (r < 0)
		fprintf(stderr, "cistern bench rate: %s\n", why[0] ? why : strerror(-r));
	return r;
}

/* Calls each with the features of every usable calibration token of the group, a chunk at a time. mean may be
 * NULL. */
static int for_each_chunk(const struct learning *l, const struct learning_options *o, char *const *paths,
	size_t n_paths, const struct layer_group *group, const float *mean,
	int (*each)(void *arg, const float *x, size_t n), void *arg)
{
	float *x = malloc(CHUNK_TOKENS * group->p * sizeof *x);
	int r = x ? 0 : -ENOMEM;

	for (size_t f = 0; f < n_paths && r == 0; f++) {
		const struct capture_options options = {0};
		struct capture *capture = NULL;
		char why[200] = "";

		r = capture_open(paths[f], &options, &capture, why, sizeof why);
		if (r < 0)
			fprintf(stderr, "cistern bench rate: %s: %s\n", paths[f],
				why[0] ? why : strerror(-r));
		for (uint32_t at = 0; r == 0 && at < capture->n_tokens; at += CHUNK_TOKENS) {
			const struct codec_chunk chunk = {.geometry = &l->geometry,
				.pages = capture->pages,
				.run = capture_run(capture, at),
				.position = capture->positions[at]};
			uint16_t tokens[CHUNK_TOKENS];
			size_t n = 0;

			for (uint32_t t = 0; t < CHUNK_TOKENS && at + t < capture->n_tokens; t++)
				if (capture->positions[at + t] >= o->skip_positions)
					tokens[n++] = (uint16_t)t;
			r = layer_group_read(l->kernels, &chunk, group, tokens, n, mean, x);
			if (r == 0)
				r = each(arg, x, n);
		}
		capture_free(capture);
	}
	free(x);
	return r;
}

struct adding {
	struct covariance *covariance;
	size_t p;
};

static int add(void *arg, const float *x, size_t n)
{
	const struct adding *a = arg;

	covariance_add(a->covariance, x, a->p, n);
	return 0;
}

struct sampling {
	const struct learning *l;
	struct learned_group *g;
	uint64_t every, seen;
	float *kept; /* [n_sample, p] */
};

static int sample(void *arg, const float *x, size_t n)
{
	struct sampling *s = arg;
	const size_t p = s->g->group.p;

	for (size_t t = 0; t < n; t++, s->seen++)
		if (s->seen % s->every == 0 && s->g->n_sample < SAMPLE_TOKENS)
			memcpy(s->kept + s->g->n_sample++ * p, x + t * p, p * sizeof *x);
	return 0;
}

static int decompose(struct learning *l, const struct learning_options *o, char *const *paths, size_t n_paths,
	struct learned_group *g, uint64_t *count)
{
	const size_t p = g->group.p;
	struct adding adding = {covariance_new(p), p};
	double *mean = malloc(p * sizeof *mean), *matrix = malloc(p * p * sizeof *matrix);
	int r = -ENOMEM;

	g->mean = malloc(p * sizeof *g->mean);
	g->basis = malloc(p * p * sizeof *g->basis);
	if (adding.covariance && mean && matrix && g->mean && g->basis)
		r = for_each_chunk(l, o, paths, n_paths, &g->group, NULL, add, &adding);
	if (r == 0) {
		covariance_mean(adding.covariance, mean);
		covariance_matrix(adding.covariance, mean, matrix);
		*count = covariance_count(adding.covariance);
		for (size_t i = 0; i < p; i++)
			g->mean[i] = (float)mean[i];
		r = pca(matrix, p, g->basis);
	}
	covariance_free(adding.covariance);
	free(mean);
	free(matrix);
	return r;
}

static int learn_group(struct learning *l, const struct learning_options *o, char *const *paths,
	size_t n_paths, struct learned_group *g)
{
	const size_t p = g->group.p;
	struct sampling sampling = {.l = l, .g = g, .kept = malloc(SAMPLE_TOKENS * p * sizeof(float))};
	uint64_t count = 0;
	int r = sampling.kept ? decompose(l, o, paths, n_paths, g, &count) : -ENOMEM;

	if (r == 0 && !count)
		r = -ENODATA;
	if (r == 0) {
		sampling.every = (count + SAMPLE_TOKENS - 1) / SAMPLE_TOKENS;
		r = for_each_chunk(l, o, paths, n_paths, &g->group, g->mean, sample, &sampling);
	}
	g->sample = r == 0 ? malloc(p * g->n_sample * sizeof *g->sample) : NULL;
	if (r == 0 && !g->sample)
		r = -ENOMEM;
	if (r == 0)
		l->kernels->project(g->basis, p, p, sampling.kept, p, g->n_sample, g->sample, g->n_sample);
	free(sampling.kept);
	return r;
}

static int learn_groups(
	struct learning *l, const struct learning_options *o, char *const *paths, size_t n_paths)
{
	int r = 0;

	l->groups = calloc(l->transform->n_parts, sizeof *l->groups);
	if (!l->groups)
		return -ENOMEM;
	l->n_groups = l->transform->n_parts;
	for (size_t i = 0; i < l->n_groups && r == 0; i++) {
		const struct transform_part *part = &l->transform->parts[i];

		l->groups[i].group = (struct layer_group){
			part->plane, part->first_layer, part->n_layers, part->n_features};
		r = o->stop && *o->stop ? -EINTR : learn_group(l, o, paths, n_paths, &l->groups[i]);
	}
	return r;
}

static int learn_whole(
	struct learning *l, const struct learning_options *o, char *const *paths, size_t n_paths)
{
	const struct geometry *g = &l->geometry;
	int r = 0;

	if (l->n_groups == g->n_planes)
		return 0;
	l->whole = calloc(g->n_planes, sizeof *l->whole);
	if (!l->whole)
		return -ENOMEM;
	l->n_whole = g->n_planes;
	for (uint32_t i = 0; i < g->n_planes && r == 0; i++) {
		l->whole[i].group =
			(struct layer_group){i, 0, g->n_layers, g->n_layers * plane_width(&g->planes[i])};
		r = o->stop && *o->stop ? -EINTR : learn_group(l, o, paths, n_paths, &l->whole[i]);
	}
	return r;
}

int learning_new(const struct learning_options *o, char *const *paths, size_t n_paths, struct learning **out)
{
	struct learning *l = calloc(1, sizeof *l);
	int r = l ? 0 : -ENOMEM;

	if (r < 0)
		return r;
	l->kernels = kernels_cpu();
	r = make_transform(l, o, paths, n_paths);
	if (r == 0)
		r = learn_groups(l, o, paths, n_paths);
	if (r == 0)
		r = learn_whole(l, o, paths, n_paths);
	if (r < 0)
		learning_free(l);
	else
		*out = l;
	return r;
}

static void free_groups(struct learned_group *groups, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		free(groups[i].mean);
		free(groups[i].basis);
		free(groups[i].sample);
	}
	free(groups);
}

struct learning *learning_free(struct learning *l)
{
	if (!l)
		return NULL;
	free_groups(l->groups, l->n_groups);
	free_groups(l->whole, l->n_whole);
	transform_unref(l->transform);
	free(l);
	return NULL;
}
