/* Classes of tokens in one frame, each at its rung; the bound and what it promotes; frames made from frames.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernels/formula.h"
#include "policy/levels-model.h"
#include "policy/policy.h"
#include "tests/runtime/made-up-cache.h"

enum { N = 200, POSITION = 512, SECTIONS = 64 };

static int set_up(void **state)
{
	*state = world_new(ROPE_HALF);
	return 0;
}

static int tear_down(void **state)
{
	world_free(*state);
	return 0;
}

/* Sinks, a window, and the coded classes mixed. */
static void classify(uint8_t classes[N])
{
	for (int t = 0; t < N; t++)
		classes[t] = t < 3         ? TOKEN_SINK
			     : t >= N - 40 ? TOKEN_WINDOW
			     : t % 7 == 0  ? TOKEN_SALIENT
			     : t % 5 == 0  ? TOKEN_REDUNDANT
					   : TOKEN_PLAIN;
}

struct values {
	uint16_t of[LAYERS][2][N][WIDTH];
};

static void take(const struct world *w, struct values *v)
{
	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t p = 0; p < 2; p++)
			for (uint32_t t = 0; t < N; t++)
				memcpy(v->of[l][p][t], world_element(w, l, p, 0, t), WIDTH * 2);
}

static void put_back(const struct world *w, const struct values *v)
{
	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t p = 0; p < 2; p++)
			for (uint32_t t = 0; t < N; t++)
				memcpy(world_element(w, l, p, 0, t), v->of[l][p][t], WIDTH * 2);
}

/* In the transform's metric. */
static double error_of(const struct values *a, const struct values *b, uint32_t plane, uint32_t t)
{
	double error = 0, norm = 0;

	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t i = 0; i < WIDTH; i++) {
			const double w = world_weight(l, i),
				     x = w * (double)f16_to_f32(a->of[l][plane][t][i]);
			const double d = w * (double)f16_to_f32(b->of[l][plane][t][i]) - x;

			error += d * d;
			norm += x * x;
		}
	return sqrt(error / norm);
}

static struct codec_options options_of(const struct world *w, const uint8_t *classes)
{
	return (struct codec_options){
		.transform = w->t, .rung = 1, .rung_salient = 0, .rung_redundant = 2, .classes = classes};
}

static void encode(
	struct world *w, const struct codec_options *o, uint8_t **frame, size_t *len, struct frame_info *info)
{
	const struct codec_chunk chunk = world_chunk(w, 0, N, POSITION);

	assert_int_equal(codec_encode(w->codec, &chunk, o, frame, len, info), 0);
}

static void decode(struct world *w, const uint8_t *frame, size_t len, struct values *out)
{
	const struct codec_chunk chunk = world_chunk(w, 0, N, POSITION);

	assert_int_equal(codec_decode(w->codec, frame, len, w->t, &chunk, 0, LAYERS), 0);
	take(w, out);
}

/* The same sections with the same bodies: all but the header. */
static void assert_same_bodies(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
	struct frame_section sa[SECTIONS], sb[SECTIONS];
	struct frame_info ia, ib;

	assert_int_equal(frame_parse(a, a_len, &ia, sa, SECTIONS), 0);
	assert_int_equal(frame_parse(b, b_len, &ib, sb, SECTIONS), 0);
	assert_int_equal(ia.n_sections, ib.n_sections);
	for (uint32_t i = 0; i < ia.n_sections; i++) {
		assert_int_equal(sa[i].kind, sb[i].kind);
		assert_int_equal(sa[i].len_bytes, sb[i].len_bytes);
		assert_memory_equal(a + sa[i].offset, b + sb[i].offset, sa[i].len_bytes);
	}
}

