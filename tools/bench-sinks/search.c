#include "tools/bench-sinks/search.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench.h"

enum { N_CHUNKS = SEQUENCE_PROMPT / FORWARD_CHUNK };

const char *way_name(enum way way)
{
	static const char *const names[WAYS] = {"nothing", "first_4", "first_as_many", "cold", "learned",
		"observed", "observed_last", "oracle"};

	return names[way];
}

/* ---- what OBSERVE would tell ---- */

/* Picks of the first n_tokens' queries those that an engine shows: some of each chunk, at equal distances up
 * to its last one, or its last ones. positions: [n_tokens]. */
static uint32_t choose_queries(uint32_t n_tokens, uint32_t n_shown, bool last, uint64_t *positions)
{
	const uint32_t every = last ? 1 : FORWARD_CHUNK / n_shown;
	uint32_t n = 0;

	for (uint32_t end = FORWARD_CHUNK; end <= n_tokens; end += FORWARD_CHUNK)
		for (uint32_t i = n_shown; i-- > 0;)
			positions[n++] = end - 1 - i * every;
	return n;
}

/* o: [n_tokens] each. */
static int observe(const struct search *f, const struct sequence *s, uint32_t n_tokens, bool last,
	const struct observed *o)
{
	const struct model *m = s->model;
	const struct kv_run run = {.blocks = s->table.blocks, .block_tokens = KV_BLOCK_TOKENS};
	const size_t width = (size_t)m->n_heads * m->head_dim;
	uint64_t positions[SEQUENCE_TOKENS];
	const uint32_t n = choose_queries(n_tokens, f->n_shown, last, positions);
	float *values = malloc(n * width * sizeof *values);
	int r = values ? 0 : -ENOMEM;

	for (uint32_t t = 0; t < n_tokens && !r; t++)
		o->drawing[t] = o->resting[t] = o->asked[t] = NAN;
	for (uint32_t l = 0; l < m->n_layers && !r; l++) {
		const struct detection_queries q = {.n_queries = n,
			.n_heads = m->n_heads,
			.positions = positions,
			.scale = 1 / sqrtf((float)m->head_dim),
			.values = values};

		for (uint32_t i = 0; i < n; i++)
			memcpy(values + i * width,
				s->truth.queries + ((size_t)l * SEQUENCE_TOKENS + positions[i]) * width,
				width * sizeof *values);
		r = detection_observe(f->detection, &s->geometry.planes[0], &s->pages[2 * l], &run, n_tokens,
			FORWARD_CHUNK, &q, o);
	}
	free(values);
	return r;
}

/* ---- learning ---- */

static int learn_sequence(
	struct search *f, const struct sequence *s, bool with_attention, struct sinks_learner *learner)
{
	float drawing[SEQUENCE_TOKENS], resting[SEQUENCE_TOKENS], asked[SEQUENCE_TOKENS];
	const struct observed o = {drawing, resting, asked};
	int r = with_attention ? observe(f, s, SEQUENCE_TOKENS, false, &o) : 0;

	for (uint32_t c = 0; c < SEQUENCE_TOKENS / FORWARD_CHUNK && !r; c++) {
		const struct codec_chunk chunk = sequence_chunk(s, &s->table, c);

		r = detection_learn(
			f->detection, &chunk, learner, with_attention ? resting + c * FORWARD_CHUNK : NULL);
	}
	return r;
}

static int learn(struct search *f, struct sequence *s, const struct tokens *text, uint32_t n)
{
	static const struct construction ordinary = {0}, separators = {.n_separators_max = 1};
	const double sink = log(f->policy.sink_multiple);
	struct sinks_learner *cold, *learner;
	struct sinks_view view;
	int r;

	sinks_view_init(&view, &s->geometry);
	cold = sinks_learner_new(&view);
	learner = sinks_learner_new(&view);
	r = cold && learner ? 0 : -ENOMEM;
	for (uint32_t i = 0; i < n && !r; i++) {
		r = sequence_make(s, text, i, n, i % 2 ? &separators : &ordinary);
		if (!r)
			r = learn_sequence(f, s, true, learner);
		if (!r && i < 2)
			r = learn_sequence(f, s, false, cold);
	}
	if (!r)
		r = sinks_learner_detector(cold, f->policy.sink_budget, sink, &f->cold);
	if (!r)
		r = sinks_learner_detector(learner, f->policy.sink_budget, sink, &f->learned);
	sinks_learner_free(cold);
	sinks_learner_free(learner);
	return r;
}

