/* The engine's forward pass against logits that torch computed from the same weights (model/reference.json),
 * and against itself over other block orders, layouts and cuts. Arguments: the model's folder, and
 * "long" for prompts of a real length. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "tools/engine/forward.h"

enum { BOS = 256, SEP = 257, SHORT_MAX = 100 };

struct world {
	const char *dir;
	struct model *model;
	struct forward *forward;
	bool is_long;
};

static uint32_t token_of(unsigned char byte)
{
	return byte == 1 ? BOS : byte == 2 ? SEP : byte;
}

static size_t append(uint32_t *tokens, size_t n, const char *text)
{
	assert_non_null(text);
	for (; *text; text++)
		tokens[n++] = token_of((unsigned char)*text);
	return n;
}

/* Line `id` of the recall prompts, and its first question. */
static size_t recall_tokens(const struct world *w, json_int_t id, uint32_t *tokens)
{
	char path[512];
	char *line = NULL;
	size_t room = 0, n;
	json_t *prompt = NULL;
	FILE *file;

	snprintf(path, sizeof path, "%s/heldout/recall.jsonl", w->dir);
	file = fopen(path, "r");
	assert_non_null(file);
	while (getline(&line, &room, file) > 0) {
		prompt = json_loads(line, 0, NULL);
		if (json_integer_value(json_object_get(prompt, "id")) == id)
			break;
		json_decref(prompt);
		prompt = NULL;
	}
	fclose(file);
	free(line);
	assert_non_null(prompt);
	n = append(tokens, 0, json_string_value(json_object_get(prompt, "prompt")));
	n = append(tokens, n,
		json_string_value(
			json_object_get(json_array_get(json_object_get(prompt, "questions"), 0), "q")));
	json_decref(prompt);
	return n;
}

static size_t reference_tokens(const struct world *w, const json_t *prompt, uint32_t *tokens)
{
	const json_t *list = json_object_get(prompt, "tokens");
	size_t n = json_array_size(list);

	if (!list)
		return recall_tokens(w, json_integer_value(json_object_get(prompt, "id")), tokens);
	for (size_t i = 0; i < n; i++)
		tokens[i] = (uint32_t)json_integer_value(json_array_get(list, i));
	return n;
}

/* A prefill of its own cache: cut[i] tokens at a time (the last cut repeats), logits of every token. */
static float *prefill(const struct world *w, const uint32_t *tokens, size_t n_tokens, enum kv_order order,
	uint64_t seed, const uint32_t *cuts)
{
	const struct model *m = w->model;
	float *logits = calloc(n_tokens, m->vocab * sizeof *logits);
	struct kv_table table, other;
	struct kv_cache *cache;

	assert_non_null(logits);
	assert_int_equal(kv_cache_new(m, (uint32_t)n_tokens + 64, order, seed, &cache), 0);
	assert_int_equal(kv_table_new(cache, 32, &other), 0);
	assert_int_equal(kv_table_new(cache, (uint32_t)n_tokens, &table), 0);
	for (uint32_t done = 0; done < n_tokens;) {
		uint32_t left = (uint32_t)n_tokens - done, n = *cuts < left ? *cuts : left;
		const struct forward_request request = {
			.cache = cache,
			.table = &table,
			.tokens = tokens + done,
			.n_tokens = n,
			.position = done,
			.n_collect = n,
			.logits = logits + (size_t)done * m->vocab,
		};

		assert_int_equal(forward_run(w->forward, &request), 0);
		done += n;
		cuts += cuts[1] != 0;
	}
	kv_table_free(cache, &other);
	kv_table_free(cache, &table);
	assert_int_equal(cache->n_free, cache->n_blocks);
	kv_cache_free(cache);
	return logits;
}

static double largest(const float *x, size_t n)
{
	double max = 0;

	for (size_t i = 0; i < n; i++)
		max = fmax(max, fabs((double)x[i]));
	return max;
}

/* torch keeps keys and values in f32, the engine in f16: each of the 2 * n_layers planes an output passes
 * through is off by at most 2^-11 of itself, and the logits are linear in the stream that they disturb. (The
 * same pass over a cache in f32 was within 0.0004 of torch where this one is within 0.01.) */
static double bound(const struct world *w, const float *logits)
{
	return 2 * w->model->n_layers * ldexp(1, -11) * largest(logits, w->model->vocab);
}