/* Finer classes lose less, raw ones nothing; both entropy stages hold the same levels. */
static void each_class_at_its_rung(void **state)
{
	static struct values before, after[2];
	struct world *w = *state;
	uint8_t classes[N], read[FRAME_TOKENS_MAX];

	classify(classes);
	world_fill(w);
	take(w, &before);
	for (int entropy = CODEC_RANS; entropy <= CODEC_DEFLATE; entropy++) {
		struct codec_options o = options_of(w, classes);
		double sum[TOKEN_CLASSES] = {0}, n[TOKEN_CLASSES] = {0};
		struct frame_info info;
		uint8_t *frame;
		size_t len;

		o.entropy = entropy;
		put_back(w, &before);
		encode(w, &o, &frame, &len, &info);
		assert_int_equal(info.rung, 1);
		assert_int_equal(info.rung_salient, 0);
		assert_int_equal(info.rung_redundant, 2);
		assert_int_equal(frame_classes(frame, len, read), 0);
		assert_memory_equal(read, classes, N);
		decode(w, frame, len, &after[entropy]);
		for (uint32_t t = 0; t < N; t++)
			for (uint32_t p = 0; p < 2; p++) {
				const double error = error_of(&before, &after[entropy], p, t);

				if (token_class_is_raw(classes[t]))
					assert_true(error == 0);
				assert_true(error <= (double)info.error[p].max + 1e-3);
				sum[classes[t]] += error;
				n[classes[t]]++;
			}
		assert_true(sum[TOKEN_SALIENT] / n[TOKEN_SALIENT] < sum[TOKEN_PLAIN] / n[TOKEN_PLAIN]);
		assert_true(sum[TOKEN_PLAIN] / n[TOKEN_PLAIN] < sum[TOKEN_REDUNDANT] / n[TOKEN_REDUNDANT]);
		free(frame);
	}
	assert_memory_equal(&after[0], &after[1], sizeof after[0]);
}

/* What a token becomes does not depend on its neighbours' classes. */
static void tokens_are_independent(void **state)
{
	static struct values before, after[2];
	struct world *w = *state;
	uint8_t classes[2][N];

	classify(classes[0]);
	memcpy(classes[1], classes[0], N);
	for (int t = 0; t < N; t += 2)
		classes[1][t] = (uint8_t)(t % 3 ? TOKEN_SINK : TOKEN_SALIENT);
	world_fill(w);
	take(w, &before);
	for (int i = 0; i < 2; i++) {
		const struct codec_options o = options_of(w, classes[i]);
		uint8_t *frame;
		size_t len;

		put_back(w, &before);
		encode(w, &o, &frame, &len, NULL);
		decode(w, frame, len, &after[i]);
		free(frame);
	}
	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t p = 0; p < 2; p++)
			for (uint32_t t = 1; t < N; t += 2)
				for (uint32_t i = 0; i < WIDTH; i++)
					/* Products are summed in another order for another number of tokens.
					 */
					assert_true(fabsf(f16_to_f32(after[0].of[l][p][t][i]) -
							    f16_to_f32(after[1].of[l][p][t][i])) <= 0x1p-8f);
}

/* Tokens over the bound climb as far as they must and no further; the others stay as they were. */
static void the_bound_promotes(void **state)
{
	static struct values before, after;
	struct world *w = *state;
	uint8_t classes[N], read[FRAME_TOKENS_MAX];
	struct codec_options o = options_of(w, classes);
	struct frame_info info;
	size_t len, n[TOKEN_CLASSES] = {0};
	uint8_t *frame;

	for (int t = 0; t < N; t++)
		classes[t] = t % 2 ? TOKEN_REDUNDANT : TOKEN_PLAIN;
	world_fill(w);
	/* Two tokens that the basis fits worse and worse: energy where no component is. */
	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t i = 0; i < WIDTH; i++) {
			world_element(w, l, 1, 0, 10)[i] =
				f16_from_f32((i % 2 ? 1.0f : -1.0f) * (float)(1 + i % 3) * 40);
			world_element(w, l, 0, 0, 11)[i] = 0;
		}
	take(w, &before);
	encode(w, &o, &frame, &len, &info);
	free(frame);
	/* Between what salient tokens lose and what plain ones do. */
	o.max_error = 0.55 * (double)info.error[0].max;
	put_back(w, &before);
	encode(w, &o, &frame, &len, &info);
	assert_int_equal(frame_classes(frame, len, read), 0);
	decode(w, frame, len, &after);
	for (uint32_t t = 0; t < N; t++) {
		n[read[t]]++;
		for (uint32_t p = 0; p < 2; p++)
			assert_true(error_of(&before, &after, p, t) <= o.max_error + 1e-3 || t == 11);
		assert_true(read[t] == classes[t] || read[t] == TOKEN_PLAIN || read[t] == TOKEN_SALIENT ||
			    read[t] == TOKEN_EXACT);
	}
	assert_true(info.error[0].max <= (float)o.max_error && info.error[1].max <= (float)o.max_error);
	assert_true(n[TOKEN_SALIENT] > 0);
	free(frame);
	/* A bound under what the finest rung gives: all raw. */
	o.max_error = 1e-7;
	put_back(w, &before);
	encode(w, &o, &frame, &len, &info);
	assert_true(info.n_raw >= N - 1);
	free(frame);
}

