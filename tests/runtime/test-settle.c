/* Windows that have moved on: what was in them is searched for sinks and coded, what was coded or found
 * before stays, and the frame is the one that encoding so in the first place would have given. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/formula.h"
#include "runtime/settle.h"
#include "tests/runtime/made-up-cache.h"

enum { N = 200, WINDOW = 80, SINKS = 4, OFFSET = 3, POSITION = 512, LATE = N - 20, LATER = N - 7 };

struct test {
	struct world *w;
	struct detection *detection;
	struct sinks_detector *detector; /* what is unusual; no attention was seen */
	struct policy policy;
	uint8_t classes[N]; /* as put */
};

/* A detector that has seen what tokens are like, and no attention. */
static struct sinks_detector *learn(struct test *t)
{
	struct sinks_detector *detector;
	struct sinks_learner *learner;
	struct sinks_view view;

	sinks_view_init(&view, &t->w->g);
	learner = sinks_learner_new(&view);
	assert_non_null(learner);
	for (int i = 0; i < 8; i++) {
		const struct codec_chunk chunk = world_chunk(t->w, OFFSET, N, POSITION);

		world_fill(t->w);
		assert_int_equal(detection_learn(t->detection, &chunk, learner, NULL), 0);
	}
	assert_int_equal(sinks_learner_detector(learner, 0.01, log(5), &detector), 0);
	assert_false(detector->trained);
	sinks_learner_free(learner);
	return detector;
}

static int set_up(void **state)
{
	struct test *t = calloc(1, sizeof *t);

	assert_non_null(t);
	t->w = world_new(ROPE_HALF);
	t->detection = detection_new(kernels_cpu());
	assert_non_null(t->detection);
	t->detector = learn(t);
	policy_init(&t->policy);
	t->policy.max_error = 0;
	t->policy.class_by = POLICY_BY_ATTENTION;
	t->policy.salient_share = 0;
	t->policy.version = 8;
	for (int i = 0; i < N; i++)
		t->classes[i] = i < SINKS ? TOKEN_SINK : i >= N - WINDOW ? TOKEN_WINDOW : TOKEN_PLAIN;
	t->classes[40] = TOKEN_SINK; /* found when it was put */
	*state = t;
	return 0;
}

static int tear_down(void **state)
{
	struct test *t = *state;

	sinks_detector_unref(t->detector);
	detection_free(t->detection);
	world_free(t->w);
	free(t);
	return 0;
}

/* A token unlike all others, in every layer. */
static void stand_out(const struct test *t, uint32_t token)
{
	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t plane = 0; plane < 2; plane++)
			for (uint32_t i = 0; i < WIDTH; i++)
				world_element(t->w, l, plane, OFFSET, token)[i] =
					f16_from_f32(i % 3 ? 30.0f : -45.0f);
}

static void encode(
	struct test *t, const uint8_t *classes, uint8_t **frame, size_t *len, struct frame_info *info)
{
	const struct codec_chunk chunk = world_chunk(t->w, OFFSET, N, POSITION);
	const struct codec_options o = {.transform = t->w->t,
		.rung = 1,
		.rung_redundant = 2,
		.classes = classes,
		.key = {7},
		.policy_version = 3};

	assert_int_equal(codec_encode(t->w->codec, &chunk, &o, frame, len, info), 0);
}

static int try_settle(struct test *t, const uint8_t *frame, size_t len, const float *seen, struct settled *s)
{
	const struct settle_options o = {
		.transform = t->w->t, .policy = &t->policy, .detector = t->detector, .seen = seen};

	return settle(t->w->codec, t->detection, &t->w->g, frame, len, &o, s);
}

static void settled_free(struct settled *s)
{
	free(s->frame);
	free(s->findings);
}

