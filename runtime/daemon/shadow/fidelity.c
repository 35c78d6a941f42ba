#include "runtime/daemon/shadow/fidelity.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/shadow/choice.h"
#include "runtime/daemon/shadow/comparison.h"

enum {
	IN_FLIGHT_MAX = 4, /* comparisons */
	TICK_MS = 1000,
};

static const double THREAD_SHARE = 0.1;  /* of a core */
static const double MEMORY_SHORT = 0.05; /* of the machine's, still to be had */

struct fidelity {
	struct daemon *daemon;
	uint64_t seed, draws;
	struct budget budget;
	struct shadows *shadows;
	struct waiting_queries waiting;
	struct background *background; /* NULL: not started yet */
	bool stopped;
	uint64_t due_ms; /* of the next tick; 0: now */
	/* What became of them. */
	uint64_t n_taken, n_compared, n_failed, n_missed, n_expired, n_dropped;
};

struct fidelity *fidelity_new(struct daemon *d)
{
	struct fidelity *f = calloc(1, sizeof *f);

	if (!f)
		return NULL;
	f->daemon = d;
	f->seed = choice_seed();
	f->draws = choice_seed();
	f->budget.limit_bytes = d->config->shadow_bytes;
	f->shadows = shadows_new(&f->budget);
	return f->shadows ? f : fidelity_free(f);
}

void fidelity_stop(struct fidelity *f)
{
	if (!f)
		return;
	f->stopped = true;
	background_stop(f->background);
	fidelity_reap(f);
}

struct fidelity *fidelity_free(struct fidelity *f)
{
	if (!f)
		return NULL;
	fidelity_stop(f);
	background_free(f->background);
	waiting_queries_expire(&f->waiting, UINT64_MAX);
	shadows_free(f->shadows);
	free(f);
	return NULL;
}

/* ---- pressure ---- */

static bool is_pressed(const struct fidelity *f, uint32_t tenant)
{
	const struct policy *p = &policies_now(f->daemon->policies, tenant)->policy[0];
	struct pool_stats pool;

	if (p->mode != POLICY_PRESSURE)
		return false;
	pool_get_stats(f->daemon->pool, &pool);
	return (double)pool.used_bytes >= p->pressure_from * (double)pool.limit_bytes;
}

static bool is_pressed_shadow(const struct shadow *shadow, void *arg)
{
	return is_pressed(arg, shadow->tenant);
}

static bool is_any(const struct shadow *shadow, void *arg)
{
	(void)shadow;
	(void)arg;
	return true;
}

int fidelity_tick(struct fidelity *f, uint64_t now_ms)
{
	if (!shadows_count(f->shadows) && !f->waiting.n)
		return -1;
	if (now_ms < f->due_ms)
		return (int)(f->due_ms - now_ms);
	f->due_ms = now_ms + TICK_MS;
	f->n_expired += shadows_expire(f->shadows, now_ms);
	waiting_queries_expire(&f->waiting, now_ms);
	if (memory_available("/proc/meminfo") < MEMORY_SHORT) {
		f->n_dropped += shadows_drop_if(f->shadows, is_any, NULL);
		waiting_queries_expire(&f->waiting, UINT64_MAX);
	} else {
		f->n_dropped += shadows_drop_if(f->shadows, is_pressed_shadow, f);
	}
	return TICK_MS;
}

/* ---- comparisons ---- */

static void compared(struct task *task, bool ran)
{
	struct comparison *c = (struct comparison *)task;
	struct fidelity *f = c->owner;
	struct shadow *shadow = c->shadow;

	if (ran && !c->status) {
		f->n_compared++;
		governor_compared(f->daemon->governor, shadow->tenant, shadow->model, &shadow->id, &c->error);
	} else if (ran && c->status != -ECANCELED) {
		f->n_failed++;
	}
	if (c->transform)
		registry_release(f->daemon->registry, c->transform);
	comparison_free(c, f->shadows);
}

static int start_thread(struct fidelity *f)
{
	int r = background_new(THREAD_SHARE, false, f->daemon->kernels, &f->background);

	if (!r)
		r = daemon_watch(f->daemon, background_fd(f->background), SOURCE_FIDELITY, NULL);
	if (r) {
		log_warning("attention cannot be compared: no thread for it (%s)", strerror(-r));
		f->background = background_free(f->background);
		f->stopped = true;
	}
	return r;
}