/* The classes of a frame that ranks, which is the frame that encoding so from the start would have given. */
static void rank(struct world *w, const struct values *v, const struct codec_options *with, uint8_t read[N])
{
	struct codec_options given = *with;
	uint8_t classes[FRAME_TOKENS_MAX], *frame, *again;
	size_t len, again_len;

	put_back(w, v);
	encode(w, with, &frame, &len, NULL);
	assert_int_equal(frame_classes(frame, len, classes), 0);
	memcpy(read, classes, N);
	given.rank = CODEC_UNRANKED;
	given.classes = read;
	encode(w, &given, &again, &again_len, NULL);
	assert_int_equal(len, again_len);
	assert_same_bodies(frame, len, again, again_len);
	free(frame);
	free(again);
}

/* What loses most is coded finer, what loses least coarser; raw tokens and given classes stay. */
static void ranked_by_fit(void **state)
{
	static struct values before, after;
	struct world *w = *state;
	uint8_t classes[N], read[N], *frame;
	struct codec_options o = options_of(w, classes);
	double least_salient = 1e9, most_redundant = 0, least_plain = 1e9, most_plain = 0;
	size_t len, n[TOKEN_CLASSES] = {0};

	for (int t = 0; t < N; t++)
		classes[t] = t < 3 ? TOKEN_SINK : t >= N - 40 ? TOKEN_WINDOW : TOKEN_PLAIN;
	classes[50] = TOKEN_REDUNDANT;
	world_fill(w);
	take(w, &before);
	encode(w, &o, &frame, &len, NULL);
	decode(w, frame, len, &after);
	free(frame);
	o.rank = CODEC_BY_FIT;
	o.salient_share = 0.1;
	o.redundant_share = 0.25;
	rank(w, &before, &o, read);
	for (uint32_t t = 0; t < N; t++) {
		const double error = fmax(error_of(&before, &after, 0, t), error_of(&before, &after, 1, t));

		n[read[t]]++;
		if (classes[t] != TOKEN_PLAIN)
			assert_int_equal(read[t], classes[t]);
		else if (read[t] == TOKEN_SALIENT)
			least_salient = fmin(least_salient, error);
		else if (read[t] == TOKEN_REDUNDANT)
			most_redundant = fmax(most_redundant, error);
		else {
			least_plain = fmin(least_plain, error);
			most_plain = fmax(most_plain, error);
		}
	}
	assert_int_equal(n[TOKEN_SALIENT], (N - 44) / 10);
	assert_int_equal(n[TOKEN_REDUNDANT], (N - 44) / 4 + 1);
	/* What was decoded is rounded to f16. */
	assert_true(least_salient >= most_plain - 1e-3 && least_plain >= most_redundant - 1e-3);

	/* With a bound, after: none is over it, whatever it was ranked. */
	o.max_error = 0.9 * most_plain;
	{
		struct frame_info info;

		put_back(w, &before);
		encode(w, &o, &frame, &len, &info);
		assert_true((double)fmaxf(info.error[0].max, info.error[1].max) <= o.max_error * 1.000001);
		free(frame);
	}
}

