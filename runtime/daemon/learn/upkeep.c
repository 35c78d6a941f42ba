#include "runtime/daemon/learn/upkeep.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "runtime/daemon/daemon.h"
#include "runtime/reencode.h"

enum {
	CANDIDATES_MAX = 64,
	/* A walk takes at most this share of the front thread's time: one in so many. */
	WALK_SHARE = 200,
	WALK_MS_MIN = 1000,
	MODELS_MAX = REGISTRY_MODELS_MAX,
};

/* A plain chunk on its way to be made anew; there is one at a time. */
struct anew {
	struct task task;
	struct cache_wait wait;
	struct upkeep *upkeep;
	struct index_entry *entry; /* held; NULL: none is on its way */
	const struct geometry *geometry;
	const struct transform *transform; /* held */
	struct reencode_options options;
	uint8_t *frame;
	size_t frame_bytes;
	int status;
};

/* The file of a version that is gone. */
struct removal {
	struct task task;
	struct upkeep *upkeep;
	struct version version;
	int status;
};

struct upkeep {
	struct daemon *daemon;
	struct background *background;
	const char *directory;
	bool stopped;
	uint32_t n_removals; /* in flight */
	struct known *known;
	size_t n_known;
	struct anew anew;
	/* As of the last walk: */
	uint64_t walked_ms, pause_ms;
	struct upkeep_counts counts[MODELS_MAX]; /* in the registry's order */
	struct index_key candidates[CANDIDATES_MAX];
	size_t n_candidates;
	bool only_on_disk; /* the candidates: none of the plain chunks is in the pool */
};

static const uint8_t plain[16];

struct upkeep *upkeep_new(struct daemon *d)
{
	struct upkeep *u = calloc(1, sizeof *u);

	if (!u)
		return NULL;
	u->daemon = d;
	u->anew.upkeep = u;
	return u;
}

void upkeep_begin(struct upkeep *u, struct background *b, const char *directory)
{
	u->background = b;
	u->directory = directory;
}

void upkeep_stop(struct upkeep *u)
{
	u->stopped = true;
	u->n_candidates = 0;
}

bool upkeep_is_idle(const struct upkeep *u)
{
	return !u->anew.entry && !u->n_removals;
}

struct upkeep *upkeep_free(struct upkeep *u)
{
	if (u) {
		free(u->known);
		free(u);
	}
	return NULL;
}

/* ---- versions ---- */

int upkeep_add(struct upkeep *u, const struct known *k)
{
	struct known *more = realloc(u->known, (u->n_known + 1) * sizeof *more);

	if (!more)
		return -ENOMEM;
	u->known = more;
	u->known[u->n_known++] = *k;
	return 0;
}

size_t upkeep_n_known(const struct upkeep *u)
{
	return u->n_known;
}

const struct known *upkeep_known(const struct upkeep *u, size_t i)
{
	return &u->known[i];
}

uint32_t upkeep_n_versions(const struct upkeep *u, const uint8_t fingerprint[16])
{
	uint32_t n = 0;

	for (size_t i = 0; i < u->n_known; i++)
		n += !memcmp(u->known[i].fingerprint, fingerprint, 16);
	return n;
}

static void remove_run(struct task *task, struct background *b)
{
	struct removal *r = (struct removal *)task;

	(void)b;
	r->status = versions_remove(r->upkeep->directory, &r->version);
}

/* A file that stays is loaded by the next start and retired again. */
static void remove_done(struct task *task, bool ran)
{
	struct removal *r = (struct removal *)task;

	if (ran && r->status)
		log_warning("transform version %u: its file could not be removed (%s)", r->version.number,
			strerror(-r->status));
	r->upkeep->n_removals--;
	free(r);
}

static void remove_file(struct upkeep *u, const struct version *v)
{
	struct removal *r = u->directory[0] ? calloc(1, sizeof *r) : NULL;

	if (!r)
		return;
	r->task.run = remove_run;
	r->task.done = remove_done;
	r->upkeep = u;
	r->version = *v;
	u->n_removals++;
	background_submit(u->background, &r->task);
}

