/*
 * The search for sinks on made-up tokens, where it is known which are sinks: with and without attention seen,
 * in models whose signals mean opposite things; and the rules of deciding.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "policy/policy.h"
#include "policy/sinks/decide.h"
#include "policy/sinks/learner.h"
#include "policy/sinks/observe.h"
#include "policy/sinks/rank.h"

enum { LAYERS = 6, HEADS = 2, DIM = 32, WIDTH = HEADS * DIM, TOKENS = 256, SEED = 5 };

static uint64_t random_state = SEED;

static float gauss(void)
{
	float sum = 0;

	for (int i = 0; i < 12; i++) {
		random_state = random_state * 6364136223846793005u + 1442695040888963407u;
		sum += (float)(random_state >> 40) / 16777216.0f;
	}
	return sum - 6;
}

static struct geometry made_up_geometry(void)
{
	struct geometry g = {.name = "made up", .n_layers = LAYERS, .n_planes = 2, .tp_size = 1};

	for (int i = 0; i < 2; i++)
		g.planes[i] =
			(struct plane){.n_heads = HEADS, .dim = DIM, .dtype = DTYPE_F16, .rope_scale = 1};
	return g;
}

/* A chunk: which tokens are sinks, which are merely odd, and their keys and values. */
struct chunk {
	float x[SINKS_LAYERS_MAX][GEOMETRY_PLANES_MAX][TOKENS * WIDTH];
	float attention[TOKENS];
	bool sink[TOKENS];
};

enum nature {
	SINKS_OUTLYING, /* sinks have far-off keys and values */
	SINKS_AMONG,    /* sinks lie along a direction, no further out than others; far-off tokens are none */
};

/* Every 50th token is a sink, every 40th odd. */
static void make_chunk(struct chunk *c, const struct sinks_view *v, enum nature nature)
{
	for (uint32_t t = 0; t < TOKENS; t++) {
		const bool odd = t % 40 == 17;

		c->sink[t] = t % 50 == 23;
		c->attention[t] = c->sink[t] ? logf(20) : -1 + 0.3f * gauss();
		for (uint32_t l = 0; l < v->n_layers; l++)
			for (uint32_t p = 0; p < 2; p++)
				for (uint32_t d = 0; d < WIDTH; d++) {
					float *x = &c->x[l][p][t * WIDTH + d];

					*x = 3 + gauss();
					if (nature == SINKS_OUTLYING && c->sink[t])
						*x += d % 2 ? 3.0f : -3.0f;
					if (nature == SINKS_AMONG && c->sink[t])
						*x += d % 5 == 0 ? 1.2f : 0;
					if (nature == SINKS_AMONG && odd)
						*x += 3 * gauss();
				}
	}
}

static void feed(struct sinks_learner *l, const struct sinks_view *v, const struct chunk *c, bool seen)
{
	const float *x[SINKS_LAYERS_MAX][GEOMETRY_PLANES_MAX] = {0};

	for (uint32_t i = 0; i < v->n_layers; i++)
		for (uint32_t p = 0; p < 2; p++)
			x[i][p] = c->x[i][p];
	assert_int_equal(sinks_learn(l, x, seen ? c->attention : NULL, TOKENS), 0);
}

/* As the kernels would compute them. */
static void features_of(const struct sinks_detector *d, const struct chunk *c, float *features)
{
	static float statistics[TOKENS][HEADS][SINKS_SIGNALS];

	for (uint32_t l = 0; l < d->view.n_layers; l++)
		for (uint32_t p = 0; p < 2; p++) {
			const struct sinks_basis *b = &d->basis[l][p];

			memset(statistics, 0, sizeof statistics);
			for (uint32_t t = 0; t < TOKENS; t++)
				for (uint32_t k = 0; k < WIDTH; k++) {
					const float x = c->x[l][p][t * WIDTH + k], far = x - b->centre[k];
					float *s = statistics[t][k / DIM];

					s[SINKS_NORM] += x * x;
					s[SINKS_DISTANCE] += far * far * b->weight[k];
					s[SINKS_DIRECTION] += far * b->direction[k];
				}
			sinks_features(&d->view, l, p, &statistics[0][0][0], TOKENS, features);
		}
}