/* Tokens that are just between their neighbours are the redundant ones. */
static void ranked_by_neighbours(void **state)
{
	static struct values v;
	struct world *w = *state;
	uint8_t classes[N] = {0}, read[N];
	struct codec_options o = options_of(w, classes);
	const int between[] = {20, 60, 61, 140};

	world_fill(w);
	take(w, &v);
	/* Values are not rotated: there, between means the mean. For keys, the token before is near enough.
	 */
	for (size_t k = 0; k < sizeof between / sizeof *between; k++)
		for (uint32_t l = 0; l < LAYERS; l++)
			for (uint32_t i = 0; i < WIDTH; i++) {
				uint16_t *at = v.of[l][1][between[k]] + i;

				*at = f16_from_f32((f16_to_f32(v.of[l][1][between[k] - 1][i]) +
							   f16_to_f32(v.of[l][1][between[k] + 1][i])) /
						   2);
				v.of[l][0][between[k]][i] = v.of[l][0][between[k] - 1][i];
			}
	o.rank = CODEC_BY_NEIGHBOURS;
	o.redundant_share = 0.03;
	rank(w, &v, &o, read);
	assert_true(read[20] == TOKEN_REDUNDANT && read[140] == TOKEN_REDUNDANT);
	for (int t = 0, n = 0; t < N; t++) {
		n += read[t] == TOKEN_REDUNDANT;
		assert_true(read[t] == TOKEN_PLAIN || read[t] == TOKEN_REDUNDANT);
		assert_true(t + 1 < N || n == (int)(0.03 * N));
	}
}

/* A coefficient that no level reaches is kept raw, whatever the bound. */
static void out_of_reach(void **state)
{
	static struct values before, after;
	struct world *w = *state;
	uint8_t classes[N] = {0}, read[FRAME_TOKENS_MAX];
	const struct codec_options o = {.transform = w->t, .classes = classes};
	uint8_t *frame;
	size_t len;

	world_fill(w);
	for (uint32_t i = 0; i < WIDTH; i++)
		world_element(w, 1, 0, 0, 77)[i] = f16_from_f32(60000);
	take(w, &before);
	encode(w, &o, &frame, &len, NULL);
	assert_int_equal(frame_classes(frame, len, read), 0);
	assert_int_equal(read[77], TOKEN_EXACT);
	decode(w, frame, len, &after);
	for (uint32_t p = 0; p < 2; p++)
		assert_true(error_of(&before, &after, p, 77) == 0);
	free(frame);
}

/* Coarser rungs from levels: raw tokens and classes as they were, smaller, and what it says it lost bounds
 * what it did. */
