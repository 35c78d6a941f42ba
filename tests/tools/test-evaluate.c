/* Continuations over an original and a restored cache: nothing differs where the caches do not, and what is
 * found follows the damage. The model's folder is the first argument. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "tools/engine/evaluate.h"

enum { PROMPT = 60 };

struct world {
	struct model *model;
	struct forward *forward;
	struct kv_cache *cache;
	struct kv_table original, restored;
	uint32_t tokens[PROMPT];
	struct tokens prompt;
};

/* A sentence, again and again: the model can guess how it goes on. */
static void setup(struct world *w, const char *dir)
{
	static const char text[] = "\001the quick brown fox jumps over the lazy dog; ";
	char why[256] = "";

	if (model_load(dir, &w->model, why, sizeof why) < 0) {
		fprintf(stderr, "%s\n", why);
		exit(1);
	}
	for (size_t i = 0; i < PROMPT; i++)
		text_encode(&text[i < 46 ? i : 1 + (i - 1) % 45], 1, &w->tokens[i]);
	w->prompt = (struct tokens){PROMPT, w->tokens};
	if (forward_new(w->model, &w->forward) < 0 ||
		kv_cache_new(w->model, 4 * PROMPT, KV_NHD, 11, &w->cache) < 0 ||
		kv_table_new(w->cache, 2 * PROMPT, &w->original) < 0 ||
		kv_table_new(w->cache, 2 * PROMPT - KV_BLOCK_TOKENS, &w->restored) < 0)
		exit(1);
}

static void teardown(struct world *w)
{
	kv_table_free(w->cache, &w->original);
	kv_table_free(w->cache, &w->restored);
	kv_cache_free(w->cache);
	forward_free(w->forward);
	model_free(w->model);
}

static void fill(const struct world *w, const struct kv_table *table)
{
	assert_int_equal(
		forward_run(w->forward,
			&(struct forward_request){
				.cache = w->cache, .table = table, .tokens = w->tokens, .n_tokens = PROMPT}),
		0);
}

/* Multiplies the values of every layer from first on by factor. */
static void damage(const struct world *w, uint32_t first, float factor)
{
	const struct model *m = w->model;

	for (uint32_t layer = first; layer < m->n_layers; layer++)
		for (uint32_t t = 0; t < PROMPT; t++)
			for (uint32_t h = 0; h < m->n_kv_heads; h++) {
				uint16_t *at = kv_at(w->cache, &w->restored, layer, 1, t, h);

				for (uint32_t d = 0; d < m->head_dim; d++)
					at[d] = half_from_float(factor * half_to_float(at[d]));
			}
}

static struct evaluation evaluate(const struct world *w, const char *given, const char *answer)
{
	uint32_t given_tokens[64], answer_tokens[64];
	const struct probe probe = {
		.given = {strlen(given), given_tokens},
		.answer = {strlen(answer), answer_tokens},
	};
	struct evaluation e = {0};

	text_encode(given, strlen(given), given_tokens);
	text_encode(answer, strlen(answer), answer_tokens);
	assert_int_equal(evaluate_probe(w->forward, w->model, w->cache, &w->original, &w->restored,
				 &w->prompt, &probe, &e),
		0);
	return e;
}

static void equal_caches_agree_to_the_bit(void **state)
{
	const struct world *w = *state;
	struct evaluation e;

	fill(w, &w->original);
	fill(w, &w->restored);
	e = evaluate(w, "over the", " lazy dog");
	assert_int_equal(e.n_tokens, 17);
	assert_int_equal(e.agree, 17);
	assert_int_equal(e.asked, 1);
	assert_int_equal(e.n_answer_tokens, 9);
	assert_true(e.kl == 0);
	assert_true(e.nll[0] == e.nll[1] && e.nll[0] > 0);
	assert_true(e.answer_nll[0] == e.answer_nll[1] && e.answer_nll[0] < e.nll[0]);
	assert_int_equal(e.exact[0], e.exact[1]);
	assert_true(evaluation_attention_error(&e, 0, w->model->n_layers) == 0);
}