static void agrees_with_torch(void **state)
{
	const struct world *w = *state;
	static const uint32_t whole[] = {1 << 20, 0};
	json_t *reference, *prompt;
	double worst = 0, worst_bound = 0;
	char path[512];
	size_t checked = 0, i, j, k;

	snprintf(path, sizeof path, "%s/reference.json", w->dir);
	reference = json_load_file(path, 0, NULL);
	assert_non_null(reference);
	assert_true(json_array_size(json_object_get(reference, "prompts")) > 0);
	json_array_foreach(json_object_get(reference, "prompts"), i, prompt)
	{
		uint32_t tokens[4096];
		size_t n = reference_tokens(w, prompt, tokens);
		json_t *row, *id;
		float *logits;

		if (n > SHORT_MAX && !w->is_long)
			continue;
		logits = prefill(w, tokens, n, KV_NHD, 1, whole);
		checked++;

		json_array_foreach(json_object_get(prompt, "logits_after"), j, row)
		{
			const float *mine = logits + json_integer_value(json_object_get(row, "position")) *
							     w->model->vocab;

			json_array_foreach(json_object_get(row, "ids"), k, id)
			{
				double theirs =
					json_number_value(json_array_get(json_object_get(row, "logits"), k));
				double error = fabs((double)mine[json_integer_value(id)] - theirs);

				assert_true(error <= bound(w, mine));
				worst = fmax(worst, error);
				worst_bound = fmax(worst_bound, bound(w, mine));
			}
		}
		free(logits);
	}
	json_decref(reference);
	assert_true(checked > 0);
	print_message("logits differ from torch by at most %.5f (bound %.5f)\n", worst, worst_bound);
}

static void block_order_and_layout_do_not_matter(void **state)
{
	const struct world *w = *state;
	static const uint32_t whole[] = {1 << 20, 0};
	static const struct {
		enum kv_order order;
		uint64_t seed;
	} cases[] = {{KV_NHD, 2}, {KV_NHD, 3}, {KV_HND, 1}, {KV_HND, 4}};
	uint32_t tokens[4096];
	size_t n = recall_tokens(w, 0, tokens) / (w->is_long ? 2 : 60);
	float *first = prefill(w, tokens, n, KV_NHD, 1, whole);

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		float *again = prefill(w, tokens, n, cases[i].order, cases[i].seed, whole);

		assert_memory_equal(first, again, n * w->model->vocab * sizeof *first);
		free(again);
	}
	free(first);
}

static void cuts_do_not_matter(void **state)
{
	const struct world *w = *state;
	static const uint32_t whole[] = {1 << 20, 0};
	static const struct {
		uint32_t cuts[4];
		bool same_bits; /* cut where the engine itself cuts */
	} cases[] = {{{256, 0}, true}, {{512, 256, 0}, true}, {{100, 0}, false}, {{300, 1, 33, 0}, false},
		{{16, 7, 0}, false}};
	uint32_t tokens[4096];
	size_t n = recall_tokens(w, 0, tokens) / (w->is_long ? 2 : 60);
	float *first = prefill(w, tokens, n, KV_NHD, 1, whole);

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		float *again = prefill(w, tokens, n, KV_NHD, 1, cases[i].cuts);

		if (cases[i].same_bits)
			assert_memory_equal(first, again, n * w->model->vocab * sizeof *first);
		for (size_t t = 0; t < n; t++) {
			const float *a = first + t * w->model->vocab, *b = again + t * w->model->vocab;

			for (size_t j = 0; j < w->model->vocab; j++)
				assert_true(fabs((double)(a[j] - b[j])) <= bound(w, a));
		}
		free(again);
	}
	free(first);
}

/* The last cached token computed again without storing it, as an engine does that finds its whole prompt in
 * the cache: same logits, cache untouched. */