int search_new(struct sequence *s, const struct tokens *text, uint32_t n, const struct policy *policy,
	uint32_t n_shown, struct search **out)
{
	struct search *f = calloc(1, sizeof *f);
	int r;

	if (!f)
		return -ENOMEM;
	f->policy = *policy;
	f->n_shown = n_shown;
	f->policy.window_tokens = SEQUENCE_WINDOW;
	f->policy.sink_tokens = SEQUENCE_FIRST;
	f->detection = detection_new(s->kernels);
	r = f->detection ? learn(f, s, text, n) : -ENOMEM;
	if (r)
		search_free(f);
	else
		*out = f;
	return r;
}

struct search *search_free(struct search *f)
{
	if (!f)
		return NULL;
	detection_free(f->detection);
	sinks_detector_unref(f->cold);
	sinks_detector_unref(f->learned);
	free(f->search_ns);
	free(f);
	return NULL;
}

/* ---- deciding ---- */

static void note_time(struct search *f, double ns)
{
	if (f->n_search == f->n_search_max) {
		const size_t n = f->n_search_max ? 2 * f->n_search_max : 256;
		double *more = realloc(f->search_ns, n * sizeof *more);

		if (!more)
			return; /* one measurement less */
		f->search_ns = more;
		f->n_search_max = n;
	}
	f->search_ns[f->n_search++] = ns;
}

/* The order in which tokens are protected, as one number; from 0 on they are. */
static float score_of(const struct sinks_rules *rules, const struct sinks_evidence *e, uint32_t t)
{
	enum { ABOVE_ALL = 100 };

	if (e->seen && !isnan(e->seen[t]))
		return e->seen[t] - logf((float)rules->multiple);
	if (e->unusual && e->unusual[t] >= sinks_far(rules, e))
		return ABOVE_ALL + e->unusual[t];
	return e->scores[t] - (e->trained ? e->threshold : (float)rules->unusual);
}

static int decide_chunk(struct search *f, const struct sequence *s, enum way way, const float *drawing,
	uint32_t c, uint8_t *classes, float *scores)
{
	const struct policy *p = &f->policy;
	const struct sinks_rules rules = {p->sink_budget, p->sink_multiple, p->sink_unusual, p->sink_keep};
	const struct codec_chunk chunk = sequence_chunk(s, &s->table, c);
	const struct sinks_detector *d = way == WAY_COLD ? f->cold : f->learned;
	struct sinks_finding findings[FORWARD_CHUNK];
	struct sinks_evidence evidence = {.n_tokens = FORWARD_CHUNK, .seen = drawing};
	const uint64_t start = bench_cpu_ns();
	int r = detection_score(f->detection, &chunk, d, &evidence);

	if (r)
		return r;
	sinks_decide(&rules, &evidence, classes, findings);
	note_time(f, (double)(bench_cpu_ns() - start));
	for (uint32_t t = 0; t < FORWARD_CHUNK; t++)
		scores[t] = score_of(&rules, &evidence, t);
	return 0;
}

static void protect_known(const struct sequence *s, uint8_t *classes)
{
	for (uint32_t t = 0; t < SEQUENCE_PROMPT; t++)
		if (s->truth.marks[TRUTH_HALF][t] == TRUTH_YES)
			classes[t] = TOKEN_SINK;
	for (uint32_t k = 0; k < s->n_planted; k++)
		classes[s->planted[k]] = TOKEN_SINK;
}

static int decide(struct search *f, const struct sequence *s, enum way way, const struct search_decisions *d,
	uint8_t *classes, float *scores)
{
	struct policy p = f->policy;
	float drawing[SEQUENCE_PROMPT], resting[SEQUENCE_PROMPT], asked[SEQUENCE_PROMPT];
	const struct observed o = {drawing, resting, asked};
	const bool observed = way == WAY_OBSERVED || way == WAY_OBSERVED_LAST;
	/* An engine that has computed the prompt has its queries, and none of what follows. */
	int r = observed ? observe(f, s, SEQUENCE_PROMPT, way == WAY_OBSERVED_LAST, &o) : 0;

	p.sink_tokens = way == WAY_NOTHING ? 0 : SEQUENCE_FIRST;
	if (way == WAY_AS_MANY) {
		p.sink_tokens = 0;
		for (uint32_t t = 0; t < SEQUENCE_PROMPT; t++)
			p.sink_tokens += d->classes[WAY_LEARNED][t] == TOKEN_SINK;
	}
	policy_classify(&p, 0, SEQUENCE_PROMPT, SEQUENCE_PROMPT, classes);
	if (way == WAY_ORACLE)
		protect_known(s, classes);
	for (uint32_t c = 0; c < N_CHUNKS && way_is_search(way) && !r; c++)
		r = decide_chunk(f, s, way, observed ? drawing + c * FORWARD_CHUNK : NULL, c,
			classes + c * FORWARD_CHUNK, scores + c * FORWARD_CHUNK);
	return r;
}