/* log p of a text does not depend on how it is split over given and answer, and is what a plain forward pass
 * over the whole says. */
static void likelihood_is_that_of_a_plain_pass(void **state)
{
	const struct world *w = *state;
	const struct model *m = w->model;
	static const char text[] = "fox; the qu";
	uint32_t tokens[PROMPT + sizeof text - 1];
	size_t n = sizeof text - 1;
	float *logits = calloc(n + 1, m->vocab * sizeof *logits);
	double nll = 0;
	struct evaluation e, f;

	assert_non_null(logits);
	memcpy(tokens, w->tokens, sizeof w->tokens);
	text_encode(text, n, tokens + PROMPT);
	assert_int_equal(forward_run(w->forward,
				 &(struct forward_request){
					 .cache = w->cache,
					 .table = &w->original,
					 .tokens = tokens,
					 .n_tokens = (uint32_t)(PROMPT + n),
					 .n_collect = (uint32_t)n + 1,
					 .logits = logits,
				 }),
		0);
	for (size_t i = 0; i < n; i++) {
		double sum = 0;

		for (size_t t = 0; t < m->vocab; t++)
			sum += exp((double)logits[i * m->vocab + t]);
		nll += log(sum) - (double)logits[i * m->vocab + tokens[PROMPT + i]];
	}
	fill(w, &w->restored);
	e = evaluate(w, text, "");
	f = evaluate(w, "fox; ", "the qu");
	assert_true(e.nll[0] == f.nll[0]);
	assert_int_equal(e.asked, 0);
	/* Other cuts of the matrices, other rounding in f32, at times another f16: 2^-11 of a logit. */
	assert_true(fabs(e.nll[0] - nll) <= (double)n * ldexp(1, -11) * 32);
	free(logits);
}

static void damage_shows(void **state)
{
	const struct world *w = *state;
	struct evaluation little, much;

	fill(w, &w->original);
	fill(w, &w->restored);
	damage(w, w->model->n_layers - 1, 0.9f);
	little = evaluate(w, "over the", " lazy dog");
	damage(w, 0, 0.0f);
	much = evaluate(w, "over the", " lazy dog");
	assert_true(little.kl > 0 && much.kl > 4 * little.kl);
	assert_true(little.nll[0] == much.nll[0]);
	assert_true(evaluation_attention_error(&little, 0, w->model->n_layers - 1) == 0);
	/* Only the last layer's values shrank, by a tenth; those of the continuation itself did not. */
	assert_true(evaluation_attention_error(&little, w->model->n_layers - 1, w->model->n_layers) > 0.01);
	assert_true(evaluation_attention_error(&little, w->model->n_layers - 1, w->model->n_layers) < 0.11);
	assert_true(evaluation_attention_error(&much, 0, w->model->n_layers) > 0.5);
}

static void refuses_what_does_not_fit(void **state)
{
	const struct world *w = *state;
	uint32_t list[2 * PROMPT] = {0}, alien[1] = {w->model->vocab};
	const struct probe cases[] = {
		{.given = {0, list}, .answer = {0, list}},
		{.given = {PROMPT, list}, .answer = {1, list}},
		{.given = {1, alien}},
		{.answer = {1, alien}},
	};

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct evaluation e = {0};

		assert_int_equal(evaluate_probe(w->forward, w->model, w->cache, &w->original, &w->restored,
					 &w->prompt, &cases[i], &e),
			-EINVAL);
		assert_int_equal(e.n_tokens, 0);
	}
}

int main(int argc, char **argv)
{
	struct world w = {0};
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(equal_caches_agree_to_the_bit, &w),
		cmocka_unit_test_prestate(likelihood_is_that_of_a_plain_pass, &w),
		cmocka_unit_test_prestate(damage_shows, &w),
		cmocka_unit_test_prestate(refuses_what_does_not_fit, &w),
	};
	int failed;

	setup(&w, argc > 1 ? argv[1] : "model");
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	teardown(&w);
	return failed;
}
