#include "runtime/daemon/governor/governor.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "policy/sinks/rank.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/governor/attention.h"

enum {
	DETECTIONS_KEPT = 16,
	/* Chunks that teach what a mean token is: the first ones, then one in so many. */
	LESSONS_FIRST = 8,
	LESSON_EVERY = 32,
	ALARM_CHUNKS = 32, /* before which no figure is called bad */
};

/* Of a model: its sinks. */
struct insight {
	struct insight *next;
	const struct model *model;
	struct sinks_learner *learner; /* NULL: lent */
	struct sinks_detector *detector;
	uint64_t n_chunks;
};

/* Of a namespace and model. */
struct tenancy {
	struct tenancy *next;
	uint32_t tenant;
	const struct model *model;
	struct rate rate[POLICY_PRESETS];
	bool has_rate[POLICY_PRESETS];
	double error[GEOMETRY_PLANES_MAX]; /* running means */
	double worst[GEOMETRY_PLANES_MAX];
	uint64_t n_chunks, n_tokens, n_raw, n_sinks, n_violations;
	bool alarm;
};

struct governor {
	struct daemon *daemon;
	struct insight *insights;
	struct tenancy *tenancies;
	struct attention *attention;
	struct records *records;
	struct detection *spare[DETECTIONS_KEPT];
	size_t n_spare;
};

struct governor *governor_new(struct daemon *d)
{
	struct governor *g = calloc(1, sizeof *g);

	if (!g)
		return NULL;
	g->daemon = d;
	g->attention = attention_new();
	g->records = records_new();
	return g->attention && g->records ? g : governor_free(g);
}

struct governor *governor_free(struct governor *g)
{
	if (!g)
		return NULL;
	for (struct insight *i = g->insights, *next; i; i = next) {
		next = i->next;
		sinks_learner_free(i->learner);
		sinks_detector_unref(i->detector);
		free(i);
	}
	for (struct tenancy *t = g->tenancies, *next; t; t = next) {
		next = t->next;
		for (int i = 0; i < POLICY_PRESETS; i++)
			if (t->has_rate[i])
				rate_fini(&t->rate[i]);
		free(t);
	}
	while (g->n_spare)
		detection_free(g->spare[--g->n_spare]);
	attention_free(g->attention);
	records_free(g->records);
	free(g);
	return NULL;
}

static struct insight *insight_of(struct governor *g, const struct model *model)
{
	struct insight *i = g->insights;
	struct sinks_view view;

	while (i && i->model != model)
		i = i->next;
	if (i)
		return i;
	i = calloc(1, sizeof *i);
	if (!i)
		return NULL;
	sinks_view_init(&view, &model->geometry);
	i->model = model;
	i->learner = sinks_learner_new(&view);
	i->next = g->insights;
	g->insights = i;
	return i;
}

static struct tenancy *tenancy_of(struct governor *g, uint32_t tenant, const struct model *model)
{
	struct tenancy *t = g->tenancies;

	while (t && (t->model != model || t->tenant != tenant))
		t = t->next;
	if (t)
		return t;
	t = calloc(1, sizeof *t);
	if (!t)
		return NULL;
	t->tenant = tenant;
	t->model = model;
	t->next = g->tenancies;
	g->tenancies = t;
	return t;
}

struct detection *governor_lend_detection(struct governor *g)
{
	return g->n_spare ? g->spare[--g->n_spare] : detection_new(g->daemon->kernels);
}

void governor_return_detection(struct governor *g, struct detection *detection)
{
	if (detection && g->n_spare < DETECTIONS_KEPT)
		g->spare[g->n_spare++] = detection;
	else
		detection_free(detection);
}

struct sinks_learner *governor_lend_learner(struct governor *g, const struct model *model)
{
	struct insight *i = insight_of(g, model);
	struct sinks_learner *learner = i ? i->learner : NULL;

	if (i)
		i->learner = NULL;
	return learner;
}

/* What the log says once of each model, when attention has taught its detector. */
static void tell_trained(struct governor *g, const struct insight *i)
{
	events_add(g->daemon->events, EVENT_MODEL, EVENT_NOBODY, NULL,
		"%s: sinks are foretold from %llu tokens whose attention was seen; of these it finds %.0f%%, "
		"with "
		"%.1f%% of the others",
		i->model->geometry.name, (unsigned long long)i->detector->n_observed,
		100 * (double)i->detector->caught, 100 * (double)i->detector->mistaken);
}

