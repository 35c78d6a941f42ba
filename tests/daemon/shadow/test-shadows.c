/* Shadows: which chunks are chosen, how long copies stay, and that their memory is bounded and comes back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/shadow/choice.h"
#include "runtime/daemon/shadow/shadows.h"

enum { TOKENS = 8, DIM = 4, LAYERS = 2, CHUNK_BYTES = TOKENS * DIM * LAYERS * 2 };

static const struct model model = {.geometry = {.name = "m",
					   .n_layers = LAYERS,
					   .n_planes = 1,
					   .tp_size = 1,
					   .planes = {{.n_heads = 1, .dim = DIM, .dtype = DTYPE_F16}}}};

static struct index_key key_of(uint32_t i)
{
	struct index_key id = {{0}, {0}};

	memcpy(id.key, &i, sizeof i);
	return id;
}

static void choice(void **state)
{
	enum { KEYS = 100000 };
	const double shares[] = {0, 0.001, 0.01, 0.3, 1};
	const uint64_t seeds[] = {1, choice_seed(), choice_seed()};

	(void)state;
	assert_true(seeds[1] != seeds[2]);
	for (size_t s = 0; s < sizeof seeds / sizeof *seeds; s++) {
		uint32_t n[5] = {0}, n_both = 0;

		for (uint32_t i = 0; i < KEYS; i++) {
			const struct index_key id = key_of(i);
			const uint64_t hash = choice_hash(seeds[s], &id);

			assert_int_equal(hash, choice_hash(seeds[s], &id));
			for (size_t k = 0; k < 5; k++) {
				n[k] += choice_falls(hash, shares[k]);
				/* What is chosen at one share is chosen at a larger one. */
				assert_true(!k || choice_falls(hash, shares[k]) >=
							  choice_falls(hash, shares[k - 1]));
			}
			n_both +=
				choice_falls(hash, 0.3) && choice_falls(choice_hash(seeds[s] + 1, &id), 0.3);
		}
		assert_true(n[0] == 0 && n[4] == KEYS);
		/* Keys in a row, as near each other as they can be: the counts are binomial all the same,
		 * five deviations wide. */
		for (size_t k = 1; k < 4; k++)
			assert_true(
				fabs(n[k] - KEYS * shares[k]) < 5 * sqrt(KEYS * shares[k] * (1 - shares[k])));
		/* And another seed chooses others. */
		assert_true(fabs(n_both - KEYS * 0.09) < 5 * sqrt(KEYS * 0.09 * 0.91));
	}
}

static struct shadow *lend(struct shadows *s, uint32_t i)
{
	const struct index_key id = key_of(i);

	return shadows_lend(s, &id, choice_hash(1, &id), &model, TOKENS);
}

static struct shadow *find(struct shadows *s, uint32_t i)
{
	const struct index_key id = key_of(i);

	return shadows_find(s, &id, choice_hash(1, &id));
}

static void a_life(void **state)
{
	struct budget b = {.limit_bytes = 1 << 20};
	struct shadows *s = shadows_new(&b);
	uint16_t kv[LAYERS][TOKENS][DIM], x = 0;
	const struct kv_pages pages[LAYERS] = {{(uint8_t *)kv[0], sizeof kv[0], DIM * 2, DIM * 2},
		{(uint8_t *)kv[1], sizeof kv[1], DIM * 2, DIM * 2}};
	const uint32_t block = 0;
	const struct codec_chunk chunk = {&model.geometry, pages, {&block, TOKENS, 0}, TOKENS, 512};
	struct shadow *shadow = lend(s, 1);

	(void)state;
	assert_non_null(shadow);
	assert_null(lend(s, 1)); /* there is one */
	assert_true(b.used_bytes >= CHUNK_BYTES && shadow->bytes == b.used_bytes);
	for (uint16_t *at = &kv[0][0][0]; at < &kv[LAYERS - 1][TOKENS - 1][DIM]; at++)
		*at = x++;
	shadow_fill(shadow, kernels_cpu(), &chunk);
	memset(kv, 0, sizeof kv);
	/* One that is lent is not taken for over. */
	assert_int_equal(shadows_expire(s, UINT64_MAX), 0);
	shadow->until_ms = 1000;
	assert_true(shadows_take(s, shadow));
	assert_ptr_equal(find(s, 1), shadow);
	assert_int_equal(shadow->copy->position, 512);
	for (uint32_t i = 0; i < CHUNK_BYTES / 2; i++)
		assert_int_equal(((const uint16_t *)(const void *)shadow->copy->memory)[i], i);
	assert_int_equal(shadows_expire(s, 999), 0);
	/* One that is compared stays until that is done, and no longer when its time is up. */
	shadow->state = SHADOW_COMPARED;
	assert_int_equal(shadows_expire(s, 1000), 0);
	shadows_compared(s, shadow);
	assert_int_equal(shadow->n_left, SHADOW_COMPARISONS - 1);
	assert_int_equal(shadows_expire(s, 1000), 1);
	assert_null(find(s, 1));
	assert_true(b.used_bytes == 0 && shadows_count(s) == 0);
	shadows_free(s);
}

