#include "runtime/settle.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "policy/sinks/rank.h"
#include "runtime/codec/raw-tokens.h"

struct judgement {
	const struct settle_options *options;
	const struct raw_tokens *raw;
	float *scores;              /* [n_tokens], of the detector; -INFINITY: not in the window */
	float *unusual;             /* [n_tokens], the same */
	float *seen;                /* [n_tokens], drawing; NAN: not seen, or not in the window */
	struct sinks_evidence told; /* by the detector, of the raw tokens side by side */
	bool scored;
};

static bool in_window(const struct judgement *j, uint32_t t)
{
	return j->raw->classes[t] == TOKEN_WINDOW;
}

/* Of all raw tokens, for they lie side by side. */
static int score(struct judgement *j, struct detection *detection, const struct geometry *g)
{
	const struct raw_tokens *raw = j->raw;
	const struct codec_chunk chunk = {
		.geometry = g, .pages = raw->pages, .run = raw_tokens_run(raw), .n_tokens = raw->info.n_raw};
	uint64_t positions[FRAME_TOKENS_MAX];
	int r;

	for (uint32_t t = 0; t < raw->info.n_tokens; t++)
		if (token_class_is_raw(raw->classes[t]))
			positions[raw->slot[t]] = raw->info.position + t;
	r = detection_score_at(detection, &chunk, positions, j->options->detector, &j->told);
	j->scored = !r;
	for (uint32_t t = 0; t < raw->info.n_tokens && !r; t++)
		if (in_window(j, t)) {
			j->scores[t] = j->told.scores[raw->slot[t]];
			j->unusual[t] = j->told.unusual ? j->told.unusual[raw->slot[t]] : -INFINITY;
		}
	return r;
}

/* Sinks that the search has found and that stay; the first ones of a sequence are nobody's finding. */
static size_t n_spent(const struct judgement *j)
{
	size_t n = 0;

	for (uint32_t t = 0; t < j->raw->info.n_tokens; t++)
		n += j->raw->classes[t] == TOKEN_SINK &&
		     j->raw->info.position + t >= j->options->policy->sink_tokens;
	return n;
}

/* Findings among the window's tokens; classes become what they are to be. */
static uint32_t find_sinks(struct judgement *j, uint8_t *classes, struct sinks_finding *findings)
{
	const struct policy *p = j->options->policy;
	const struct sinks_rules rules = {.budget = p->sink_budget,
		.multiple = p->sink_multiple,
		.unusual = p->sink_unusual,
		.keep = p->sink_keep};
	const struct sinks_evidence evidence = {.n_tokens = j->raw->info.n_tokens,
		.seen = j->options->seen ? j->seen : NULL,
		.scores = j->scored ? j->scores : NULL,
		.trained = j->told.trained,
		.threshold = j->told.threshold,
		.unusual = j->told.unusual ? j->unusual : NULL,
		.familiar = j->told.familiar,
		.n_spent = n_spent(j)};
	uint32_t n = 0;
	size_t n_all;

	if (!p->sink_search)
		return 0;
	n_all = sinks_decide(&rules, &evidence, classes, findings);
	for (size_t i = 0; i < n_all; i++)
		if (in_window(j, findings[i].token))
			findings[n++] = findings[i];
	return n;
}

/* By what is asked for, among those that leave: the others have their classes. */
static void rank(const struct judgement *j, uint8_t *classes)
{
	const struct policy *p = j->options->policy;
	const uint32_t n = j->raw->info.n_tokens;
	const float *asked = j->options->seen ? j->options->seen + n : j->scores;
	uint8_t ranked[FRAME_TOKENS_MAX];

	if (p->class_by != POLICY_BY_ATTENTION || (p->salient_share <= 0 && p->redundant_share <= 0) ||
		(!j->options->seen && !j->scored))
		return;
	for (uint32_t t = 0; t < n; t++)
		ranked[t] = in_window(j, t) ? classes[t] : TOKEN_EXACT;
	sinks_rank(asked, n, p->salient_share, p->redundant_share, ranked);
	for (uint32_t t = 0; t < n; t++)
		if (in_window(j, t))
			classes[t] = ranked[t];
}

static int judge(
	struct judgement *j, struct detection *detection, const struct geometry *g, struct settled *out)
{
	const struct frame_info *info = &j->raw->info;
	int r = 0;

	for (uint32_t t = 0; t < info->n_tokens; t++) {
		out->classes[t] = in_window(j, t) ? TOKEN_PLAIN : j->raw->classes[t];
		out->n_left += in_window(j, t);
		j->scores[t] = j->unusual[t] = -INFINITY;
		j->seen[t] = in_window(j, t) && j->options->seen ? j->options->seen[t] : NAN;
	}
	if (!out->n_left)
		return -ERANGE;
	if (j->options->policy->sink_search && j->options->detector && detection)
		r = score(j, detection, g);
	if (r)
		return r;
	/* A position that has become one of the first by a change of the policy is none that was found. */
	for (uint32_t t = 0; t < info->n_tokens; t++)
		if (in_window(j, t) && info->position + t < j->options->policy->sink_tokens)
			out->classes[t] = TOKEN_SINK;
	out->n_findings = find_sinks(j, out->classes, out->findings);
	for (uint32_t i = 0; i < out->n_findings && j->scored; i++)
		if (out->findings[i].reason != SINKS_BY_POSITION) {
			struct sinks_finding in_row = out->findings[i];

			in_row.token = j->raw->slot[in_row.token];
			out->findings[i].feature = detection_top(detection, j->options->detector, &in_row);
		}
	rank(j, out->classes);
	return 0;
}

/* What the frame keeps to, so that the tokens that come to it are like those that it has. */
static struct codec_options options_like(
	const struct frame_info *info, const struct settle_options *options, const uint8_t *classes)
{
	struct codec_options o = {.transform = options->transform, .classes = classes};

	codec_follow(&o, options->policy, info->rung);
	o.rung_salient = info->rung_salient;
	o.rung_redundant = info->rung_redundant;
	return o;
}

int settle(struct codec *codec, struct detection *detection, const struct geometry *g, const void *frame,
	size_t len, const struct settle_options *options, struct settled *out)
{
	struct settled s = {0};
	struct raw_tokens raw;
	struct judgement j = {.options = options, .raw = &raw};
	struct codec_options encode;
	int r;

	if (!options->transform)
		return -ENOTSUP;
	r = raw_tokens_init(&raw, codec, g, options->transform, frame, len);
	if (r)
		return r == -ENODATA ? -ERANGE : r;
	j.scores = malloc(3 * (size_t)raw.info.n_tokens * sizeof *j.scores);
	j.seen = j.scores ? j.scores + raw.info.n_tokens : NULL;
	j.unusual = j.scores ? j.seen + raw.info.n_tokens : NULL;
	s.findings = calloc(raw.info.n_tokens, sizeof *s.findings);
	r = j.scores && s.findings ? judge(&j, detection, g, &s) : -ENOMEM;
	encode = options_like(&raw.info, options, s.classes);
	if (!r)
		r = codec_resettle(codec, g, frame, len, &encode, &s.frame, &s.frame_bytes, &s.info);
	if (r)
		free(s.findings);
	else
		*out = s;
	free(j.scores);
	raw_tokens_fini(&raw);
	return r;
}
