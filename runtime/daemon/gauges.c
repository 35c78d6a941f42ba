#include "runtime/daemon/gauges.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "runtime/cuda/tier.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/device/gpu.h"
#include "runtime/daemon/device/pool.h"
#include "runtime/daemon/shadow/fidelity.h"

/* Texts are compared as they are by readers: no rest of an earlier one behind the NUL. */
static void set_text(char *to, size_t size, const char *text)
{
	memset(to, 0, size);
	memcpy(to, text, strnlen(text, size - 1));
}

void gauges_init(struct daemon *d)
{
	struct stats_daemon *s = &d->board->daemon;
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	set_text(s->version, sizeof s->version, CISTERN_VERSION);
	snprintf(s->backend, sizeof s->backend, "host (%s)", d->kernels->name);
	s->started_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	s->chunk_tokens = d->config->chunk_tokens;
	s->workers = d->n_workers;
	d->board->changed = true;
}

static void take_pool(const struct daemon *d, struct stats_daemon *s)
{
	struct pool_stats pool;

	pool_get_stats(d->pool, &pool);
	s->pool_limit_bytes = pool.limit_bytes;
	s->pool_used_bytes = pool.used_bytes;
	s->pool_largest_free_bytes = pool.largest_free_bytes;
}

static void take_gpu(const struct daemon *d, struct stats_daemon *s)
{
	struct import_stats imports;
	struct tier_stats tier;

	if (!d->gpu)
		return;
	imports_get_stats(d->gpu->imports, &imports);
	tier_get_stats(device_pool_tier(d->gpu->pool), &tier);
	s->device_pool_limit_bytes = tier.limit_bytes;
	s->device_pool_used_bytes = tier.used_bytes;
	s->device_staging_bytes = staging_bytes(d->gpu->staging);
	s->device_mapped_bytes = imports.bytes;
}

static void take_store(const struct daemon *d, struct stats_daemon *s)
{
	struct store_stats store;

	if (!d->store)
		return;
	store_get_stats(d->store, &store);
	s->store_limit_bytes = store.limit_bytes;
	s->store_used_bytes = store.used_bytes;
	s->store_live_bytes = store.live_bytes;
	s->store_segments = store.n_segments;
	s->store_records = store.n_records;
	s->store_written_bytes = store.written_bytes;
	s->store_read_bytes = store.read_bytes;
	s->store_writes = store.n_writes;
	s->store_reads = store.n_reads;
	s->store_dropped = store.n_dropped;
}

static void take_cache(const struct daemon *d, struct stats_daemon *s)
{
	const struct cache_stats *cache = cache_counters(d->cache);

	s->evicted = cache->n_evicted;
	s->lost = cache->n_dropped;
	s->store_state = cache->store_state;
	s->store_unwritten = cache->n_unwritten;
	s->store_writing_bytes = cache->writing_bytes;
	s->store_evicted = cache->n_disk_evicted;
	s->store_moved = cache->n_moved;
	s->removed = cache->n_removed;
	s->fetched = cache->n_fetched;
	s->store_write_errors = cache->n_write_errors;
	s->store_read_errors = cache->n_read_errors;
	s->store_in_flight = cache_n_busy(d->cache);
}

static void take_sessions(const struct daemon *d, struct stats_daemon *s)
{
	s->sessions = 0;
	for (const struct session *session = d->sessions; session; session = session->next)
		s->sessions += session->attached && !session->closed;
	s->connections = d->counters.n_connections;
	s->bad_requests = d->counters.n_bad_requests;
}

/* Chunks found on disk may belong to a namespace that is no longer configured: then its id stands for its
 * name. */
static void find_name_space(const struct daemon *d, struct board_cache *c)
{
	for (uint32_t i = 0; i < d->config->n_namespaces; i++) {
		const char *name = d->config->namespaces[i].name;
		XXH128_canonical_t id;

		XXH128_canonicalFromHash(&id, XXH3_128bits(name, strlen(name)));
		if (!memcmp(id.digest, c->name_space, 16)) {
			set_text(c->stats.name_space, sizeof c->stats.name_space, name);
			return;
		}
	}
	snprintf(c->stats.name_space, sizeof c->stats.name_space, "(%02x%02x%02x%02x)", c->name_space[0],
		c->name_space[1], c->name_space[2], c->name_space[3]);
}

