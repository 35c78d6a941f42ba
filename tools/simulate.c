#include "tools/simulate.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/rate.h"
#include "policy/sinks/rank.h"
#include "runtime/detection.h"

enum { LESSONS = 8 /* chunks that teach what a mean token is, as in the daemon */ };

struct simulator {
	const struct policy *policy;
	const struct transform *transform;
	double fill;
	struct codec *codec;
	struct detection *detection;
	struct sinks_learner *learner;
	struct sinks_detector *detector;
	struct rate rate;
	struct geometry geometry;
	bool begun;
	struct simulation sums;
};

/* The next chunk's classes, found as the daemon finds them. */
static int classify(struct simulator *s, const struct codec_chunk *chunk, uint64_t end, uint8_t *classes)
{
	const struct policy *p = s->policy;
	const struct sinks_rules rules = {p->sink_budget, p->sink_multiple, p->sink_unusual, p->sink_keep};
	struct sinks_evidence evidence = {.n_tokens = chunk->n_tokens};
	struct sinks_finding findings[SIMULATE_CHUNK];
	size_t n;
	int r;

	policy_classify(p, chunk->position, chunk->n_tokens, end, classes);
	if (!p->sink_search)
		return 0;
	if (s->detector) {
		r = detection_score(s->detection, chunk, s->detector, &evidence);
		if (r)
			return r;
		n = sinks_decide(&rules, &evidence, classes, findings);
		for (size_t i = 0; i < n; i++)
			s->sums.n_found += findings[i].reason != SINKS_BY_POSITION;
	}
	if (p->class_by == POLICY_BY_ATTENTION && (p->salient_share > 0 || p->redundant_share > 0) &&
		evidence.scores)
		sinks_rank(evidence.scores, chunk->n_tokens, p->salient_share, p->redundant_share, classes);
	if (s->sums.n_chunks >= LESSONS)
		return 0;
	r = detection_learn(s->detection, chunk, s->learner, NULL);
	if (!r) {
		s->detector = sinks_detector_unref(s->detector);
		r = sinks_learner_detector(s->learner, p->sink_budget, log(p->sink_multiple), &s->detector);
	}
	return r == -ENODATA ? 0 : r;
}

static void count_classes(struct simulator *s, const uint8_t *frame, size_t len, uint32_t n_tokens)
{
	uint8_t classes[FRAME_TOKENS_MAX];

	if (frame_classes(frame, len, classes))
		return;
	for (uint32_t t = 0; t < n_tokens; t++)
		s->sums.n_class[classes[t] % SIMULATE_CLASSES]++;
}

static void note(struct simulator *s, const struct rate_plan *plan, const struct frame_info *info,
	const uint8_t *frame, size_t len)
{
	const double coded = (double)info->raw_bytes * (info->n_tokens - info->n_raw) / info->n_tokens;
	struct simulation *sums = &s->sums;
	const double raw = (double)info->raw_section_bytes;

	count_classes(s, frame, len, info->n_tokens);
	sums->n_chunks++;
	sums->n_tokens += info->n_tokens;
	sums->raw_bytes += (double)info->raw_bytes;
	sums->frame_bytes += (double)len;
	for (int i = 0; i < 2; i++) {
		sums->error[i] += (double)info->error[i].mean;
		sums->worst[i] = fmax(sums->worst[i], (double)info->error[i].max);
	}
	if (coded > 0) {
		sums->coded_raw_bytes += coded;
		sums->coded_bytes += (double)len - raw;
	}
	if (s->transform) {
		sums->n_rung[info->rung]++;
		rate_note(&s->rate, plan, coded, (double)len - raw,
			(double)fmaxf(info->error[0].mean, info->error[1].mean));
	}
}

static int encode_chunk(struct simulator *s, const struct capture *c, uint32_t first)
{
	const uint32_t left = c->n_tokens - first;
	const struct codec_chunk chunk = {.geometry = &c->geometry,
		.pages = c->pages,
		.run = capture_run(c, first),
		.n_tokens = left < SIMULATE_CHUNK ? left : SIMULATE_CHUNK,
		.position = c->positions[first]};
	uint8_t classes[SIMULATE_CHUNK], *frame;
	struct codec_options options = {.transform = s->transform, .classes = classes};
	struct rate_plan plan = {0};
	struct frame_info info;
	size_t len;
	int r = classify(s, &chunk, c->positions[0] + c->n_tokens, classes);

	if (!r && s->transform)
		r = rate_choose(&s->rate, s->policy, s->transform,
			(double)geometry_token_bytes(&c->geometry) * chunk.n_tokens, s->fill, &plan);
	codec_follow(&options, s->policy, plan.rung);
	if (!r)
		r = codec_encode(s->codec, &chunk, &options, &frame, &len, &info);
	if (r)
		return r;
	note(s, &plan, &info, frame, len);
	free(frame);
	return 0;
}

static int begin(struct simulator *s, const struct capture *c, char *why, size_t why_len)
{
	struct sinks_view view;

	s->geometry = c->geometry;
	s->begun = true;
	sinks_view_init(&view, &c->geometry);
	s->learner = sinks_learner_new(&view);
	if (!s->learner)
		return -ENOMEM;
	return s->transform ? transform_fits(s->transform, &c->geometry, why, why_len) : 0;
}

static int run_capture(struct simulator *s, const char *path, const struct capture_options *options,
	char *why, size_t why_len)
{
	struct capture *c;
	uint8_t mine[16], first[16];
	char what[300] = "";
	int r = capture_open(path, options, &c, what, sizeof what);

	if (r) {
		snprintf(why, why_len, "%s: %s", path, what[0] ? what : strerror(-r));
		return r;
	}
	if (!s->begun)
		r = begin(s, c, why, why_len);
	geometry_fingerprint(&c->geometry, mine);
	geometry_fingerprint(&s->geometry, first);
	if (!r && memcmp(mine, first, 16)) {
		snprintf(why, why_len, "%s: of another model than the first capture", path);
		r = -EINVAL;
	}
	for (uint32_t t = 0; t < c->n_tokens && !r; t += SIMULATE_CHUNK)
		r = encode_chunk(s, c, t);
	capture_free(c);
	return r;
}

int simulate(const struct kernels *kernels, const struct policy *policy, const struct transform *transform,
	double fill, const struct capture_options *options, char *const *paths, size_t n_paths,
	struct simulation *out, char *why, size_t why_len)
{
	struct simulator s = {.policy = policy, .transform = transform, .fill = fill};
	int r = rate_init(&s.rate, policy->rate_window);

	why[0] = 0;
	s.codec = codec_new(kernels, (size_t)1 << 30);
	s.detection = detection_new(kernels);
	if (!s.codec || !s.detection)
		r = -ENOMEM;
	for (size_t i = 0; i < n_paths && !r; i++)
		r = run_capture(&s, paths[i], options, why, why_len);
	if (!r && !s.sums.n_chunks)
		r = -ENODATA;
	if (r && !why[0])
		snprintf(why, why_len, "%s", strerror(-r));
	for (int i = 0; i < 2 && !r; i++)
		s.sums.error[i] /= (double)s.sums.n_chunks;
	s.sums.achieved = rate_achieved(&s.rate);
	if (!r)
		*out = s.sums;
	rate_fini(&s.rate);
	codec_free(s.codec);
	detection_free(s.detection);
	sinks_learner_free(s.learner);
	sinks_detector_unref(s.detector);
	return r;
}
