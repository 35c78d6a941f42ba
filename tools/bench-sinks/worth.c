#include "tools/bench-sinks/worth.h"

#include <errno.h>
#include <math.h>

const double worth_rungs[WORTH_RUNGS] = {8, 16, 20, 32};

static int find_rung(const struct under_test *u, double rung)
{
	for (size_t i = 0; i < u->n_rungs; i++)
		if (fabs(u->rungs[i] - rung) < 0.1)
			return (int)i;
	return -ENOENT;
}

static int code_prompt(
	struct sequence *s, struct under_test *u, size_t rung, const uint8_t *classes, double *bytes)
{
	int r = 0;

	kv_table_copy(s->cache, &s->table, &s->copy);
	for (uint32_t c = 0; c < SEQUENCE_PROMPT / FORWARD_CHUNK && !r; c++) {
		const struct codec_chunk chunk = sequence_chunk(s, &s->copy, c);
		struct coded_bytes n = {0};

		r = u->code(u, rung, &chunk, classes + c * FORWARD_CHUNK, &n);
		*bytes += (double)(n.coded + n.raw);
	}
	return r;
}

static int weigh(struct worth *w, struct sequence *s, const struct search_decisions *d, struct under_test *u,
	size_t codec, int at, const struct probe *probe, const struct view *original)
{
	const struct tokens prompt = {SEQUENCE_PROMPT, s->tokens};
	const int rung = find_rung(u, worth_rungs[at]);
	int r = rung < 0 ? rung : 0;

	for (int way = 0; way < WAYS && !r; way++) {
		struct view *restored;

		if (!worth_has((enum way)way))
			continue;
		r = code_prompt(s, u, (size_t)rung, d->classes[way], &w->coded_bytes[codec][at][way]);
		if (!r)
			r = view_new(s->forward, s->model, s->cache, &s->copy, &prompt, probe, &restored);
		if (r)
			break;
		r = evaluate_views(s->model, probe, original, restored, &w->evaluation[codec][at][way]);
		view_free(restored);
	}
	return r;
}

int worth_add(struct worth *w, struct sequence *s, const struct search_decisions *d,
	struct under_test *const *codecs, size_t n_codecs, bool one_rung)
{
	const struct tokens prompt = {SEQUENCE_PROMPT, s->tokens};
	const struct probe probe = {
		.given = {SEQUENCE_TOKENS - SEQUENCE_PROMPT, s->tokens + SEQUENCE_PROMPT}};
	struct view *original;
	int r = view_new(s->forward, s->model, s->cache, &s->table, &prompt, &probe, &original);

	if (r)
		return r;
	w->source_bytes += (double)geometry_token_bytes(&s->geometry) * SEQUENCE_PROMPT;
	for (size_t codec = 0; codec < n_codecs; codec++)
		for (int at = one_rung; at < (one_rung ? 2 : WORTH_RUNGS) && !r; at++)
			r = weigh(w, s, d, codecs[codec], codec, at, &probe, original);
	view_free(original);
	return r;
}
