/*
 * Cistern with salient and redundant tokens, chosen by what a chunk says of itself: how badly the basis fits
 * a token, how far it is from what its neighbours foretell, or by chance, for comparison. For the bench, to
 * see whether a signal earns anything at an equal number of bytes.
 */
#include "tools/bench-rate/codecs/under-test.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/policy.h"
#include "policy/sinks/rank.h"
#include "runtime/chunk-copy.h"

struct classes_codec {
	struct under_test base;
	char name[48];
	const struct learning *l;
	struct codec *codec;
	struct class_rule rule;
	uint64_t random;
};

/* Of a chunk's coded tokens, in the transform's metric. */
struct signals {
	size_t n;
	uint16_t tokens[FRAME_TOKENS_MAX];
	float *z;                  /* [n, p], of one part */
	float *c;                  /* [r, n] */
	double *error, *norm;      /* [n], of one plane */
	float *worst;              /* [n]: relative error, of the plane where it is larger */
	double *residual, *energy; /* [n], over all parts */
};

static struct layer_group group_of(const struct transform_part *part)
{
	return (struct layer_group){part->plane, part->first_layer, part->n_layers, part->n_features};
}

/* Weighted features about the mean. */
static int read_part(const struct learning *l, const struct codec_chunk *chunk,
	const struct transform_part *part, const struct signals *s, float *z)
{
	const struct layer_group group = group_of(part);
	const int r = layer_group_read(l->kernels, chunk, &group, s->tokens, s->n, part->mean, z);

	for (size_t i = 0; r == 0 && i < s->n * group.p; i++)
		z[i] *= part->weight[i % group.p];
	return r;
}

/* What is left of a token when it is foretold from the tokens on either side, with one factor for the part.
 */
static void add_residual(struct signals *s, const struct transform_part *part)
{
	const size_t n = s->n;
	double with = 0, of = 0;

	for (size_t i = 0; i < part->n_components; i++)
		for (size_t t = 1; t + 1 < n; t++) {
			const float *c = s->c + i * n + t;
			const double beside = (double)c[-1] + (double)c[1];

			with += (double)c[0] * beside;
			of += beside * beside;
		}
	for (size_t i = 0; i < part->n_components; i++)
		for (size_t t = 0; t < n; t++) {
			const float *c = s->c + i * n + t;
			const double beside = (t ? (double)c[-1] : (double)c[1]) +
					      (t + 1 < n ? (double)c[1] : (double)c[-1]);
			const double left = (double)c[0] - (of > 0 ? with / of : 0) * beside;

			s->residual[t] += left * left;
			s->energy[t] += (double)c[0] * (double)c[0];
		}
}

static void add_error(struct signals *s, const struct transform_part *part, const float *original)
{
	const size_t p = part->n_features;

	for (size_t t = 0; t < s->n; t++)
		for (size_t i = 0; i < p; i++) {
			const double x =
				(double)original[t * p + i] + (double)(part->weight[i] * part->mean[i]);
			const double d = (double)s->z[t * p + i] - (double)original[t * p + i];

			s->error[t] += d * d;
			s->norm[t] += x * x;
		}
}

static int measure(struct classes_codec *k, const struct codec_chunk *chunk,
	const struct codec_chunk *decoded, struct signals *s)
{
	const struct transform *t = k->l->transform;
	float *original = NULL;
	int r = 0;

	for (uint32_t i = 0; i < t->n_parts && r == 0; i++) {
		const struct transform_part *part = &t->parts[i];
		const size_t p = part->n_features;
		float *more = realloc(original, s->n * p * sizeof *more);

		original = more ? more : original;
		r = more ? read_part(k->l, chunk, part, s, original) : -ENOMEM;
		if (r == 0)
			r = read_part(k->l, decoded, part, s, s->z);
		if (r)
			break;
		k->l->kernels->project(part->basis, part->n_components, p, original, p, s->n, s->c, s->n);
		add_residual(s, part);
		add_error(s, part, original);
		if (i + 1 < t->n_parts && t->parts[i + 1].plane == part->plane)
			continue;
		for (size_t n = 0; n < s->n; n++) {
			s->worst[n] = fmaxf(s->worst[n], (float)sqrt(s->error[n] / s->norm[n]));
			s->error[n] = s->norm[n] = 0;
		}
	}
	free(original);
	return r;
}

/* A place in the order, for each of the chunk's tokens: the higher, the more salient. */
static void scores_of(struct classes_codec *k, const struct signals *s, uint32_t n_tokens, float *scores)
{
	for (uint32_t t = 0; t < n_tokens; t++)
		scores[t] = NAN;
	for (size_t i = 0; i < s->n; i++) {
		k->random = k->random * 6364136223846793005u + 1442695040888963407u;
		scores[s->tokens[i]] = k->rule.signal == CLASS_BY_FIT ? s->worst[i]
				       : k->rule.signal == CLASS_BY_NEIGHBOURS
					       ? (float)(s->residual[i] / s->energy[i])
					       : (float)(k->random >> 40);
		if (k->rule.reversed)
			scores[s->tokens[i]] *= -1;
	}
}