struct found {
	int sinks, others;
	bool loud;
};

/* What a detector that learned from n chunks of this nature finds in another; `loud` is made an outlier of a
 * kind that was never learned from. */
static struct found search(enum nature nature, int n_chunks, bool seen, uint32_t loud)
{
	const struct sinks_rules rules = {.budget = 0.03, .multiple = 10, .unusual = 3, .keep = 0.5};
	const struct geometry g = made_up_geometry();
	struct chunk *c = malloc(sizeof *c);
	struct sinks_view v;
	struct sinks_learner *learner;
	struct sinks_detector *d;
	float *features, scores[TOKENS], unusual[TOKENS];
	uint8_t classes[TOKENS] = {0};
	struct sinks_finding findings[TOKENS];
	struct found found = {0};
	size_t n;

	sinks_view_init(&v, &g);
	learner = sinks_learner_new(&v);
	features = malloc(TOKENS * v.n_features * sizeof *features);
	assert_true(c && learner && features);
	for (int i = 0; i < n_chunks; i++) {
		make_chunk(c, &v, nature);
		feed(learner, &v, c, seen);
	}
	assert_int_equal(sinks_learner_detector(learner, 0.02, log(10), &d), 0);
	assert_int_equal(d->trained, seen);
	make_chunk(c, &v, nature);
	for (uint32_t l = 0; l < v.n_layers && loud < TOKENS; l++)
		for (uint32_t p = 0; p < 2; p++)
			for (uint32_t h = 0; h < HEADS; h++)
				c->x[l][p][loud * WIDTH + h * DIM + 1] += 200;
	features_of(d, c, features);
	sinks_score(d, features, TOKENS, scores);
	sinks_unusual(d, features, TOKENS, unusual);
	n = sinks_decide(&rules,
		&(struct sinks_evidence){.n_tokens = TOKENS,
			.scores = scores,
			.trained = d->trained,
			.threshold = d->threshold,
			.unusual = seen ? unusual : NULL,
			.familiar = d->familiar},
		classes, findings);
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(findings[i].reason,
			seen && findings[i].token != loud ? SINKS_FORETOLD : SINKS_UNUSUAL);
		assert_true(findings[i].score >= findings[i].threshold);
		assert_int_equal(classes[findings[i].token], TOKEN_SINK);
		if (findings[i].token == loud)
			found.loud = true;
		else if (c->sink[findings[i].token])
			found.sinks++;
		else
			found.others++;
	}
	free(c);
	free(features);
	sinks_learner_free(learner);
	sinks_detector_unref(d);
	return found;
}

static void outlying_sinks_are_found_without_attention(void **state)
{
	struct found f = search(SINKS_OUTLYING, 4, false, TOKENS);

	(void)state;
	assert_int_equal(f.sinks, 5);
	assert_int_equal(f.others, 0);
}

static void attention_teaches_which_signals_to_trust(void **state)
{
	struct found cold = search(SINKS_AMONG, 8, false, TOKENS),
		     trained = search(SINKS_AMONG, 8, true, TOKENS);

	(void)state;
	/* By distance the odd tokens are the outliers. */
	assert_int_equal(cold.sinks, 0);
	assert_true(cold.others > 0);
	assert_int_equal(trained.sinks, 5);
	assert_true(trained.others <= 1);
}

/* Where sinks lie among the others, a far-off token is foretold to be none; it was, until how unusual tokens
 * are was asked as well. */
static void what_is_like_nothing_learned_is_protected(void **state)
{
	struct found f = search(SINKS_AMONG, 8, true, 100);

	(void)state;
	assert_true(f.loud);
	assert_int_equal(f.sinks, 5);
}