void governor_take_lesson(struct governor *g, const struct model *model, struct sinks_learner *learner,
	struct sinks_detector *learned)
{
	struct insight *i = insight_of(g, model);
	const bool trained = i && i->detector && i->detector->trained;

	if (!i || i->learner) {
		sinks_learner_free(learner);
	} else {
		i->learner = learner;
	}
	if (!i || !learned) {
		sinks_detector_unref(learned);
		return;
	}
	sinks_detector_unref(i->detector);
	i->detector = learned;
	if (learned->trained && !trained)
		tell_trained(g, i);
}

void governor_saw(struct governor *g, const struct index_key *id, const float *resting, const float *asked,
	uint32_t n_tokens)
{
	if (attention_set(g->attention, id, resting, asked, n_tokens))
		log_warning("no memory for the attention of a chunk");
}

/* ---- plans ---- */

static void plan_rung(struct governor *g, const struct transform *t, uint32_t n_tokens, struct plan *plan)
{
	struct tenancy *tenancy = plan->tenancy;
	struct rate *rate = tenancy ? &tenancy->rate[plan->preset] : NULL;
	struct pool_stats pool;
	const double bytes = tenancy ? (double)geometry_token_bytes(&tenancy->model->geometry) * n_tokens : 0;

	plan->rate.rung = t ? transform_rung(t, plan->policy->ratio) : 0;
	if (!t || !rate)
		return;
	if (!tenancy->has_rate[plan->preset]) {
		if (rate_init(rate, plan->policy->rate_window))
			return;
		tenancy->has_rate[plan->preset] = true;
	}
	pool_get_stats(g->daemon->pool, &pool);
	plan->rated = !rate_choose(rate, plan->policy, t, bytes,
		(double)pool.used_bytes / (double)pool.limit_bytes, &plan->rate);
}

static bool is_lesson(const struct insight *i)
{
	return i->n_chunks <= LESSONS_FIRST || i->n_chunks % LESSON_EVERY == 0;
}

static void plan_evidence(
	struct governor *g, const struct index_key *id, uint32_t n_tokens, struct plan *plan)
{
	const float *seen = attention_resting(g->attention, id, n_tokens);
	const struct record *record = records_find(g->records, id);

	plan->detector = sinks_detector_ref(plan->insight->detector);
	if (seen) {
		plan->seen = malloc(2 * (size_t)n_tokens * sizeof *plan->seen);
		if (plan->seen)
			memcpy(plan->seen, seen, 2 * (size_t)n_tokens * sizeof *plan->seen);
	}
	if (record && record->n_tokens == n_tokens) {
		plan->before = malloc(n_tokens);
		for (uint32_t t = 0; plan->before && t < n_tokens; t++)
			plan->before[t] = record->classes[t] == TOKEN_SINK;
	}
}

void governor_plan(struct governor *g, uint32_t tenant, const struct model *model, const struct transform *t,
	const struct index_key *id, uint32_t n_tokens, uint32_t preset, struct plan *plan)
{
	*plan = (struct plan){.governor = g,
		.tenancy = tenancy_of(g, tenant, model),
		.insight = insight_of(g, model),
		.policies = policy_snapshot_ref(policies_now(g->daemon->policies, tenant)),
		.preset = preset};
	plan->policy = &plan->policies->policy[preset];
	plan_rung(g, t, n_tokens, plan);
	plan->record = record_new(n_tokens);
	if (plan->record) {
		plan->record->id = *id;
		plan->record->preset = preset;
	}
	if (!plan->policy->sink_search || !plan->insight)
		return;
	plan->insight->n_chunks++;
	plan_evidence(g, id, n_tokens, plan);
	if (is_lesson(plan->insight))
		plan->learner = governor_lend_learner(g, model);
	plan->detection = governor_lend_detection(g);
}