/* All but the header. */
static void assert_same_bodies(const uint8_t *a, const uint8_t *b, size_t len)
{
	struct frame_info ia, ib;

	assert_int_equal(frame_parse(a, len, &ia, NULL, 0), 0);
	assert_int_equal(frame_parse(b, len, &ib, NULL, 0), 0);
	assert_int_equal(ia.n_sections, ib.n_sections);
	assert_memory_equal(a + FRAME_HEADER_BYTES, b + FRAME_HEADER_BYTES, len - FRAME_HEADER_BYTES);
}

static void sinks_stay(void **state)
{
	struct test *t = *state;
	uint8_t wanted[N], read[FRAME_TOKENS_MAX], *frame, *fresh;
	struct frame_info info, fresh_info;
	size_t len, fresh_len;
	struct settled s;

	t->policy.sink_budget = 2.0 / N; /* one is spent */
	t->policy.sink_tokens = POSITION + SINKS;
	world_fill(t->w);
	stand_out(t, LATE);
	memcpy(wanted, t->classes, N);
	for (int i = N - WINDOW; i < N; i++)
		wanted[i] = i == LATE ? TOKEN_SINK : TOKEN_PLAIN;
	encode(t, t->classes, &frame, &len, NULL);
	encode(t, wanted, &fresh, &fresh_len, &fresh_info);
	assert_int_equal(try_settle(t, frame, len, NULL, &s), 0);
	assert_int_equal(s.n_left, WINDOW);
	assert_int_equal(s.n_findings, 1);
	assert_int_equal(s.findings[0].token, LATE);
	assert_int_equal(s.findings[0].reason, SINKS_UNUSUAL);
	assert_true(s.findings[0].score >= s.findings[0].threshold);
	assert_memory_equal(s.classes, wanted, N);
	assert_int_equal(s.frame_bytes, fresh_len);
	assert_same_bodies(s.frame, fresh, fresh_len);
	assert_int_equal(frame_parse(s.frame, s.frame_bytes, &info, NULL, 0), 0);
	assert_int_equal(info.key[0], 7);
	assert_int_equal(info.position, POSITION);
	assert_int_equal(info.policy_version, 8);
	assert_int_equal(info.n_raw, fresh_info.n_raw);
	assert_int_equal(frame_classes(s.frame, s.frame_bytes, read), 0);
	assert_memory_equal(read, wanted, N);
	for (int p = 0; p < 2; p++)
		assert_true(fabsf(info.error[p].max - fresh_info.error[p].max) < 1e-5f);
	/* There is nothing left to do. */
	{
		struct settled none;

		assert_int_equal(try_settle(t, s.frame, s.frame_bytes, NULL, &none), -ERANGE);
	}
	settled_free(&s);
	free(frame);
	free(fresh);
}

/* Attention that came with the successor settles the matter, either way; what is over the budget is coded. */
static void attention_settles_it(void **state)
{
	struct test *t = *state;
	float seen[2 * N];
	uint8_t *frame;
	struct settled s;
	size_t len;

	t->policy.sink_budget = 2.0 / N;
	t->policy.sink_tokens = POSITION + SINKS;
	world_fill(t->w);
	stand_out(t, LATE);
	for (int i = 0; i < 2 * N; i++)
		seen[i] = logf(0.5f);
	seen[LATER] = logf(9);
	seen[20] = logf(50); /* coded long ago: nothing can be done about it, and it spends nothing */
	encode(t, t->classes, &frame, &len, NULL);
	assert_int_equal(try_settle(t, frame, len, seen, &s), 0);
	assert_int_equal(s.n_findings, 1);
	assert_int_equal(s.findings[0].token, LATER);
	assert_int_equal(s.findings[0].reason, SINKS_BY_ATTENTION);
	assert_int_equal(s.classes[20], TOKEN_PLAIN);
	assert_int_equal(s.classes[LATE], TOKEN_PLAIN);
	assert_int_equal(s.classes[40], TOKEN_SINK);
	settled_free(&s);
	t->policy.sink_budget = 1.0 / N; /* and it is spent */
	assert_int_equal(try_settle(t, frame, len, seen, &s), 0);
	assert_int_equal(s.n_findings, 0);
	assert_int_equal(s.classes[40], TOKEN_SINK);
	settled_free(&s);
	free(frame);
}