static void bad_values_teach_nothing(void **state)
{
	const struct geometry g = made_up_geometry();
	struct chunk *c = malloc(sizeof *c);
	struct sinks_view v;
	struct sinks_learner *l;
	struct sinks_detector *d;
	float features[SINKS_FEATURES_MAX], score;
	uint16_t top;

	(void)state;
	sinks_view_init(&v, &g);
	l = sinks_learner_new(&v);
	assert_true(c && l);
	assert_int_equal(sinks_learner_detector(l, 0.02, log(10), &d), -ENODATA);
	make_chunk(c, &v, SINKS_OUTLYING);
	for (uint32_t t = 0; t < TOKENS; t += 3)
		c->x[0][0][t * WIDTH + t % WIDTH] = t % 2 ? NAN : INFINITY;
	feed(l, &v, c, true);
	feed(l, &v, c, true);
	feed(l, &v, c, true);
	feed(l, &v, c, true);
	assert_int_equal(sinks_learner_detector(l, 0.02, log(10), &d), 0);
	assert_int_equal(d->n_tokens, 4 * (TOKENS - (TOKENS + 2) / 3));
	for (uint32_t i = 0; i < v.n_features; i++) {
		assert_true(isfinite(d->mean[i]) && isfinite(d->scale[i]) && isfinite(d->coefficient[i]));
		features[i] = NAN;
	}
	sinks_score(d, features, 1, &score);
	top = sinks_top(d, features, false);
	assert_true(top < v.n_features);
	assert_true(isfinite(score));
	free(c);
	sinks_learner_free(l);
	sinks_detector_unref(d);
}

static void features_have_places(void **state)
{
	const struct geometry g = made_up_geometry();
	struct sinks_view v;

	(void)state;
	sinks_view_init(&v, &g);
	assert_int_equal(v.n_layers, 2);
	assert_int_equal(v.layers[1], LAYERS - 1);
	assert_int_equal(v.n_features, 2 * 2 * HEADS * SINKS_SIGNALS);
	for (uint32_t l = 0; l < v.n_layers; l++)
		for (uint32_t p = 0; p < 2; p++)
			for (uint32_t h = 0; h < HEADS; h++)
				for (int s = 0; s < SINKS_SIGNALS; s++) {
					struct sinks_place at = sinks_place(
						&v, sinks_feature(&v, l, p, h, (enum sinks_signal)s));

					assert_int_equal(at.layer, v.layers[l]);
					assert_int_equal(at.plane, p);
					assert_int_equal(at.group, h);
					assert_int_equal(at.signal, s);
				}
}

static void decisions_keep_the_rules(void **state)
{
	const struct sinks_rules rules = {.budget = 0.2, .multiple = 10, .unusual = 3, .keep = 0.5};
	enum { N = 10 }; /* a budget of two */
	const float scores[N] = {9, 1, 4, 2.7f, 2.7f, 3.5f, 0, 8, 3.1f, NAN};
	const float seen[N] = {NAN, NAN, -1, NAN, NAN, NAN, logf(30), NAN, NAN, NAN};
	const uint8_t before[N] = {0, 0, 0, 1, 0, 0, 0, 0, 0, 0};
	uint8_t classes[N] = {TOKEN_SINK};
	struct sinks_finding f[N];
	struct sinks_evidence e = {.n_tokens = N, .scores = scores};

	(void)state;
	/* The first is a sink by its position and costs no budget; 7 and 2 stand out most. */
	assert_int_equal(sinks_decide(&rules, &e, classes, f), 3);
	assert_int_equal(f[0].token, 0);
	assert_int_equal(f[0].reason, SINKS_BY_POSITION);
	assert_int_equal(f[1].token, 2);
	assert_int_equal(f[2].token, 7);
	/* Attention that was seen overrules: 2 got none, 6 got it. Hysteresis keeps 3 but not 4, in a budget
	 * of six. */
	e.seen = seen;
	e.before = before;
	memset(classes, 0, sizeof classes);
	classes[0] = TOKEN_SINK;
	assert_int_equal(sinks_decide(&(struct sinks_rules){0.6, 10, 3, 0.5}, &e, classes, f), 6);
	assert_int_equal(classes[2], TOKEN_PLAIN);
	assert_int_equal(classes[3], TOKEN_SINK);
	assert_int_equal(classes[4], TOKEN_PLAIN);
	assert_int_equal(f[1].reason, SINKS_KEPT);
	assert_int_equal(f[3].token, 6);
	assert_int_equal(f[3].reason, SINKS_BY_ATTENTION);
	assert_float_equal(f[3].score, logf(30), 1e-6);
	/* No budget, no more than the first. */
	memset(classes, 0, sizeof classes);
	assert_int_equal(sinks_decide(&(struct sinks_rules){0, 10, 3, 0.5}, &e, classes, f), 0);
}