/* What the detector foretells, layer by layer, for the record. */
static int score(struct plan *plan, const struct codec_chunk *chunk, struct sinks_evidence *evidence)
{
	const struct sinks_detector *d = plan->detector;
	int r = detection_score(plan->detection, chunk, d, &evidence->scores);

	if (r)
		return r;
	evidence->trained = d->trained;
	evidence->threshold = d->threshold;
	if (!plan->record)
		return 0;
	plan->record->searched = true;
	plan->record->trained = d->trained;
	plan->record->threshold = d->trained ? d->threshold : (float)plan->policy->sink_unusual;
	plan->record->view = d->view;
	memcpy(plan->record->scores, evidence->scores, chunk->n_tokens * sizeof *evidence->scores);
	detection_by_layer(plan->detection, d, chunk->n_tokens, plan->record->by_layer);
	return 0;
}

int plan_classify(struct plan *plan, const struct codec_chunk *chunk, uint64_t seq_end, uint8_t *classes)
{
	const struct policy *p = plan->policy;
	const struct sinks_rules rules = {.budget = p->sink_budget,
		.multiple = p->sink_multiple,
		.unusual = p->sink_unusual,
		.keep = p->sink_keep};
	struct sinks_evidence evidence = {
		.n_tokens = chunk->n_tokens, .seen = plan->seen, .before = plan->before};
	struct sinks_finding *findings = plan->record ? plan->record->findings : NULL;
	struct sinks_finding unkept[FRAME_TOKENS_MAX];
	size_t n;
	int r = 0;

	policy_classify(p, chunk->position, chunk->n_tokens, seq_end, classes);
	if (p->sink_search && plan->detector && plan->detection)
		r = score(plan, chunk, &evidence);
	if (r)
		return r;
	n = sinks_decide(&rules, &evidence, classes, findings ? findings : unkept);
	for (size_t i = 0; i < n && findings && evidence.scores; i++)
		findings[i].feature = detection_top(plan->detection, plan->detector, findings[i].token);
	if ((p->salient_share > 0 || p->redundant_share > 0) && (plan->seen || evidence.scores))
		sinks_rank(plan->seen ? plan->seen + chunk->n_tokens : evidence.scores, chunk->n_tokens,
			p->salient_share, p->redundant_share, classes);
	if (plan->record) {
		plan->record->n_findings = (uint32_t)n;
		plan->record->position = chunk->position;
		plan->record->policy_version = p->version;
		plan->record->rung = plan->rate.rung;
		memcpy(plan->record->classes, classes, chunk->n_tokens);
	}
	return 0;
}

void plan_learn(struct plan *plan, const struct codec_chunk *chunk)
{
	if (!plan->learner || !plan->detection ||
		detection_learn(plan->detection, chunk, plan->learner, NULL))
		return;
	/* Nothing to say yet, or no memory: the detector that there is stays. */
	sinks_learner_detector(
		plan->learner, plan->policy->sink_budget, log(plan->policy->sink_multiple), &plan->learned);
}

/* ---- what became of it ---- */

static double larger_error(const struct frame_info *info)
{
	return (double)fmaxf(info->error[0].mean, info->error[1].mean);
}

/* Running figures, and the alarm when one leaves its bound or comes back. */
static void monitor(
	struct governor *g, struct tenancy *t, const struct policy *p, const struct frame_info *info)
{
	const char *name = policies_name(g->daemon->policies, t->tenant);
	double error = 0;
	bool bad;

	for (int i = 0; i < GEOMETRY_PLANES_MAX; i++) {
		t->error[i] += (t->n_chunks ? 1.0 / 64 : 1) * ((double)info->error[i].mean - t->error[i]);
		t->worst[i] = fmax(t->worst[i], (double)info->error[i].max);
		error = fmax(error, t->error[i]);
		/* As the header has it, in f32. */
		t->n_violations += p->max_error > 0 && (double)info->error[i].max > p->max_error * 1.000001;
	}
	t->n_chunks++;
	t->n_tokens += info->n_tokens;
	t->n_raw += info->n_raw;
	bad = p->alarm_error > 0 && error > p->alarm_error && t->n_chunks >= ALARM_CHUNKS;
	/* It ends a little below where it began, so that it does not flutter. */
	if (t->alarm && p->alarm_error > 0 && error > 0.95 * p->alarm_error)
		bad = true;
	if (bad != t->alarm)
		events_add(g->daemon->events, EVENT_ALARM, EVENT_NOBODY, name,
			bad ? "%s: the mean error of coded tokens is %.4f, above alarm_error, %.4f"
			    : "%s: the mean error of coded tokens is %.4f again, alarm_error is %.4f",
			t->model->geometry.name, error, p->alarm_error);
	t->alarm = bad;
}