/* Takes the queries. What cannot be had is left out. */
static void compare(struct fidelity *f, struct shadow *shadow, struct query_sample *queries,
	const void *frame, size_t frame_bytes)
{
	static const uint8_t plain[16] = {0};
	const struct transform *t;
	struct frame_info info;
	struct comparison *c;
	int r = f->stopped ? -ECANCELED : frame_parse(frame, frame_bytes, &info, NULL, 0);

	if (!r && !f->background)
		r = start_thread(f);
	t = r ? NULL : registry_transform(f->daemon->registry, info.transform);
	if (r || (!t && memcmp(info.transform, plain, sizeof plain) != 0) ||
		background_n_busy(f->background) >= IN_FLIGHT_MAX) {
		query_sample_free(queries);
		f->n_missed++;
		return;
	}
	c = comparison_new(&f->budget, f->daemon->kernels, shadow, queries, frame, frame_bytes, t, compared);
	if (!c) {
		f->n_missed++;
		return;
	}
	c->owner = f;
	if (t)
		registry_hold(f->daemon->registry, t);
	background_submit(f->background, &c->task);
}

void fidelity_reap(struct fidelity *f)
{
	if (f->background)
		background_reap(f->background);
}

/* ---- PUT ---- */

struct shadow *fidelity_lend(struct fidelity *f, const struct session *session, const struct model *model,
	const struct index_key *id, uint32_t n_tokens)
{
	const struct policy *p = &policies_now(f->daemon->policies, session->tenant)->policy[0];
	const uint64_t hash = choice_hash(f->seed, id);
	const bool is_chosen = choice_falls(hash, p->shadow);
	struct query_sample *queries = f->waiting.n ? waiting_queries_take(&f->waiting, id) : NULL;
	struct shadow *shadow;

	if (queries && queries->n_tokens != n_tokens)
		queries = query_sample_free(queries);
	if ((!is_chosen && !queries) || f->stopped || is_pressed(f, session->tenant)) {
		query_sample_free(queries);
		return NULL;
	}
	shadow = shadows_lend(f->shadows, id, hash, model, n_tokens);
	if (!shadow) {
		query_sample_free(queries);
		return NULL;
	}
	memcpy(shadow->name_space, session->name_space, sizeof shadow->name_space);
	shadow->tenant = session->tenant;
	shadow->queries = queries;
	/* One that was taken for queries alone is compared with these and goes. */
	shadow->n_left = is_chosen ? SHADOW_COMPARISONS : 1;
	shadow->until_ms = daemon_now_ms() + (is_chosen ? p->shadow_seconds * UINT64_C(1000) : 0);
	return shadow;
}

void fidelity_take(struct fidelity *f, struct shadow *shadow, const void *frame, size_t frame_bytes)
{
	struct query_sample *queries = shadow->queries;

	shadow->queries = NULL;
	shadow->dropped |= !frame;
	if (!shadows_take(f->shadows, shadow)) {
		query_sample_free(queries);
		return;
	}
	f->n_taken++;
	if (queries)
		compare(f, shadow, queries, frame, frame_bytes);
}

/* ---- OBSERVE ---- */

/* Whether this chunk's queries are wanted: for its shadow, or for when it is put. */
static bool is_wanted(
	const struct fidelity *f, const struct policy *p, const struct index_key *id, uint32_t n_tokens)
{
	const uint64_t hash = choice_hash(f->seed, id);
	const struct shadow *shadow = shadows_find(f->shadows, id, hash);

	if (shadow)
		return shadow->state == SHADOW_READY && shadow->copy->n_tokens == n_tokens;
	return choice_falls(hash, fmax(p->shadow, p->attention_share)) &&
	       f->waiting.n < QUERIES_WAITING_MAX && !waiting_queries_has(&f->waiting, id) &&
	       !cache_peek(f->daemon->cache, id) && !cache_is_reserved(f->daemon->cache, id);
}

/* The next of a row of random numbers (a linear congruence modulo 2^64, the low bits of which are no good).
 */
static uint64_t draw(struct fidelity *f)
{
	f->draws = f->draws * 6364136223846793005u + 1442695040888963407u;
	return f->draws >> 32;
}