static bool is_odd(const struct shadow *shadow, void *arg)
{
	(void)arg;
	return shadow->id.key[0] % 2;
}

static void dropped_when_it_may_go(void **state)
{
	struct budget b = {.limit_bytes = 1 << 20};
	struct shadows *s = shadows_new(&b);
	struct shadow *all[8];

	(void)state;
	for (uint32_t i = 0; i < 8; i++)
		all[i] = lend(s, i);
	for (uint32_t i = 0; i < 6; i++)
		assert_true(shadows_take(s, all[i]));
	all[3]->state = SHADOW_COMPARED;
	/* 1 and 5 go at once; 3, which is compared, and 7, which is lent, when they come back. */
	assert_int_equal(shadows_drop_if(s, is_odd, NULL), 4);
	assert_int_equal(shadows_drop_if(s, is_odd, NULL), 0);
	assert_int_equal(shadows_count(s), 6);
	shadows_compared(s, all[3]);
	assert_false(shadows_take(s, all[7]));
	assert_true(shadows_take(s, all[6]));
	assert_int_equal(shadows_count(s), 4);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(find(s, i) != NULL, i % 2 == 0);
	/* Compared often enough. */
	for (uint32_t i = 0; i < SHADOW_COMPARISONS; i++) {
		assert_non_null(find(s, 2));
		find(s, 2)->state = SHADOW_COMPARED;
		shadows_compared(s, find(s, 2));
	}
	assert_null(find(s, 2));
	shadows_drop(s, find(s, 4));
	assert_int_equal(shadows_count(s), 2);
	shadows_free(s);
	assert_int_equal(b.used_bytes, 0);
}

static void memory_is_bounded(void **state)
{
	struct budget b = {.limit_bytes = 10000};
	struct shadows *s = shadows_new(&b);
	uint32_t n = 0;

	(void)state;
	for (uint32_t i = 0; i < 1000; i++) {
		struct shadow *shadow = lend(s, i);

		n += shadow != NULL;
		assert_true(b.used_bytes <= b.limit_bytes);
		assert_true(!shadow || shadows_take(s, shadow));
	}
	/* Those that came first stay; how many others there were is told. */
	assert_int_equal(shadows_count(s), n);
	assert_int_equal(n, 10000 / (CHUNK_BYTES + sizeof(struct shadow)));
	assert_int_equal(b.n_refused, 1000 - n);
	for (uint32_t i = 0; i < n; i++)
		assert_non_null(find(s, i));
	shadows_drop(s, find(s, 0));
	assert_non_null(lend(s, 5000));
	assert_null(lend(s, 5001));
	b.limit_bytes = UINT64_MAX;
	shadows_take(s, find(s, 5000));
	for (uint32_t i = 10000; i < 10000 + 2 * SHADOWS_MAX; i++)
		lend(s, i);
	assert_int_equal(shadows_count(s), SHADOWS_MAX);
	shadows_free(s);
	assert_int_equal(b.used_bytes, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(choice), cmocka_unit_test(a_life),
		cmocka_unit_test(dropped_when_it_may_go), cmocka_unit_test(memory_is_bounded)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