static void cached_tokens_stay(void **state)
{
	const struct world *w = *state;
	const struct model *m = w->model;
	uint32_t tokens[4096], n = (uint32_t)recall_tokens(w, 3, tokens) / (w->is_long ? 2 : 60);
	float *logits = calloc(2, m->vocab * sizeof *logits);
	struct kv_table table;
	struct kv_cache *cache;
	uint8_t *before;
	struct forward_request request = {.tokens = tokens, .n_tokens = n, .n_collect = 1, .logits = logits};

	assert_int_equal(kv_cache_new(m, n, KV_HND, 9, &cache), 0);
	assert_int_equal(kv_table_new(cache, n, &table), 0);
	request.cache = cache;
	request.table = &table;
	assert_int_equal(forward_run(w->forward, &request), 0);
	before = malloc(cache->size_bytes);
	assert_non_null(before);
	memcpy(before, cache->memory, cache->size_bytes);

	request.tokens = tokens + n - 1;
	request.position = n - 1;
	request.n_tokens = request.n_cached = 1;
	request.logits = logits + m->vocab;
	assert_int_equal(forward_run(w->forward, &request), 0);
	assert_memory_equal(before, cache->memory, cache->size_bytes);
	for (size_t j = 0; j < m->vocab; j++)
		assert_true(fabs((double)(logits[j] - logits[m->vocab + j])) <= bound(w, logits));
	free(before);
	free(logits);
	kv_table_free(cache, &table);
	kv_cache_free(cache);
}

/* Every query hands out attention of 1 per layer and head, and none to tokens after it. */
static void attention_received_adds_up(void **state)
{
	const struct world *w = *state;
	const struct model *m = w->model;
	uint32_t tokens[4096], n = (uint32_t)recall_tokens(w, 5, tokens) / (w->is_long ? 2 : 60);
	size_t heads = (size_t)m->n_layers * m->n_heads;
	double *received = calloc(heads * n, sizeof *received);
	struct kv_table table;
	struct kv_cache *cache;
	struct forward_request request = {
		.tokens = tokens, .n_tokens = n, .received = received, .received_stride = n};

	assert_int_equal(kv_cache_new(m, n, KV_NHD, 9, &cache), 0);
	assert_int_equal(kv_table_new(cache, n, &table), 0);
	request.cache = cache;
	request.table = &table;
	assert_int_equal(forward_run(w->forward, &request), 0);
	for (size_t h = 0; h < heads; h++) {
		double sum = 0;

		for (uint32_t t = 0; t < n; t++)
			sum += received[h * n + t];
		assert_true(fabs(sum - n) < 1e-3 * n);
		assert_true(received[h * n + n - 1] <= 1 + 1e-3);
	}
	free(received);
	kv_table_free(cache, &table);
	kv_cache_free(cache);
}

static void bad_requests_are_refused(void **state)
{
	const struct world *w = *state;
	const struct model *m = w->model;
	const uint32_t tokens[4] = {BOS, 1, 2, 3}, alien[2] = {BOS, 1u << 31};
	struct kv_table table, more;
	struct kv_cache *cache;
	double received[1];
	const struct forward_request cases[] = {
		{.tokens = tokens, .n_tokens = 0},
		{.tokens = alien, .n_tokens = 2},
		{.tokens = tokens, .n_tokens = 4, .position = 13},
		{.tokens = tokens, .n_tokens = 4, .position = m->context - 3},
		{.tokens = tokens, .n_tokens = 4, .position = UINT32_MAX - 1},
		{.tokens = tokens, .n_tokens = 4, .n_cached = 5},
		{.tokens = tokens, .n_tokens = 4, .n_collect = 5},
		{.tokens = tokens, .n_tokens = 4, .received = received, .received_stride = 3},
	};

	assert_int_equal(kv_cache_new(m, 16, KV_NHD, 1, &cache), 0);
	assert_int_equal(kv_table_new(cache, 16, &table), 0);
	assert_int_equal(kv_table_new(cache, 1, &more), -ENOSPC);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct forward_request request = cases[i];

		request.cache = cache;
		request.table = &table;
		assert_int_equal(forward_run(w->forward, &request), -EINVAL);
	}
	kv_table_free(cache, &table);
	kv_cache_free(cache);
}

int main(int argc, char **argv)
{
	struct world w = {.dir = argc > 1 ? argv[1] : "model", .is_long = argc > 2};
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(agrees_with_torch, &w),
		cmocka_unit_test_prestate(block_order_and_layout_do_not_matter, &w),
		cmocka_unit_test_prestate(cuts_do_not_matter, &w),
		cmocka_unit_test_prestate(cached_tokens_stay, &w),
		cmocka_unit_test_prestate(attention_received_adds_up, &w),
		cmocka_unit_test_prestate(bad_requests_are_refused, &w),
	};
	char why[256] = "";
	int failed;

	if (model_load(w.dir, &w.model, why, sizeof why) < 0) {
		fprintf(stderr, "%s\n", why);
		return 1;
	}
	if (forward_new(w.model, &w.forward) < 0)
		return 1;
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	forward_free(w.forward);
	model_free(w.model);
	return failed;
}
