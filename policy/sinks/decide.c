#include "policy/sinks/decide.h"

#include <math.h>
#include <stdlib.h>

#include "policy/policy.h"

const char *sinks_reason_name(enum sinks_reason reason)
{
	switch (reason) {
	case SINKS_BY_POSITION: return "position";
	case SINKS_BY_ATTENTION: return "attention";
	case SINKS_FORETOLD: return "foretold";
	case SINKS_UNUSUAL: return "unusual";
	case SINKS_KEPT: return "kept";
	}
	return "?";
}

/* What speaks for token t; its score is below the threshold when it is none. */
static struct sinks_finding judge(const struct sinks_rules *rules, const struct sinks_evidence *e, size_t t)
{
	struct sinks_finding f = {.token = (uint16_t)t, .score = -INFINITY, .threshold = INFINITY};

	if (e->scores) {
		f.score = e->scores[t];
		f.threshold = e->trained ? e->threshold : (float)rules->unusual;
		f.reason = e->trained ? SINKS_FORETOLD : SINKS_UNUSUAL;
	}
	if (e->scores && e->trained && e->unusual && e->unusual[t] >= sinks_far(rules, e)) {
		f.score = e->unusual[t];
		f.threshold = sinks_far(rules, e);
		f.reason = SINKS_UNUSUAL;
	}
	/* Attention that was seen settles the matter, either way. */
	if (e->seen && !isnan(e->seen[t])) {
		f.score = e->seen[t];
		f.threshold = logf((float)rules->multiple);
		f.reason = SINKS_BY_ATTENTION;
	}
	if (f.score < f.threshold && e->before && e->before[t] && f.score >= f.threshold - (float)rules->keep)
		f.reason = SINKS_KEPT;
	return f;
}

static int by_margin(const void *a, const void *b)
{
	const struct sinks_finding *x = a, *y = b;
	const int far_x = x->reason == SINKS_UNUSUAL, far_y = y->reason == SINKS_UNUSUAL;
	const float mx = x->score - x->threshold, my = y->score - y->threshold;

	if (far_x != far_y)
		return far_y - far_x;
	return mx != my ? (mx < my) - (mx > my) : (x->token > y->token) - (x->token < y->token);
}

static int by_token(const void *a, const void *b)
{
	const struct sinks_finding *x = a, *y = b;

	return (x->token > y->token) - (x->token < y->token);
}

size_t sinks_decide(const struct sinks_rules *rules, const struct sinks_evidence *e, uint8_t *classes,
	struct sinks_finding *findings)
{
	size_t room = (size_t)ceil(rules->budget * (double)e->n_tokens), n_found = 0, n = 0;

	for (size_t t = 0; t < e->n_tokens; t++) {
		struct sinks_finding f;

		if (classes[t] == TOKEN_SINK)
			continue;
		f = judge(rules, e, t);
		if (f.score >= f.threshold || f.reason == SINKS_KEPT)
			findings[n_found++] = f;
	}
	qsort(findings, n_found, sizeof *findings, by_margin);
	room = room > e->n_spent ? room - e->n_spent : 0;
	n = n_found < room ? n_found : room;
	for (size_t t = 0; t < e->n_tokens; t++)
		if (classes[t] == TOKEN_SINK)
			findings[n++] =
				(struct sinks_finding){.token = (uint16_t)t, .reason = SINKS_BY_POSITION};
	for (size_t i = 0; i < n; i++)
		classes[findings[i].token] = TOKEN_SINK;
	qsort(findings, n, sizeof *findings, by_token);
	return n;
}
