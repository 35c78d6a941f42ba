#include "runtime/daemon/steward/steward.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/daemon.h"
#include "runtime/daemon/steward/errand.h"
#include "runtime/daemon/steward/pressure.h"

enum {
	LINE_MAX = 1024,    /* chunks that wait to be settled */
	AGAIN_MS = 5,       /* between two tries to put a frame in its place */
	PATIENCE_MS = 2000, /* after which that is given up */
};

struct steward {
	struct daemon *daemon;
	struct background *background;
	bool stopped;
	struct errand errand;
	uint64_t again_ms; /* when to try again to put it in its place */
	struct index_key line[LINE_MAX];
	size_t first, n; /* of the line */
	struct pressure pressure;
	uint64_t n_made[ERRAND_KINDS], freed_bytes[ERRAND_KINDS];
	uint64_t n_in_vain[ERRAND_KINDS]; /* nothing to gain, or over the bound */
	uint64_t n_given_up;              /* somebody was reading it all the time */
	uint64_t n_passed_over;           /* the line was full */
};

int steward_new(struct daemon *d, struct steward **out)
{
	struct steward *s = calloc(1, sizeof *s);
	int r;

	if (!s)
		return -ENOMEM;
	s->daemon = d;
	s->errand.steward = s;
	pressure_init(&s->pressure, d);
	r = background_new(d->config->upkeep_percent / 100.0, false, d->kernels, &s->background);
	if (r)
		free(s);
	else
		*out = s;
	return r;
}

/* ---- who is to be settled ---- */

/* What a chunk was put with is not kept on the disk: the strictest that it may have been. */
static void strictest(const struct policy_snapshot *s, struct policy *out)
{
	*out = s->policy[POLICY_NO_PRESET];
	for (int i = 0; i < POLICY_PRESETS; i++) {
		const struct policy *p = &s->policy[i];

		if (p->max_error > 0 && (p->max_error < out->max_error || out->max_error <= 0))
			out->max_error = p->max_error;
		if (p->window_tokens > out->window_tokens)
			out->window_tokens = p->window_tokens;
	}
}

void steward_policy(const struct daemon *d, const struct index_entry *e, uint32_t *tenant, struct policy *out)
{
	const size_t number = policies_number(d->policies, cache_owner(d->cache, e)->name_space);
	const struct policy_snapshot *s = policies_now(d->policies, number);

	*tenant = (uint32_t)number;
	if (e->preset < POLICY_PRESETS)
		*out = s->policy[e->preset];
	else
		strictest(s, out);
}

static bool is_plain(const struct daemon *d, const struct index_entry *e)
{
	static const uint8_t plain[16];

	return !memcmp(cache_transform(d->cache, e), plain, 16);
}

static void stand_in_line(struct steward *s, struct index_entry *e)
{
	if (s->stopped || e->dead || !e->record || e->settled || e->awaits || is_plain(s->daemon, e))
		return;
	if (s->n == LINE_MAX) {
		s->n_passed_over++;
		return;
	}
	cache_id(s->daemon->cache, e, &s->line[(s->first + s->n++) % LINE_MAX]);
	e->awaits = 1;
}

/* A chunk that ends at chunk_end, of a sequence of which end tokens are known. */
static bool is_due(const struct steward *s, const struct index_entry *e, uint64_t chunk_end, uint64_t end)
{
	struct policy policy;
	uint32_t tenant;

	steward_policy(s->daemon, e, &tenant, &policy);
	return policy.window_settle && settle_is_due(chunk_end, 0, policy.window_tokens, end);
}

void steward_put(struct steward *s, struct index_entry *e, uint32_t preset, uint64_t position,
	uint32_t n_window, uint64_t end)
{
	struct index_entry *p = e->dead ? NULL : cache_parent(s->daemon->cache, e);

	e->preset = preset & 7;
	e->settled = !n_window;
	/* Back to the first one that has no window any more; and no further than a window may reach. */
	for (int steps = 0; p && !p->settled && steps < LINE_MAX; steps++) {
		if (is_due(s, p, position, end))
			stand_in_line(s, p);
		if (!p->n_tokens || position < p->n_tokens)
			return;
		position -= p->n_tokens;
		p = cache_parent(s->daemon->cache, p);
	}
}

