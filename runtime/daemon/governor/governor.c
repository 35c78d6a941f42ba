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
	struct figures figures;
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

void governor_saw(struct governor *g, const struct index_key *id, const float *drawing, const float *asked,
	uint32_t n_tokens)
{
	if (attention_set(g->attention, id, drawing, asked, n_tokens))
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

void governor_recall(struct governor *g, const struct model *model, const struct index_key *id,
	uint32_t n_tokens, struct sinks_detector **detector, float **seen)
{
	const struct insight *i = insight_of(g, model);
	const float *kept = attention_seen(g->attention, id, n_tokens);

	*detector = i ? sinks_detector_ref(i->detector) : NULL;
	*seen = kept ? malloc(2 * (size_t)n_tokens * sizeof **seen) : NULL;
	if (*seen)
		memcpy(*seen, kept, 2 * (size_t)n_tokens * sizeof **seen);
}

static void plan_evidence(
	struct governor *g, const struct index_key *id, uint32_t n_tokens, struct plan *plan)
{
	const struct record *record = records_find(g->records, id);

	governor_recall(g, plan->insight->model, id, n_tokens, &plan->detector, &plan->seen);
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

enum plan_need plan_needs(const struct plan *plan)
{
	if (!plan->detection)
		return PLAN_NOTHING;
	return plan->learner ? PLAN_LAYERS : plan->detector ? PLAN_STATISTICS : PLAN_NOTHING;
}

/* What the detector foretells, layer by layer, for the record. */
static int score(struct plan *plan, const struct codec_chunk *chunk, struct sinks_evidence *evidence)
{
	const struct sinks_detector *d = plan->detector;
	int r = plan->given
			? detection_score_given(plan->detection, plan->given, chunk->n_tokens, d, evidence)
			: detection_score(plan->detection, chunk, d, evidence);

	if (r)
		return r;
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
		findings[i].feature = detection_top(plan->detection, plan->detector, &findings[i]);
	if (p->class_by == POLICY_BY_ATTENTION && (p->salient_share > 0 || p->redundant_share > 0) &&
		(plan->seen || evidence.scores))
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

/* The event when a figure has left its bound, or is back. */
static void tell_alarm(struct governor *g, const struct tenancy *t, enum alarm_turn turn, const char *what,
	double figure, const char *field, double bound)
{
	const char *name = policies_name(g->daemon->policies, t->tenant);

	if (turn == ALARM_RAISED)
		events_add(g->daemon->events, EVENT_ALARM, EVENT_NOBODY, name,
			"%s: %s is %.4f, above %s, %.4f", t->model->geometry.name, what, figure, field,
			bound);
	else if (turn == ALARM_ENDED && bound > 0)
		events_add(g->daemon->events, EVENT_ALARM, EVENT_NOBODY, name,
			"%s: %s is %.4f again, %s is %.4f", t->model->geometry.name, what, figure, field,
			bound);
	else if (turn == ALARM_ENDED)
		events_add(g->daemon->events, EVENT_ALARM, EVENT_NOBODY, name,
			"%s: the alarm has ended with its bound, %s", t->model->geometry.name, field);
}

/* The alarms of a namespace and model, by what its policy says now; and watchers get to see its figures. */
static void review(struct governor *g, struct tenancy *t)
{
	const struct policy *p = &policies_now(g->daemon->policies, t->tenant)->policy[0];
	enum alarm_turn error, attention;

	figures_review(&t->figures, p, &error, &attention);
	tell_alarm(g, t, error, "the mean error of coded tokens", figures_error(&t->figures), "alarm_error",
		p->alarm_error);
	tell_alarm(g, t, attention, "the mean error of attention outputs", t->figures.attention,
		"alarm_attention", p->alarm_attention);
	board_cache(g->daemon->board, policies_id(g->daemon->policies, t->tenant), t->model->fingerprint);
}

void governor_review(struct governor *g)
{
	for (struct tenancy *t = g->tenancies; t; t = t->next)
		review(g, t);
}

void governor_compared(struct governor *g, uint32_t tenant, const struct model *model,
	const struct index_key *id, const struct attention_error *e)
{
	struct tenancy *t = tenancy_of(g, tenant, model);

	records_compared(g->records, id, e);
	if (!t)
		return;
	figures_attention(&t->figures, e);
	review(g, t);
}

const struct figures *governor_figures(const struct governor *g, uint32_t tenant, const struct model *model)
{
	const struct tenancy *t = g->tenancies;

	while (t && (t->model != model || t->tenant != tenant))
		t = t->next;
	return t ? &t->figures : NULL;
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
	if (plan->tenancy) {
		figures_frame(&plan->tenancy->figures, plan->policy, info);
		review(g, plan->tenancy);
	}
	if (plan->record) {
		if (plan->tenancy)
			plan->tenancy->figures.n_sinks += plan->record->n_findings;
		records_add(g->records, plan->record);
		plan->record = NULL;
	}
}

void governor_settled(struct governor *g, const struct index_key *id, const struct settled *s)
{
	records_settle(g->records, id, s);
}

void governor_remade(struct governor *g, uint32_t tenant, const struct model *model, const struct policy *p,
	const struct frame_info *before, const struct frame_info *info)
{
	struct tenancy *t = tenancy_of(g, tenant, model);

	if (t)
		figures_remade(&t->figures, p, before, info);
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

/* What attention lost, where it was compared. */
static json_t *attention_object(const struct figures *f)
{
	json_t *o = json_pack(
		"{s:I, s:b}", "chunks", (json_int_t)f->n_compared, "alarm", (int)f->attention_alarm.raised);

	if (!f->n_compared)
		return o;
	json_object_set_new(o, "mean_error", json_real(f->attention));
	json_object_set_new(o, "worst_error", json_real(f->attention_worst));
	json_object_set_new(o, "worst_layer", json_integer(f->attention_layer));
	json_object_set_new(o, "worst_head", json_integer(f->attention_head));
	return o;
}

static json_t *tenancy_object(const struct governor *g, const struct tenancy *t)
{
	const struct policy *p = &policies_now(g->daemon->policies, t->tenant)->policy[0];
	const struct rate *r = t->has_rate[0] ? &t->rate[0] : NULL;
	const struct figures *f = &t->figures;
	json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:b, s:[f, f], s:[f, f], s:o}",
		"namespace", policies_name(g->daemon->policies, t->tenant), "model", t->model->geometry.name,
		"chunks", (json_int_t)f->n_chunks, "tokens", (json_int_t)f->n_tokens, "raw_tokens",
		(json_int_t)f->n_raw, "sinks", (json_int_t)f->n_sinks, "bound_violations",
		(json_int_t)f->n_violations, "alarm",
		(int)(f->error_alarm.raised || f->attention_alarm.raised), "mean_error", f->error[0],
		f->error[1], "worst_error", f->worst[0], f->worst[1], "attention", attention_object(f));

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