/* Needed by frames to come: it is its model's newest, or the operator has given it as well. */
static bool is_newest(const struct upkeep *u, size_t i)
{
	for (size_t k = 0; k < registry_n_models(u->daemon->registry); k++) {
		const struct transform *t = registry_model_at(u->daemon->registry, k)->transform;

		if (t && !memcmp(t->id, u->known[i].version.id, 16))
			return true;
	}
	for (size_t k = i + 1; k < u->n_known; k++)
		if (!memcmp(u->known[k].fingerprint, u->known[i].fingerprint, 16))
			return false;
	return true;
}

/* First nobody can find it any more, then its file goes: a kill in between leaves a file that nothing needs.
 */
static void retire(struct upkeep *u)
{
	for (size_t i = 0; i < u->n_known;) {
		const struct known k = u->known[i];

		if (k.n_frames || is_newest(u, i) ||
			registry_remove_transform(u->daemon->registry, k.version.id)) {
			i++;
			continue;
		}
		memmove(u->known + i, u->known + i + 1, (--u->n_known - i) * sizeof k);
		events_add(u->daemon->events, EVENT_MODEL, EVENT_NOBODY, NULL,
			"transform version %u is needed by no frame any more and was removed",
			k.version.number);
		remove_file(u, &k.version);
	}
}

/* ---- the walk ---- */

static void add_candidate(struct upkeep *u, const struct index_entry *e)
{
	/* What is in the pool goes first: it costs no read, and nobody else's place. */
	if (e->record && u->only_on_disk) {
		u->only_on_disk = false;
		u->n_candidates = 0;
	}
	if (u->n_candidates < CANDIDATES_MAX && (e->record || u->only_on_disk))
		cache_id(u->daemon->cache, e, &u->candidates[u->n_candidates++]);
}

static size_t model_of(const struct upkeep *u, const uint8_t fingerprint[16])
{
	size_t i = 0;

	while (i < registry_n_models(u->daemon->registry) &&
		memcmp(registry_model_at(u->daemon->registry, i)->fingerprint, fingerprint, 16) != 0)
		i++;
	return i;
}

static void note(void *arg, struct index_entry *e)
{
	struct upkeep *u = arg;
	const uint8_t *transform = cache_transform(u->daemon->cache, e);
	size_t i;

	if (!e->record && !e->page)
		return; /* being encoded */
	if (memcmp(transform, plain, 16) != 0) {
		for (i = 0; i < u->n_known; i++)
			if (!memcmp(u->known[i].version.id, transform, 16))
				u->known[i].n_frames++;
		return;
	}
	i = model_of(u, cache_owner(u->daemon->cache, e)->fingerprint);
	if (i == registry_n_models(u->daemon->registry))
		return; /* of a model that nobody has registered since the start */
	u->counts[i].n_plain++;
	u->counts[i].n_in_vain += e->anew_in_vain;
	if (registry_model_at(u->daemon->registry, i)->transform && !e->anew_in_vain && !e->n_users)
		add_candidate(u, e);
}

static void walk(struct upkeep *u)
{
	const uint64_t start = daemon_now_ms();

	memset(u->counts, 0, sizeof u->counts);
	u->n_candidates = 0;
	u->only_on_disk = true;
	for (size_t i = 0; i < u->n_known; i++)
		u->known[i].n_frames = 0;
	cache_each(u->daemon->cache, note, u);
	u->walked_ms = daemon_now_ms();
	u->pause_ms = (u->walked_ms - start) * WALK_SHARE;
	if (u->pause_ms < WALK_MS_MIN)
		u->pause_ms = WALK_MS_MIN;
}