void steward_read(struct steward *s, struct index_entry *e, uint64_t chunk_end, uint64_t end)
{
	if (!e->settled && !e->awaits && end > chunk_end && is_due(s, e, chunk_end, end))
		stand_in_line(s, e);
}

/* ---- errands ---- */

const struct model *steward_model(const struct daemon *d, const struct index_entry *e)
{
	const uint8_t *fingerprint = cache_owner(d->cache, e)->fingerprint;

	for (size_t i = 0; i < registry_n_models(d->registry); i++)
		if (!memcmp(registry_model_at(d->registry, i)->fingerprint, fingerprint, 16))
			return registry_model_at(d->registry, i);
	return NULL;
}

static void errand_end(struct errand *e)
{
	struct daemon *d = e->steward->daemon;
	struct index_entry *entry = e->entry;

	if (e->transform)
		registry_release(d->registry, e->transform);
	governor_return_detection(d->governor, e->detection);
	sinks_detector_unref(e->detector);
	free(e->seen);
	free(e->settled.findings);
	free(e->frame);
	*e = (struct errand){.steward = e->steward};
	cache_release(d->cache, entry);
}

static void count(struct errand *e, uint64_t freed_bytes)
{
	struct steward *s = e->steward;
	const struct index_owner *owner = cache_owner(s->daemon->cache, e->entry);
	struct stats_cache *stats = board_cache(s->daemon->board, owner->name_space, owner->fingerprint);

	stats->key_error_max = fmax(stats->key_error_max, (double)e->info.error[0].max);
	stats->value_error_max = fmax(stats->value_error_max, (double)e->info.error[1].max);
	s->n_made[e->kind]++;
	s->freed_bytes[e->kind] += freed_bytes;
	if (e->kind == ERRAND_SETTLE) {
		stats->settled_chunks++;
		stats->settled_bytes += freed_bytes;
		stats->settled_tokens += e->settled.n_left;
		stats->settled_sinks += e->settled.n_findings;
	} else {
		stats->coarsened_chunks++;
		stats->coarsened_bytes += freed_bytes;
	}
}

/* The frame is where it belongs. */
static void note(struct errand *e)
{
	struct daemon *d = e->steward->daemon;
	struct index_key id;

	governor_remade(d->governor, e->tenant, e->model, &e->policy, &e->before, &e->info);
	if (e->kind != ERRAND_SETTLE)
		return;
	cache_id(d->cache, e->entry, &id);
	governor_settled(d->governor, &id, &e->settled);
	e->entry->settled = 1;
}

static void trace(const struct errand *e)
{
	board_trace(e->steward->daemon->board,
		&(struct trace_event){.start_ns = e->started_ns,
			.duration_ns = e->ended_ns - e->started_ns,
			.track = TRACE_UPKEEP,
			.name = e->kind == ERRAND_SETTLE ? TRACE_SETTLE : TRACE_COARSEN,
			.status = e->status,
			.n_chunks = 1,
			.bytes = e->frame_bytes});
}

/* Puts the frame in its place, unless others have to do with the chunk just now. */
static void try_to_place(struct errand *e)
{
	struct steward *s = e->steward;
	const uint64_t before = e->entry->frame_bytes, now_ms = daemon_now_ms();
	const int r = e->entry->dead ? -ENOENT
				     : cache_replace(s->daemon->cache, e->entry, e->frame, e->frame_bytes,
					       e->transform->id);

	if (!r) {
		e->frame = NULL;
		note(e);
		count(e, before - e->frame_bytes);
	} else if (r != -ENOENT && now_ms < e->give_up_ms && !s->stopped) {
		s->again_ms = now_ms + AGAIN_MS;
		return;
	} else {
		s->n_given_up += r != -ENOENT;
	}
	errand_end(e);
}

/* Nothing will come of it, now or later. */
static void in_vain(struct errand *e)
{
	e->steward->n_in_vain[e->kind]++;
	if (e->kind == ERRAND_SETTLE)
		e->entry->settled = 1;
	else
		pressure_in_vain(&e->steward->pressure, e->entry);
}