/* Of those that leave, the most asked for are coded finer and the least coarser. */
static void ranked(void **state)
{
	struct test *t = *state;
	uint8_t *frame, read[FRAME_TOKENS_MAX];
	float seen[2 * N];
	struct settled s;
	size_t len;

	t->policy.salient_share = 0.25;
	t->policy.redundant_share = 0.5;
	world_fill(t->w);
	for (int i = 0; i < 2 * N; i++)
		seen[i] = i < N ? -3 : (float)i / N;
	encode(t, t->classes, &frame, &len, NULL);
	assert_int_equal(try_settle(t, frame, len, seen, &s), 0);
	assert_int_equal(frame_classes(s.frame, s.frame_bytes, read), 0);
	for (int i = 0; i < N; i++) {
		const int left = i - (N - WINDOW);

		assert_int_equal(read[i], left < 0                 ? t->classes[i]
					  : left < WINDOW / 2      ? TOKEN_REDUNDANT
					  : left >= WINDOW * 3 / 4 ? TOKEN_SALIENT
								   : TOKEN_PLAIN);
	}
	settled_free(&s);
	free(frame);
}

/* The bound holds for what is coded now: here that is all there is. */
static void the_bound_holds(void **state)
{
	struct test *t = *state;
	struct settled loose, bound;
	uint8_t *frame, window[N];
	size_t len;

	memset(window, TOKEN_WINDOW, N);
	world_fill(t->w);
	encode(t, window, &frame, &len, NULL);
	assert_int_equal(try_settle(t, frame, len, NULL, &loose), 0);
	t->policy.max_error = 0.9 * (double)fminf(loose.info.error[0].max, loose.info.error[1].max);
	assert_int_equal(try_settle(t, frame, len, NULL, &bound), 0);
	for (int p = 0; p < 2; p++)
		assert_true((double)bound.info.error[p].max <= t->policy.max_error * 1.000001);
	assert_true(bound.info.error[0].max > 0 && bound.frame_bytes > loose.frame_bytes);
	settled_free(&loose);
	settled_free(&bound);
	free(frame);
}

static void what_cannot_be_settled(void **state)
{
	struct test *t = *state;
	struct settle_options o = {.policy = &t->policy};
	uint8_t *frame, none[N] = {0};
	struct settled s;
	size_t len;

	world_fill(t->w);
	encode(t, none, &frame, &len, NULL);
	assert_int_equal(try_settle(t, frame, len, NULL, &s), -ERANGE);
	free(frame);
	encode(t, t->classes, &frame, &len, NULL);
	assert_int_equal(settle(t->w->codec, t->detection, &t->w->g, frame, len, &o, &s), -ENOTSUP);
	for (size_t byte = 8; byte < len; byte += 1 + len / 61) {
		frame[byte] ^= 1;
		assert_int_equal(try_settle(t, frame, len, NULL, &s), -EBADMSG);
		frame[byte] ^= 1;
	}
	free(frame);
	assert_true(settle_is_due(512, 256, 128, 896));
	assert_false(settle_is_due(512, 256, 128, 895));
	assert_false(settle_is_due(512, 256, 128, 0));
	assert_true(settle_is_due(512, 256, 0, 768));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(sinks_stay, set_up, tear_down),
		cmocka_unit_test_setup_teardown(attention_settles_it, set_up, tear_down),
		cmocka_unit_test_setup_teardown(ranked, set_up, tear_down),
		cmocka_unit_test_setup_teardown(the_bound_holds, set_up, tear_down),
		cmocka_unit_test_setup_teardown(what_cannot_be_settled, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