int search_decide(struct search *f, struct sequence *s, struct search_decisions *out)
{
	/* What others' decisions it needs come first. */
	static const enum way order[] = {WAY_NOTHING, WAY_FIRST, WAY_COLD, WAY_LEARNED, WAY_OBSERVED,
		WAY_OBSERVED_LAST, WAY_ORACLE, WAY_AS_MANY};
	int r = 0;

	_Static_assert(sizeof order / sizeof *order == WAYS, "every way once");
	for (size_t i = 0; i < WAYS && !r; i++)
		r = decide(f, s, order[i], out, out->classes[order[i]], out->scores[order[i]]);
	return r;
}

/* ---- counting ---- */

static int make_room(struct search_tally *y)
{
	const size_t n = y->n + SEQUENCE_PROMPT;
	float *scores = realloc(y->scores, n * sizeof *scores);
	uint8_t *marks, *planted;

	if (!scores)
		return -ENOMEM;
	y->scores = scores;
	marks = realloc(y->marks, n * TRUTH_READINGS);
	if (!marks)
		return -ENOMEM;
	y->marks = marks;
	planted = realloc(y->planted, n);
	if (!planted)
		return -ENOMEM;
	y->planted = planted;
	return 0;
}

static void count_token(struct search_tally *y, const struct sequence *s, uint32_t t, bool found, float score)
{
	bool planted = false;

	for (uint32_t k = 0; k < s->n_planted; k++)
		planted = planted || s->planted[k] == t;
	for (int i = 0; i < TRUTH_READINGS; i++) {
		struct search_count *c = &y->as_decided[i];
		/* What lies behind the last query of the prompt could be foretold only. */
		const uint8_t mark = t < SEQUENCE_JUDGED ? s->truth.marks[i][t] : TRUTH_UNKNOWN;

		c->n_sinks += mark == TRUTH_YES;
		c->n_found += mark == TRUTH_YES && found;
		c->n_others += mark == TRUTH_NO;
		c->n_mistaken += mark == TRUTH_NO && found;
		y->marks[y->n * TRUTH_READINGS + (size_t)i] = mark;
	}
	y->n_planted += planted;
	y->n_planted_found += planted && found;
	y->n_protected += found;
	y->planted[y->n] = planted;
	y->scores[y->n++] = score;
}

int search_count(
	const struct sequence *s, const struct search_decisions *d, enum way way, struct search_tally *y)
{
	const int r = make_room(y);

	for (uint32_t t = SEQUENCE_FIRST; t < SEQUENCE_PROMPT && !r; t++)
		count_token(y, s, t, d->classes[way][t] == TOKEN_SINK, d->scores[way][t]);
	return r;
}

void search_tally_fini(struct search_tally *t)
{
	free(t->scores);
	free(t->marks);
	free(t->planted);
	*t = (struct search_tally){0};
}

static int by_falling(const void *a, const void *b)
{
	const float x = *(const float *)a, y = *(const float *)b;

	return (x < y) - (x > y);
}

/* marks: of token i at i * stride. */
static double recall_at(const struct search_tally *y, const uint8_t *marks, size_t stride, double mistaken)
{
	float *others = malloc((y->n + 1) * sizeof *others), threshold;
	size_t n = 0, sinks = 0, found = 0;

	for (size_t i = 0; i < y->n && others; i++) {
		sinks += marks[i * stride] == TRUTH_YES;
		if (marks[i * stride] == TRUTH_NO)
			others[n++] = y->scores[i];
	}
	if (!n || !sinks) {
		free(others);
		return NAN;
	}
	qsort(others, n, sizeof *others, by_falling);
	threshold = others[(size_t)(mistaken * (double)n)];
	for (size_t i = 0; i < y->n; i++)
		found += marks[i * stride] == TRUTH_YES && y->scores[i] > threshold;
	free(others);
	return (double)found / (double)sinks;
}

double search_recall_at(const struct search_tally *t, enum truth_reading reading, double mistaken)
{
	return recall_at(t, t->marks + reading, TRUTH_READINGS, mistaken);
}

double search_planted_at(const struct search_tally *t, double mistaken)
{
	return recall_at(t, t->planted, 1, mistaken);
}