void governor_note(struct governor *g, struct plan *plan, const struct frame_info *info)
{
	const uint32_t n_coded = info->n_tokens - info->n_raw;

	if (plan->rated) {
		rate_note(&plan->tenancy->rate[plan->preset], &plan->rate,
			(double)info->raw_bytes * n_coded / info->n_tokens,
			(double)(info->len_bytes - info->raw_section_bytes), larger_error(info));
		plan->rated = false;
	}
	if (plan->tenancy)
		monitor(g, plan->tenancy, plan->policy, info);
	if (plan->record) {
		if (plan->tenancy)
			plan->tenancy->n_sinks += plan->record->n_findings;
		records_add(g->records, plan->record);
		plan->record = NULL;
	}
}

void plan_end(struct plan *plan)
{
	struct governor *g = plan->governor;

	if (!g)
		return;
	if (plan->rated)
		rate_note(&plan->tenancy->rate[plan->preset], &plan->rate, 0, 0, 0);
	if (plan->learner)
		governor_take_lesson(g, plan->insight->model, plan->learner, plan->learned);
	governor_return_detection(g, plan->detection);
	sinks_detector_unref(plan->detector);
	policy_snapshot_unref(plan->policies);
	free(plan->seen);
	free(plan->before);
	record_free(plan->record);
	*plan = (struct plan){0};
}

/* ---- for operators ---- */

const struct records *governor_records(const struct governor *g)
{
	return g->records;
}

static json_t *tenancy_object(const struct governor *g, const struct tenancy *t)
{
	const struct policy *p = &policies_now(g->daemon->policies, t->tenant)->policy[0];
	const struct rate *r = t->has_rate[0] ? &t->rate[0] : NULL;
	json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:b, s:[f, f], s:[f, f]}", "namespace",
		policies_name(g->daemon->policies, t->tenant), "model", t->model->geometry.name, "chunks",
		(json_int_t)t->n_chunks, "tokens", (json_int_t)t->n_tokens, "raw_tokens",
		(json_int_t)t->n_raw, "sinks", (json_int_t)t->n_sinks, "bound_violations",
		(json_int_t)t->n_violations, "alarm", (int)t->alarm, "mean_error", t->error[0], t->error[1],
		"worst_error", t->worst[0], t->worst[1]);

	json_object_set_new(o, "mode",
		json_string(p->mode == POLICY_FIDELITY   ? "fidelity"
			    : p->mode == POLICY_PRESSURE ? "pressure"
							 : "ratio"));
	json_object_set_new(o, "target", json_real(p->mode == POLICY_FIDELITY ? p->target_error : p->ratio));
	json_object_set_new(o, "achieved", json_real(r ? rate_achieved(r) : 0));
	json_object_set_new(o, "coded_ratio", json_real(r ? r->ratio : 0));
	return o;
}

static json_t *insight_object(const struct insight *i)
{
	const struct sinks_detector *d = i->detector;
	json_t *o =
		json_pack("{s:s, s:I}", "model", i->model->geometry.name, "chunks", (json_int_t)i->n_chunks);

	if (!d)
		return o;
	json_object_set_new(o, "tokens", json_integer((json_int_t)d->n_tokens));
	json_object_set_new(o, "observed_tokens", json_integer((json_int_t)d->n_observed));
	json_object_set_new(o, "trained", json_boolean(d->trained));
	if (d->trained) {
		json_object_set_new(o, "threshold", json_real((double)d->threshold));
		json_object_set_new(o, "caught", json_real((double)d->caught));
		json_object_set_new(o, "mistaken", json_real((double)d->mistaken));
		json_object_set_new(o, "correlation", json_real((double)d->correlation));
	}
	return o;
}

json_t *governor_status(const struct governor *g)
{
	json_t *tenancies = json_array(), *insights = json_array();

	for (const struct tenancy *t = g->tenancies; t; t = t->next)
		json_array_append_new(tenancies, tenancy_object(g, t));
	for (const struct insight *i = g->insights; i; i = i->next)
		json_array_append_new(insights, insight_object(i));
	return json_pack("{s:o, s:o}", "fidelity", tenancies, "sinks", insights);
}