void upkeep_get_counts(const struct upkeep *u, const struct model *m, struct upkeep_counts *out)
{
	const size_t i = model_of(u, m->fingerprint);

	*out = i < registry_n_models(u->daemon->registry) ? u->counts[i] : (struct upkeep_counts){0};
}

/* ---- plain frames made anew ---- */

static void next_anew(struct upkeep *u);

static void end_anew(struct upkeep *u)
{
	struct anew *a = &u->anew;

	if (a->transform)
		registry_release(u->daemon->registry, a->transform);
	a->transform = NULL;
	free(a->frame);
	a->frame = NULL;
	cache_release(u->daemon->cache, a->entry);
	a->entry = NULL;
}

static void anew_run(struct task *task, struct background *b)
{
	struct anew *a = (struct anew *)task;

	a->status = background_codec(b)
			    ? reencode(background_codec(b), a->geometry, cache_frame(a->entry),
				      a->entry->frame_bytes, &a->options, &a->frame, &a->frame_bytes, NULL)
			    : -ENOMEM;
}

/* Somebody who reads the chunk now, or a full pool, is a reason to try again after the next walk. */
static void anew_done(struct task *task, bool ran)
{
	struct anew *a = (struct anew *)task;
	struct upkeep *u = a->upkeep;

	if (ran && !a->status) {
		if (!cache_replace(u->daemon->cache, a->entry, a->frame, a->frame_bytes, a->transform->id))
			a->frame = NULL;
	} else if (ran && a->status != -ENOMEM) {
		a->entry->anew_in_vain = 1;
	}
	end_anew(u);
	next_anew(u);
}

static void anew_fetched(struct cache_wait *wait, int status)
{
	struct anew *a = (struct anew *)((char *)wait - offsetof(struct anew, wait));
	struct upkeep *u = a->upkeep;
	const struct registry *registry = u->daemon->registry;
	const size_t i = model_of(u, cache_owner(u->daemon->cache, a->entry)->fingerprint);
	const struct policy *policy =
		&policies_of(u->daemon->policies, cache_owner(u->daemon->cache, a->entry)->name_space)
			 ->policy[0];

	if (status || u->stopped || i == registry_n_models(registry)) {
		end_anew(u);
		return;
	}
	a->geometry = &registry_model_at(registry, i)->geometry;
	a->transform = registry_model_at(registry, i)->transform;
	registry_hold(u->daemon->registry, a->transform);
	a->options = (struct reencode_options){.to = a->transform,
		.rung = transform_rung(a->transform, policy->ratio),
		.max_error = policy->max_error,
		.policy_version = policy->version};
	a->task.run = anew_run;
	a->task.done = anew_done;
	background_submit(u->background, &a->task);
}

static bool may_be_anew(const struct upkeep *u, const struct index_entry *e)
{
	const size_t i = model_of(u, cache_owner(u->daemon->cache, e)->fingerprint);

	return !memcmp(cache_transform(u->daemon->cache, e), plain, 16) && !e->n_users && !e->anew_in_vain &&
	       i < registry_n_models(u->daemon->registry) &&
	       registry_model_at(u->daemon->registry, i)->transform;
}

static void next_anew(struct upkeep *u)
{
	while (!u->anew.entry && u->n_candidates && !u->stopped) {
		struct index_entry *e = cache_peek(u->daemon->cache, &u->candidates[--u->n_candidates]);

		if (!e || !may_be_anew(u, e))
			continue;
		cache_hold(e);
		u->anew.entry = e;
		u->anew.wait = (struct cache_wait){.fn = anew_fetched};
		cache_fetch(u->daemon->cache, e, &u->anew.wait);
	}
}

/* ---- the story ---- */

void upkeep_hurry(struct upkeep *u)
{
	u->pause_ms = 0;
}

void upkeep_tick(struct upkeep *u)
{
	if (u->stopped || u->anew.entry || daemon_now_ms() - u->walked_ms < u->pause_ms)
		return;
	walk(u);
	retire(u);
	next_anew(u);
}
