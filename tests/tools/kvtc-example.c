/* What check_kvtc.py holds against the numpy reference:
 *
 *     kvtc-example FOLDER
 *
 * FOLDER has calib.safetensors and test.safetensors, captures as tools/capture.h reads them. Left there, for
 * each layer group G (keys, then values) and each nominal ratio R: G.mean, G.basis, G.sample, G.coefficients
 * of the test tokens (f32, as the codec computes them), G.R.plan (pairs of size and type, u16) and G.R.error
 * (f64); R.bytes (u64, coded bytes of the whole chunk) and R.restored (f16, [layers, 2, tokens, heads, dim],
 * the chunk coded in place). The first and the last 8 tokens are protected. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

#include "base/file.h"
#include "policy/policy.h"
#include "tools/bench-rate/codecs/kvtc.h"
#include "tools/bench-rate/codecs/under-test.h"
#include "tools/capture.h"

enum { PROTECTED = 8, TOKENS_MAX = 1024 };

static const char *folder;

static void check(int r, const char *what)
{
	if (r < 0) {
		fprintf(stderr, "kvtc-example: %s: %s\n", what, strerror(-r));
		exit(EXIT_FAILURE);
	}
}

static void put(size_t group, double ratio, const char *what, const void *data, size_t len)
{
	char path[512];

	if (group == SIZE_MAX)
		snprintf(path, sizeof path, "%s/%g.%s", folder, ratio, what);
	else if (ratio == 0)
		snprintf(path, sizeof path, "%s/%zu.%s", folder, group, what);
	else
		snprintf(path, sizeof path, "%s/%zu.%g.%s", folder, group, ratio, what);
	check(file_write(path, data, len), path);
}

static struct capture *open_test(void)
{
	const struct capture_options options = {0};
	struct capture *capture;
	char path[512], why[200] = "";

	snprintf(path, sizeof path, "%s/test.safetensors", folder);
	check(capture_open(path, &options, &capture, why, sizeof why), path);
	if (capture->n_tokens > TOKENS_MAX)
		check(-E2BIG, path);
	return capture;
}

static struct codec_chunk chunk_of(const struct learning *l, const struct capture *capture)
{
	return (struct codec_chunk){.geometry = &l->geometry,
		.pages = capture->pages,
		.run = capture_run(capture, 0),
		.n_tokens = capture->n_tokens,
		.position = capture->positions[0]};
}

static void put_plans(size_t group, const struct learned_group *g)
{
	const size_t p = g->group.p;
	struct kvtc_allocation *a;

	check(kvtc_allocate(g->sample, g->n_sample, p, g->n_sample, p * 16 / 4, &a), "allocation");
	for (size_t i = 0; i < sizeof under_test_ratios / sizeof *under_test_ratios; i++) {
		const double ratio = (double)under_test_ratios[i];
		struct kvtc_plan plan;
		uint16_t *pairs;
		double error;

		check(kvtc_plan_new(a, (size_t)((double)p * 16 / ratio), &plan, &error), "plan");
		if (kvtc_plan_bits(&plan) > (size_t)((double)p * 16 / ratio))
			check(-ERANGE, "budget");
		pairs = calloc(2 * plan.n_groups + 1, sizeof *pairs);
		for (size_t k = 0; pairs && k < plan.n_groups; k++) {
			pairs[2 * k] = plan.groups[k].n_components;
			pairs[2 * k + 1] = plan.groups[k].type;
		}
		check(pairs ? 0 : -ENOMEM, "plan");
		put(group, ratio, "plan", pairs, 2 * plan.n_groups * sizeof *pairs);
		put(group, ratio, "error", &error, sizeof error);
		free(pairs);
		kvtc_plan_fini(&plan);
	}
	kvtc_allocation_free(a);
}

static void put_group(
	const struct learning *l, size_t i, const struct codec_chunk *chunk, const uint8_t *classes)
{
	const struct learned_group *g = &l->groups[i];
	const size_t p = g->group.p;
	uint16_t tokens[TOKENS_MAX];
	const size_t n = coded_tokens(chunk, classes, tokens);
	float *x = malloc(n * p * sizeof *x), *c = malloc(n * p * sizeof *c);

	check(x && c ? layer_group_read(l->kernels, chunk, &g->group, tokens, n, g->mean, x) : -ENOMEM,
		"features");
	l->kernels->project(g->basis, p, p, x, p, n, c, n);
	put(i, 0, "mean", g->mean, p * sizeof *g->mean);
	put(i, 0, "basis", g->basis, p * p * sizeof *g->basis);
	put(i, 0, "sample", g->sample, p * g->n_sample * sizeof *g->sample);
	put(i, 0, "coefficients", c, p * n * sizeof *c);
	put_plans(i, g);
	free(x);
	free(c);
}

static void put_restored(const struct learning *l, const struct codec_chunk *chunk, double ratio,
	const struct coded_bytes *bytes)
{
	const size_t token = geometry_token_bytes(&l->geometry), n = chunk->n_tokens;
	uint8_t *all = malloc(n * token), *at = all;
	uint16_t tokens[TOKENS_MAX];

	check(all ? 0 : -ENOMEM, "restored");
	for (size_t t = 0; t < n; t++)
		tokens[t] = (uint16_t)t;
	for (uint32_t i = 0; i < l->geometry.n_layers * 2; i++, at += n * token / (l->geometry.n_layers * 2))
		l->kernels->gather_raw(
			&l->geometry.planes[i % 2], &chunk->pages[i], &chunk->run, tokens, n, at);
	put(SIZE_MAX, ratio, "restored", all, n * token);
	put(SIZE_MAX, ratio, "bytes", &bytes->coded, sizeof bytes->coded);
	free(all);
}

int main(int argc, char **argv)
{
	const struct learning_options options = {0};
	uint8_t classes[TOKENS_MAX] = {0};
	struct under_test *kvtc;
	struct learning *l;
	char version[512], calib[512], *const paths[] = {calib};
	struct capture *capture;

	if (argc != 2)
		return 2;
	folder = argv[1];
	snprintf(calib, sizeof calib, "%s/calib.safetensors", folder);
	check(learning_new(&options, paths, 1, &l), "learning");
	check(under_test_kvtc(l, &kvtc), "kvtc");
	capture = open_test();
	for (uint32_t t = 0; t < capture->n_tokens; t++)
		classes[t] = t < PROTECTED                        ? TOKEN_SINK
			     : t >= capture->n_tokens - PROTECTED ? TOKEN_WINDOW
								  : TOKEN_PLAIN;
	for (size_t i = 0; i < l->n_groups; i++) {
		const struct codec_chunk chunk = chunk_of(l, capture);

		put_group(l, i, &chunk, classes);
	}
	capture_free(capture);
	for (size_t rung = 0; rung < kvtc->n_rungs; rung++) {
		struct coded_bytes bytes;
		struct codec_chunk chunk;

		capture = open_test(); /* a fresh copy in memory: it is coded in place */
		chunk = chunk_of(l, capture);
		check(kvtc->code(kvtc, rung, &chunk, classes, &bytes), "coding");
		put_restored(l, &chunk, kvtc->rungs[rung], &bytes);
		capture_free(capture);
	}
	snprintf(version, sizeof version, "%s/zlib", folder);
	check(file_write(version, zlibVersion(), strlen(zlibVersion())), version);
	kvtc->free(kvtc);
	learning_free(l);
	return 0;
}