void fidelity_pick(struct fidelity *f, struct observation *o)
{
	const struct policy *p = &policies_of(f->daemon->policies, o->name_space)->policy[0];
	const uint32_t size = f->daemon->config->chunk_tokens, n_whole = o->n_tokens / size;
	struct index_key wanted[OBSERVATION_PICKS_MAX];
	uint32_t chunks[OBSERVATION_PICKS_MAX], n = 0;

	if (o->head.kind != WIRE_QUERIES || f->stopped || !f->budget.limit_bytes ||
		(p->shadow <= 0 && p->attention_share <= 0 && !shadows_count(f->shadows)))
		return;
	/* Of all that are wanted, a few, each with the same chance (Vitter's algorithm R). */
	for (uint32_t c = 0; c < n_whole; c++) {
		struct index_key id;
		uint32_t at = n;

		index_key_make(&id, o->name_space, o->model->fingerprint, o->keys[c]);
		if (!is_wanted(f, p, &id, size))
			continue;
		if (n++ >= OBSERVATION_PICKS_MAX)
			at = (uint32_t)(draw(f) % n);
		if (at >= OBSERVATION_PICKS_MAX)
			continue;
		wanted[at] = id;
		chunks[at] = c;
	}
	for (uint32_t i = 0; i < n && i < OBSERVATION_PICKS_MAX; i++) {
		struct query_sample *s = query_sample_new(&f->budget, &o->model->geometry, &o->head, o->data,
			(uint64_t)(chunks[i] + 1) * size, draw(f));

		if (!s)
			continue;
		s->id = wanted[i];
		memcpy(s->name_space, o->name_space, sizeof s->name_space);
		s->n_tokens = size;
		s->until_ms = daemon_now_ms() + p->shadow_seconds * UINT64_C(1000);
		o->picks[o->n_picks++] = s;
	}
}

void fidelity_fill(struct observation *o)
{
	for (uint32_t i = 0; i < o->n_picks; i++)
		query_sample_fill(o->picks[i], &o->model->geometry, &o->head, o->data);
}

/* Where the chunk's original is there, it is compared with what its frame, as it is now, gives back. */
static void use(struct fidelity *f, struct query_sample *s)
{
	const uint64_t hash = choice_hash(f->seed, &s->id);
	struct shadow *shadow = shadows_find(f->shadows, &s->id, hash);
	const struct index_entry *e = cache_peek(f->daemon->cache, &s->id);

	if (!shadow && !e && !cache_is_reserved(f->daemon->cache, &s->id)) {
		waiting_queries_add(&f->waiting, s);
		return;
	}
	if (!shadow || shadow->state != SHADOW_READY || !e || !e->record) {
		/* Nothing is restored any more from a chunk that is gone. */
		if (shadow && !e)
			shadows_drop(f->shadows, shadow);
		query_sample_free(s);
		f->n_missed++;
		return;
	}
	compare(f, shadow, s, cache_frame(e), e->frame_bytes);
}

void fidelity_observed(struct fidelity *f, struct observation *o)
{
	for (uint32_t i = 0; i < o->n_picks; i++)
		if (o->status)
			query_sample_free(o->picks[i]);
		else
			use(f, o->picks[i]);
	o->n_picks = 0;
}

/* ---- what is forgotten ---- */

void fidelity_forget(struct fidelity *f, const struct index_key *id)
{
	struct shadow *shadow = shadows_find(f->shadows, id, choice_hash(f->seed, id));

	if (shadow)
		shadows_drop(f->shadows, shadow);
	query_sample_free(waiting_queries_take(&f->waiting, id));
}

static bool is_of(const struct shadow *shadow, void *arg)
{
	return !memcmp(shadow->name_space, arg, sizeof shadow->name_space);
}

void fidelity_forget_name_space(struct fidelity *f, const uint8_t name_space[16])
{
	uint8_t id[16];

	memcpy(id, name_space, sizeof id);
	shadows_drop_if(f->shadows, is_of, id);
	waiting_queries_forget(&f->waiting, id);
}

/* ---- for operators ---- */

static json_t *number(uint64_t n)
{
	return json_integer((json_int_t)n);
}

json_t *fidelity_status(const struct fidelity *f)
{
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "limit_bytes",
		number(f->budget.limit_bytes), "used_bytes", number(f->budget.used_bytes), "chunks",
		number(shadows_count(f->shadows)), "waiting_queries", number(f->waiting.n), "taken",
		number(f->n_taken), "compared", number(f->n_compared), "failed", number(f->n_failed),
		"missed", number(f->n_missed), "expired", number(f->n_expired), "dropped",
		number(f->n_dropped), "refused", number(f->budget.n_refused));
}

void fidelity_gauges(const struct fidelity *f, struct stats_daemon *out)
{
	out->shadow_limit_bytes = f->budget.limit_bytes;
	out->shadow_used_bytes = f->budget.used_bytes;
	out->shadow_chunks = shadows_count(f->shadows);
}
