#include "runtime/daemon/steward/pressure.h"

#include "policy/rate.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/steward/steward.h"

enum {
	LOOK_MS = 50,  /* between two looks when there was nothing to do */
	VISITS = 2048, /* chunks looked at in one */
	RUNGS_AT_ONCE = 2,
};

/* How far the pool must fall below pressure_from before pressure ends. */
static const double RELIEF = 0.05;

/* Of small and of used chunks, by bytes. */
static const double COLD_SHARE = 0.5;

/* What a namespace may do at once after it has done nothing. */
static const double BURST_SECONDS = 0.1;

void pressure_init(struct pressure *p, struct daemon *d)
{
	*p = (struct pressure){.daemon = d};
}

bool pressure_is_on(const struct pressure *p)
{
	bool on = false;

	for (size_t i = 0; i < policies_count(p->daemon->policies); i++)
		on |= p->on[i];
	return on;
}

static void tell(const struct pressure *p, size_t i, bool on)
{
	events_add(p->daemon->events, EVENT_CACHE, EVENT_NOBODY, policies_name(p->daemon->policies, i),
		on ? "%.0f%% of the pool are taken: cold chunks are made coarser"
		   : "%.0f%% of the pool are taken: cold chunks stay as they are",
		100 * p->fill);
}

static const struct policy *policy_of(const struct pressure *p, size_t i)
{
	return &policies_now(p->daemon->policies, i)->policy[POLICY_NO_PRESET];
}

/* Takes stock: how full the pool is, for whom that is too full, and how many chunks each may do now. False:
 * nobody may do any. */
static bool look(struct pressure *p, uint64_t now_ms)
{
	const double seconds = (double)(now_ms - p->looked_ms) / 1000;
	struct pool_stats pool;
	bool any = false;

	pool_get_stats(p->daemon->pool, &pool);
	p->fill = (double)pool.used_bytes / (double)pool.limit_bytes;
	p->looked_ms = now_ms;
	for (size_t i = 0; i < policies_count(p->daemon->policies); i++) {
		const struct policy *policy = policy_of(p, i);
		const double rate = policy->pressure_rate;
		const double most = rate * BURST_SECONDS > 1 ? rate * BURST_SECONDS : 1;
		const double from = policy->pressure_from - (p->on[i] ? RELIEF : 0);
		const bool on = policy->mode == POLICY_PRESSURE && rate > 0 && p->fill >= from;

		p->allowed[i] += rate * seconds;
		p->allowed[i] = p->allowed[i] < most ? p->allowed[i] : most;
		if (on != p->on[i])
			tell(p, i, on);
		p->on[i] = on;
		any |= on && p->allowed[i] >= 1;
	}
	return any;
}

static void forget_in_vain(void *arg, struct index_entry *e)
{
	(void)arg;
	e->coarse_in_vain = 0;
}

/* What one policy forbids another may allow. */
static void follow_policies(struct pressure *p)
{
	const uint32_t version = policies_version(p->daemon->policies);

	if (version != p->policies_version && p->n_in_vain) {
		cache_each(p->daemon->cache, forget_in_vain, NULL);
		p->n_in_vain = 0;
	}
	p->policies_version = version;
}

/* Whether this one is to be coarser; its rung then, in e. */
static bool is_wanted(const struct pressure *p, const struct index_entry *x, struct errand *e)
{
	const struct transform *t;
	uint32_t rung, wanted;

	if (x->dead || !x->record || x->n_users || x->n_pins || x->writing || x->reading || x->coarse_in_vain)
		return false;
	steward_policy(p->daemon, x, &e->tenant, &e->policy);
	if (!p->on[e->tenant] || p->allowed[e->tenant] < 1 || e->policy.mode != POLICY_PRESSURE)
		return false;
	t = registry_transform(p->daemon->registry, cache_transform(p->daemon->cache, x));
	if (!t || !steward_model(p->daemon, x))
		return false;
	rung = frame_rung(cache_frame(x));
	wanted = transform_rung(t, rate_under_pressure(&e->policy, p->fill));
	e->rung = wanted;
	return wanted >= rung + RUNGS_AT_ONCE ||
	       (wanted > rung && wanted == transform_rung(t, e->policy.pressure_ratio));
}

bool pressure_next(struct pressure *p, struct errand *e)
{
	const uint64_t now_ms = daemon_now_ms();

	if (now_ms < p->next_ms)
		return false;
	follow_policies(p);
	p->next_ms = now_ms + LOOK_MS;
	if (!look(p, now_ms))
		return false;
	for (int n = 0; n < VISITS; n++) {
		struct index_entry *x = cache_next_cold(p->daemon->cache, &p->walk, COLD_SHARE);

		if (!x)
			return false;
		if (!is_wanted(p, x, e))
			continue;
		p->allowed[e->tenant]--;
		p->next_ms = now_ms;
		e->kind = ERRAND_COARSEN;
		e->entry = x;
		return true;
	}
	return false;
}

int pressure_wait_ms(const struct pressure *p, uint64_t now_ms)
{
	bool any = false;

	for (size_t i = 0; i < policies_count(p->daemon->policies); i++)
		any |= policy_of(p, i)->mode == POLICY_PRESSURE;
	/* The last look was too early for what has happened since, unless it was just now. */
	if (!any || (!pressure_is_on(p) && p->looked_ms >= now_ms))
		return -1;
	return now_ms < p->next_ms ? (int)(p->next_ms - now_ms) : 0;
}

void pressure_in_vain(struct pressure *p, struct index_entry *e)
{
	e->coarse_in_vain = 1;
	p->n_in_vain++;
}