static void errand_done(struct task *task, bool ran)
{
	struct errand *e = (struct errand *)task;

	if (ran)
		trace(e);
	if (ran && !e->status) {
		e->give_up_ms = daemon_now_ms() + PATIENCE_MS;
		try_to_place(e);
		return;
	}
	/* A damaged frame is for who reads it to find: it is dropped then. */
	if (ran && e->status != -ENOMEM)
		in_vain(e);
	errand_end(e);
}

static void errand_begin(struct steward *s, struct errand *e)
{
	struct daemon *d = s->daemon;
	struct index_key id;

	e->model = steward_model(d, e->entry);
	e->transform = registry_transform(d->registry, cache_transform(d->cache, e->entry));
	if (!e->model || !e->transform ||
		frame_parse(cache_frame(e->entry), e->entry->frame_bytes, &e->before, NULL, 0)) {
		in_vain(e);
		*e = (struct errand){.steward = s};
		return;
	}
	registry_hold(d->registry, e->transform);
	cache_hold(e->entry);
	if (e->kind == ERRAND_SETTLE) {
		cache_id(d->cache, e->entry, &id);
		governor_recall(d->governor, e->model, &id, e->before.n_tokens, &e->detector, &e->seen);
		e->detection = governor_lend_detection(d->governor);
	}
	e->task.run = errand_run;
	e->task.done = errand_done;
	background_submit(s->background, &e->task);
}

static bool next_to_settle(struct steward *s, struct errand *e)
{
	while (s->n) {
		struct index_entry *x = cache_peek(s->daemon->cache, &s->line[s->first]);

		s->first = (s->first + 1) % LINE_MAX;
		s->n--;
		if (!x)
			continue;
		x->awaits = 0;
		if (!x->record || x->settled)
			continue;
		steward_policy(s->daemon, x, &e->tenant, &e->policy);
		e->kind = ERRAND_SETTLE;
		e->entry = x;
		return true;
	}
	return false;
}

/* ---- the story ---- */

void steward_stop(struct steward *s)
{
	if (!s)
		return;
	s->stopped = true;
	s->n = 0;
	background_stop(s->background);
	background_reap(s->background);
	if (s->errand.give_up_ms)
		try_to_place(&s->errand);
}

struct steward *steward_free(struct steward *s)
{
	if (s)
		background_free(s->background);
	free(s);
	return NULL;
}

int steward_fd(const struct steward *s)
{
	return background_fd(s->background);
}

void steward_run(struct steward *s)
{
	background_reap(s->background);
}

int steward_tick(struct steward *s)
{
	struct errand *e = &s->errand;
	const uint64_t now_ms = daemon_now_ms();

	if (e->give_up_ms && now_ms >= s->again_ms)
		try_to_place(e);
	/* What is settled is smaller, too: that goes first. */
	while (!e->entry && !s->stopped && (next_to_settle(s, e) || pressure_next(&s->pressure, e)))
		errand_begin(s, e);
	if (e->give_up_ms)
		return (int)(s->again_ms > now_ms ? s->again_ms - now_ms : 0);
	return e->entry || s->stopped ? -1 : pressure_wait_ms(&s->pressure, now_ms);
}

bool steward_has_pressure(const struct steward *s)
{
	return pressure_is_on(&s->pressure);
}

static json_t *kind_object(const struct steward *s, enum errand_kind kind)
{
	return json_pack("{s:I, s:I, s:I}", "chunks", (json_int_t)s->n_made[kind], "freed_bytes",
		(json_int_t)s->freed_bytes[kind], "in_vain", (json_int_t)s->n_in_vain[kind]);
}

json_t *steward_status(const struct steward *s)
{
	return json_pack("{s:o, s:o, s:b, s:f, s:I, s:I, s:I, s:I}", "settled", kind_object(s, ERRAND_SETTLE),
		"coarsened", kind_object(s, ERRAND_COARSEN), "pressure", (int)pressure_is_on(&s->pressure),
		"pool_share", s->pressure.fill, "waiting", (json_int_t)s->n, "given_up",
		(json_int_t)s->n_given_up, "passed_over", (json_int_t)s->n_passed_over, "cpu_ms",
		(json_int_t)(background_cpu_ns(s->background) / 1000000));
}