static int signals_init(struct signals *s, const struct learning *l, size_t n)
{
	size_t p = 0;

	for (uint32_t i = 0; i < l->transform->n_parts; i++)
		p = l->transform->parts[i].n_features > p ? l->transform->parts[i].n_features : p;
	s->z = malloc((n * p + 1) * sizeof *s->z);
	s->c = malloc((n * p + 1) * sizeof *s->c);
	s->worst = calloc(n + 1, sizeof *s->worst);
	s->error = calloc(4 * n + 4, sizeof *s->error);
	s->norm = s->error + n;
	s->residual = s->norm + n;
	s->energy = s->residual + n;
	return s->z && s->c && s->worst && s->error ? 0 : -ENOMEM;
}

static void signals_fini(struct signals *s)
{
	free(s->z);
	free(s->c);
	free(s->worst);
	free(s->error);
}

/* What the chunk becomes when all of its coded tokens are plain. */
static int decode_plain(struct classes_codec *k, size_t rung, const struct codec_chunk *chunk,
	const uint8_t *classes, struct chunk_copy *copy)
{
	const struct codec_options options = {
		.transform = k->l->transform, .rung = (uint32_t)rung, .classes = classes};
	struct codec_chunk to;
	uint8_t *data;
	size_t len;
	int r = codec_encode(k->codec, chunk, &options, &data, &len, NULL);

	if (r)
		return r;
	chunk_copy_place(copy, chunk->n_tokens, chunk->position);
	to = chunk_copy_view(copy);
	r = codec_decode(k->codec, data, len, k->l->transform, &to, 0, chunk->geometry->n_layers);
	free(data);
	return r;
}

static int classify(struct classes_codec *k, size_t rung, const struct codec_chunk *chunk,
	const uint8_t *given, uint8_t *classes)
{
	struct chunk_copy *copy = chunk_copy_new(chunk->geometry, chunk->n_tokens);
	struct signals s = {.n = 0};
	float scores[FRAME_TOKENS_MAX];
	int r = copy ? decode_plain(k, rung, chunk, given, copy) : -ENOMEM;

	memcpy(classes, given, chunk->n_tokens);
	s.n = coded_tokens(chunk, given, s.tokens);
	if (r == 0)
		r = signals_init(&s, k->l, s.n);
	if (r == 0 && s.n > 1) {
		const struct codec_chunk decoded = chunk_copy_view(copy);

		r = measure(k, chunk, &decoded, &s);
		if (r == 0) {
			scores_of(k, &s, chunk->n_tokens, scores);
			sinks_rank(scores, chunk->n_tokens, k->rule.salient_share, k->rule.redundant_share,
				classes);
		}
	}
	signals_fini(&s);
	chunk_copy_free(copy);
	return r;
}

static int code(struct under_test *u, size_t rung, const struct codec_chunk *chunk, const uint8_t *given,
	struct coded_bytes *out)
{
	struct classes_codec *k = (struct classes_codec *)u;
	const struct transform *t = k->l->transform;
	const uint32_t at = (uint32_t)rung + CLASSES_FIRST_RUNG;
	uint8_t classes[FRAME_TOKENS_MAX];
	const struct codec_options options = {.transform = t,
		.rung = at,
		.rung_salient = at > k->rule.finer ? at - k->rule.finer : 0,
		.rung_redundant = at + k->rule.coarser < t->n_rungs ? at + k->rule.coarser : t->n_rungs - 1,
		.classes = classes};
	uint8_t *data;
	size_t len;
	int r = classify(k, at, chunk, given, classes);

	if (r == 0)
		r = codec_encode(k->codec, chunk, &options, &data, &len, NULL);
	if (r < 0)
		return r;
	r = cistern_frame_bytes(data, len, out);
	if (r == 0)
		r = codec_decode(k->codec, data, len, t, chunk, 0, chunk->geometry->n_layers);
	free(data);
	return r;
}

static void free_codec(struct under_test *u)
{
	struct classes_codec *k = (struct classes_codec *)u;

	codec_free(k->codec);
	free(k);
}

int under_test_cistern_classes(
	const struct learning *l, const struct class_rule *rule, struct under_test **out)
{
	static const char *const names[] = {"chance", "fit", "neighbours"};
	struct classes_codec *k = calloc(1, sizeof *k);

	if (!k)
		return -ENOMEM;
	if (l->transform->n_rungs < CLASSES_FIRST_RUNG + CLASSES_RUNGS) {
		free(k);
		return -ENOENT;
	}
	k->rule = *rule;
	k->l = l;
	k->random = 7;
	snprintf(k->name, sizeof k->name, "%s%s %.0f%%-%u %.0f%%+%u", rule->reversed ? "-" : "",
		names[rule->signal], 100 * rule->salient_share, rule->finer, 100 * rule->redundant_share,
		rule->coarser);
	k->base = (struct under_test){
		.name = k->name, .n_rungs = CLASSES_RUNGS, .code = code, .free = free_codec};
	for (size_t i = 0; i < CLASSES_RUNGS; i++)
		k->base.rungs[i] = (double)l->transform->rung_ratio[CLASSES_FIRST_RUNG + i];
	k->codec = codec_new(l->kernels, (size_t)64 << 20);
	if (!k->codec) {
		free(k);
		return -ENOMEM;
	}
	*out = &k->base;
	return 0;
}