static void coarser_rungs(void **state)
{
	static struct values before, after;
	struct world *w = *state;
	uint8_t classes[N], read[FRAME_TOKENS_MAX];
	struct codec_options fine, coarse;
	struct frame_info info, first;
	uint8_t *frame, *made;
	size_t len, made_len;

	classify(classes);
	fine = coarse = options_of(w, classes);
	fine.rung = fine.rung_redundant = 0;
	memset(fine.key, 5, 32);
	coarse.policy_version = 9;
	world_fill(w);
	take(w, &before);
	encode(w, &fine, &frame, &len, &first);
	assert_int_equal(codec_transcode(w->codec, &w->g, frame, len, &coarse, &made, &made_len, &info), 0);
	assert_true(made_len < len);
	assert_int_equal(frame_parse(made, made_len, &info, NULL, 0), 0);
	assert_int_equal(info.rung, 1);
	assert_int_equal(info.rung_redundant, 2);
	assert_int_equal(info.policy_version, 9);
	assert_memory_equal(info.key, fine.key, 32);
	assert_int_equal(frame_classes(made, made_len, read), 0);
	assert_memory_equal(read, classes, N);
	decode(w, made, made_len, &after);
	for (uint32_t t = 0; t < N; t++)
		for (uint32_t p = 0; p < 2; p++) {
			assert_true(error_of(&before, &after, p, t) <= (double)info.error[p].max + 1e-3);
			if (token_class_is_raw(classes[t]))
				assert_true(error_of(&before, &after, p, t) == 0);
		}
	assert_true(info.error[0].max > first.error[0].max);

	/* What it will not do. */
	uint8_t *none;
	size_t none_len;
	struct codec_options wrong = coarse;

	assert_int_equal(
		codec_transcode(w->codec, &w->g, made, made_len, &fine, &none, &none_len, NULL), -EINVAL);
	wrong.rung = RUNGS;
	assert_int_equal(
		codec_transcode(w->codec, &w->g, frame, len, &wrong, &none, &none_len, NULL), -EINVAL);
	wrong = coarse;
	wrong.max_error = (double)info.error[0].max * 0.5;
	assert_int_equal(
		codec_transcode(w->codec, &w->g, frame, len, &wrong, &none, &none_len, NULL), -ERANGE);
	wrong = fine;
	assert_int_equal(
		codec_transcode(w->codec, &w->g, frame, len, &wrong, &none, &none_len, NULL), -ERANGE);
	wrong.transform = NULL;
	assert_int_equal(
		codec_transcode(w->codec, &w->g, frame, len, &wrong, &none, &none_len, NULL), -ERANGE);
	for (size_t byte = 8; byte < len; byte += 1 + len / 97) {
		frame[byte] ^= 1;
		assert_int_equal(
			codec_transcode(w->codec, &w->g, frame, len, &coarse, &none, &none_len, NULL),
			-EBADMSG);
		frame[byte] ^= 1;
	}
	free(made);
	free(frame);
}

/* With the identity for a basis and f32 elements, what a frame decodes to are its coefficients, to the bit.
 * Then encoding that must give what transcoding does. */
static void transcoding_is_encoding_the_coefficients(void **state)
{
	enum { F = 32, TOKENS = 90 };
	struct geometry g = {.name = "identity", .n_layers = 1, .n_planes = 2, .tp_size = 1};
	struct transform_part parts[2];
	struct levels_model model;
	struct levels_tables tables[2];
	struct transform draft = {.n_rungs = 2,
		.rung_ratio = {4, 8},
		.step = {0.05f, 0.21f},
		.n_planes = 2,
		.tables = tables,
		.n_parts = 2,
		.parts = parts};
	static float basis[F * F], mean[F], weight[F], deviation[F], values[2][TOKENS * F],
		copy[2][TOKENS * F];
	struct kv_pages pages[2], copies[2];
	const uint32_t block = 0;
	struct codec_chunk chunk = {.geometry = &g,
		.pages = pages,
		.run = {.blocks = &block, .block_tokens = TOKENS},
		.n_tokens = TOKENS};
	struct codec *codec = codec_new(kernels_cpu(), 1 << 20);
	uint8_t classes[TOKENS] = {0}, *frame, *made, *again;
	struct codec_options o = {.classes = classes};
	struct transform *t;
	size_t len, made_len, again_len;
	uint64_t random = 3;
	void *data;
	(void)state;

	assert_non_null(codec);
	levels_model_default(&model);
	for (int p = 0; p < 2; p++) {
		g.planes[p] = (struct plane){.n_heads = 2, .dim = F / 2, .dtype = DTYPE_F32};
		tables[p] = model.tables;
		parts[p] = (struct transform_part){.plane = (uint32_t)p,
			.n_layers = 1,
			.n_features = F,
			.n_components = F,
			.mean = mean,
			.weight = weight,
			.basis = basis,
			.deviation = deviation};
		pages[p] = (struct kv_pages){(uint8_t *)values[p], 0, F * 4, F / 2 * 4};
		copies[p] = (struct kv_pages){(uint8_t *)copy[p], 0, F * 4, F / 2 * 4};
	}
	for (int i = 0; i < F; i++) {
		basis[i * F + i] = 1;
		weight[i] = 1;
		deviation[i] = 3.0f * powf(0.9f, (float)i);
	}
	for (int k = 0; k < 2 * TOKENS * F; k++) {
		float sum = -6;

		for (int i = 0; i < 12; i++) {
			random = random * 6364136223846793005u + 1442695040888963407u;
			sum += (float)(random >> 40) / 16777216.0f;
		}
		values[k / (TOKENS * F)][k % (TOKENS * F)] = sum * deviation[k % F];
	}
	for (int i = 0; i < TOKENS; i++)
		classes[i] = i % 9 == 0 ? TOKEN_SALIENT : TOKEN_PLAIN;
	geometry_fingerprint(&g, draft.fingerprint);
	assert_int_equal(transform_serialise(&draft, 1, NULL, &data, &len), 0);
	assert_int_equal(transform_parse(data, len, &t, NULL, 0), 0);
	free(data);
	o.transform = t;
	for (int entropy = CODEC_RANS; entropy <= CODEC_DEFLATE; entropy++) {
		o.entropy = entropy;
		o.rung = o.rung_salient = 0;
		chunk.pages = pages;
		assert_int_equal(codec_encode(codec, &chunk, &o, &frame, &len, NULL), 0);
		chunk.pages = copies;
		assert_int_equal(codec_decode(codec, frame, len, t, &chunk, 0, 1), 0);
		o.rung = 1;
		assert_int_equal(codec_transcode(codec, &g, frame, len, &o, &made, &made_len, NULL), 0);
		assert_int_equal(codec_encode(codec, &chunk, &o, &again, &again_len, NULL), 0);
		assert_same_bodies(made, made_len, again, again_len);
		free(frame);
		free(made);
		free(again);
	}
	transform_unref(t);
	codec_free(codec);
}

