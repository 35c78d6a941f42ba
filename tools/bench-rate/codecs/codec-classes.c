/*
 * Cistern with salient and redundant tokens, chosen by what a chunk says of itself: how badly the basis fits
 * a token, how far it is from what its neighbours foretell, or by chance, for comparison. For the bench, to
 * see whether a signal earns anything at an equal number of bytes.
 */
#include "tools/bench-rate/codecs/under-test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/policy.h"
#include "policy/sinks/rank.h"

struct classes_codec {
	struct under_test base;
	char name[48];
	const struct learning *l;
	struct codec *codec;
	struct class_rule rule;
	uint64_t random;
};

/* In any order. */
static void by_chance(struct classes_codec *k, const uint8_t *given, uint32_t n_tokens, uint8_t *classes)
{
	float scores[FRAME_TOKENS_MAX];

	for (uint32_t t = 0; t < n_tokens; t++) {
		k->random = k->random * 6364136223846793005u + 1442695040888963407u;
		scores[t] = (float)(k->random >> 40);
	}
	memcpy(classes, given, n_tokens);
	sinks_rank(scores, n_tokens, k->rule.salient_share, k->rule.redundant_share, classes);
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
		.classes = k->rule.rank ? given : classes,
		.rank = k->rule.rank,
		.salient_share = k->rule.salient_share,
		.redundant_share = k->rule.redundant_share};
	uint8_t *data;
	size_t len;
	int r;

	by_chance(k, given, chunk->n_tokens, classes);
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
	snprintf(k->name, sizeof k->name, "%s %.0f%%-%u %.0f%%+%u", names[rule->rank],
		100 * rule->salient_share, rule->finer, 100 * rule->redundant_share, rule->coarser);
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