static void attention_tells_sinks_from_what_is_asked_for(void **state)
{
	enum { N = 64, QUERIES = 4 };
	float scores[QUERIES][N], drawing[N], resting[N], asked[N];
	const struct observed o = {drawing, resting, asked};
	uint64_t positions[QUERIES];

	(void)state;
	for (int t = 0; t < N; t++)
		drawing[t] = resting[t] = asked[t] = NAN;
	for (int q = 0; q < QUERIES; q++) {
		positions[q] = (uint64_t)(N - QUERIES + q);
		for (int t = 0; t < N; t++)
			scores[q][t] = t == 5 ? 4 : t == 9 && q == 2 ? 6 : 0;
	}
	observe_head(&scores[0][0], N, positions, QUERIES, 0, N - QUERIES, &o);
	/* Token 5 has e^4 of about n + e^4 with every query; 9 is after by one query alone. */
	assert_true(resting[5] > logf(8));
	assert_true(resting[9] < logf(3));
	assert_true(asked[9] > logf(8));
	assert_float_equal(drawing[9], (resting[9] + asked[9]) / 2, 1e-5);
	assert_true(resting[20] < 0 && asked[20] < 0);
	assert_true(isnan(resting[N - 1]) && isnan(drawing[N - 1]));
	/* Another head raises, and never lowers. */
	for (int q = 0; q < QUERIES; q++)
		for (int t = 0; t < N; t++)
			scores[q][t] = t == 7 ? 5 : 0;
	observe_head(&scores[0][0], N, positions, QUERIES, 0, N - QUERIES, &o);
	assert_true(resting[5] > logf(8) && resting[7] > logf(8));
	assert_float_equal(observe_sum(0.5f, 16, 320), logf(10), 1e-5);
}

static void tokens_are_ranked_by_attention(void **state)
{
	enum { N = 10 };
	const float attention[N] = {5, 1, NAN, 9, 2, 8, 3, 7, 4, 6};
	/* Of eight plain tokens, one of unknown attention. */
	uint8_t classes[N] = {TOKEN_SINK, 0, 0, 0, 0, 0, 0, 0, 0, TOKEN_WINDOW};
	const uint8_t wanted[N] = {TOKEN_SINK, TOKEN_REDUNDANT, TOKEN_PLAIN, TOKEN_SALIENT, TOKEN_REDUNDANT,
		TOKEN_SALIENT, TOKEN_REDUNDANT, TOKEN_PLAIN, TOKEN_PLAIN, TOKEN_WINDOW};
	uint8_t all[N] = {0};

	(void)state;
	sinks_rank(attention, N, 0.25, 0.4, classes);
	assert_memory_equal(classes, wanted, N);
	sinks_rank(attention, N, 0, 0, classes);
	assert_memory_equal(classes, wanted, N);
	sinks_rank(attention, N, 0.5, 0.5, all);
	for (int t = 0; t < N; t++)
		assert_true((all[t] == TOKEN_PLAIN) == (t == 2));
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(features_have_places),
		cmocka_unit_test(outlying_sinks_are_found_without_attention),
		cmocka_unit_test(attention_teaches_which_signals_to_trust),
		cmocka_unit_test(what_is_like_nothing_learned_is_protected),
		cmocka_unit_test(bad_values_teach_nothing), cmocka_unit_test(decisions_keep_the_rules),
		cmocka_unit_test(attention_tells_sinks_from_what_is_asked_for),
		cmocka_unit_test(tokens_are_ranked_by_attention)};

	print_message("seed %d\n", SEED);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