/* The model of a record; NULL: no client has registered it. */
static const struct model *model_of(const struct daemon *d, const struct board_cache *c)
{
	for (size_t i = 0; i < registry_n_models(d->registry); i++)
		if (!memcmp(registry_model_at(d->registry, i)->fingerprint, c->fingerprint, 16))
			return registry_model_at(d->registry, i);
	return NULL;
}

static void take_model(const struct daemon *d, struct board_cache *c)
{
	const struct model *m = model_of(d, c);
	double captured;

	if (!m)
		return;
	if (!c->stats.model[0]) {
		set_text(c->stats.model, sizeof c->stats.model, m->geometry.name);
		c->stats.token_bytes = geometry_token_bytes(&m->geometry);
	}
	c->stats.transform = m->transform != NULL;
	set_text(c->stats.learning, sizeof c->stats.learning, learn_state(d->learn, m, &captured));
	c->stats.captured_energy = captured > 0 ? captured : 0;
}

static void take_figures(const struct daemon *d, struct board_cache *c)
{
	const int tenant = policies_find(d->policies, c->stats.name_space);
	const struct model *m = model_of(d, c);
	const struct figures *f =
		tenant < 0 || !m ? NULL : governor_figures(d->governor, (uint32_t)tenant, m);

	if (!f)
		return;
	c->stats.bound_violations = f->n_violations;
	c->stats.attention_error_mean = f->attention;
	c->stats.attention_error_max = f->attention_worst;
	c->stats.attention_chunks = f->n_compared;
	c->stats.alarm_error = f->error_alarm.raised;
	c->stats.alarm_attention = f->attention_alarm.raised;
}

static double error_bound(const struct daemon *d, const char *name_space)
{
	const int i = policies_find(d->policies, name_space);

	return i < 0 ? 0 : policies_now(d->policies, (size_t)i)->policy[0].max_error;
}

static void name(const struct daemon *d, struct board_cache *c)
{
	if (!c->stats.name_space[0])
		find_name_space(d, c);
	take_model(d, c);
}

const struct stats_cache *gauges_names(
	struct daemon *d, const uint8_t name_space[16], const uint8_t fingerprint[16])
{
	board_cache(d->board, name_space, fingerprint);
	name(d, &d->board->caches[d->board->last]);
	return &d->board->caches[d->board->last].stats;
}

static void refresh(struct daemon *d)
{
	struct board *b = d->board;
	struct stats_daemon *s = &b->daemon;

	take_pool(d, s);
	take_gpu(d, s);
	take_store(d, s);
	take_cache(d, s);
	take_sessions(d, s);
	s->jobs = workers_n_busy(d->workers);
	fidelity_gauges(d->fidelity, s);
	s->pressure = steward_has_pressure(d->steward);
	s->transforms = registry_n_transforms(d->registry);
	s->transform_bytes = registry_transform_bytes(d->registry);
	for (uint32_t i = 0; i < b->n_caches; i++) {
		struct board_cache *c = &b->caches[i];

		if (!c->changed)
			continue;
		name(d, c);
		c->stats.error_bound = error_bound(d, c->stats.name_space);
		take_figures(d, c);
	}
}

int gauges_publish(struct daemon *d, int timeout_ms)
{
	struct board *b = d->board;
	uint64_t now_ms, due_ms;

	if (!b->changed)
		return timeout_ms;
	now_ms = daemon_now_ms();
	due_ms = b->published_ms + BOARD_PERIOD_MS;
	if (now_ms >= due_ms) {
		refresh(d);
		board_publish(b, now_ms);
		return timeout_ms;
	}
	if (timeout_ms < 0 || (uint64_t)timeout_ms > due_ms - now_ms)
		return (int)(due_ms - now_ms);
	return timeout_ms;
}