/* The window moves on: what was raw is coded now, and the frame is the one that encoding so at once would
 * have given. */
static void the_window_moves_on(void **state)
{
	static struct values before, after, wanted;
	struct world *w = *state;
	uint8_t early[N], late[N], *frame, *settled, *fresh, *none;
	size_t len, settled_len, fresh_len, none_len;
	struct frame_info info, fresh_info;
	struct codec_options o;

	classify(early);
	memcpy(late, early, N);
	for (int t = N - 40; t < N - 8; t++)
		late[t] = (uint8_t)(t % 3 ? TOKEN_PLAIN : TOKEN_SALIENT);
	world_fill(w);
	take(w, &before);
	o = options_of(w, early);
	encode(w, &o, &frame, &len, NULL);
	o.classes = late;
	encode(w, &o, &fresh, &fresh_len, &fresh_info);
	assert_int_equal(codec_resettle(w->codec, &w->g, frame, len, &o, &settled, &settled_len, &info), 0);
	assert_same_bodies(settled, settled_len, fresh, fresh_len);
	assert_int_equal(info.n_raw, fresh_info.n_raw);
	for (int p = 0; p < 2; p++) {
		assert_true(fabsf(info.error[p].max - fresh_info.error[p].max) < 1e-5f);
		assert_true(fabsf(info.error[p].mean - fresh_info.error[p].mean) < 1e-5f);
	}
	decode(w, settled, settled_len, &after);
	decode(w, fresh, fresh_len, &wanted);
	assert_memory_equal(&after, &wanted, sizeof after);

	assert_int_equal(
		codec_resettle(w->codec, &w->g, settled, settled_len, &o, &none, &none_len, NULL), -ERANGE);
	o.rung = 2;
	assert_int_equal(codec_resettle(w->codec, &w->g, frame, len, &o, &none, &none_len, NULL), -ESTALE);
	free(frame);
	free(settled);
	free(fresh);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_class_at_its_rung),
		cmocka_unit_test(tokens_are_independent),
		cmocka_unit_test(the_bound_promotes),
		cmocka_unit_test(ranked_by_fit),
		cmocka_unit_test(ranked_by_neighbours),
		cmocka_unit_test(out_of_reach),
		cmocka_unit_test(coarser_rungs),
		cmocka_unit_test(transcoding_is_encoding_the_coefficients),
		cmocka_unit_test(the_window_moves_on),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
