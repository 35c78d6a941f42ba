/* What operators ask of the cache and its store. */
#include "runtime/daemon/control.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/daemon/attach.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/shadow/fidelity.h"

static json_t *number(uint64_t n)
{
	return json_integer((json_int_t)n);
}

/* What is in object goes on being there; v is taken. */
static void set(json_t *object, const char *key, uint64_t v)
{
	json_object_set_new(object, key, number(v));
}

json_t *control_store_object(const struct daemon *d)
{
	static const char *const states[] = {"none", "good", "failing"};
	struct cache_stats cache;
	struct store_stats s;
	json_t *o;

	if (!d->store)
		return json_null();
	store_get_stats(d->store, &s);
	cache_get_stats(d->cache, &cache);
	o = json_pack("{s:s, s:s, s:s, s:b, s:b, s:b}", "directory", d->config->store_dir, "state",
		states[cache.store_state], "error", cache.store_error ? strerror(-cache.store_error) : "",
		"direct", (int)s.direct, "fixed_buffers", (int)s.fixed_buffers, "fixed_files",
		(int)s.fixed_files);
	set(o, "limit_bytes", s.limit_bytes);
	set(o, "used_bytes", s.used_bytes);
	set(o, "live_bytes", s.live_bytes);
	set(o, "segments", s.n_segments);
	set(o, "records", s.n_records);
	set(o, "slot_bytes", s.slot_bytes);
	set(o, "written_bytes", s.written_bytes);
	set(o, "read_bytes", s.read_bytes);
	set(o, "writes", s.n_writes);
	set(o, "reads", s.n_reads);
	set(o, "dropped", s.n_dropped);
	set(o, "errors", s.n_errors);
	set(o, "unwritten", cache.n_unwritten);
	set(o, "writing_bytes", cache.writing_bytes);
	set(o, "lost", cache.n_lost);
	set(o, "evicted", cache.n_disk_evicted);
	set(o, "moved", cache.n_moved);
	return o;
}

/* The configured name, or NULL: of a namespace that was there once. */
static const char *name_of(const struct config *c, const uint8_t id[16])
{
	for (uint32_t i = 0; i < c->n_namespaces; i++) {
		uint8_t own[16];

		attach_name_space_id(c->namespaces[i].name, own);
		if (memcmp(own, id, 16) == 0)
			return c->namespaces[i].name;
	}
	return NULL;
}

static json_t *shares_array(const struct daemon *d)
{
	json_t *array = json_array();
	struct cache_share s;

	for (size_t i = 0; cache_get_share(d->cache, i, &s); i++) {
		const char *name = name_of(d->config, s.name_space);
		json_t *o = json_pack("{s:s}", "name", name ? name : "(not configured)");

		set(o, "chunks", s.n_chunks);
		set(o, "pool_bytes", s.pool_bytes);
		set(o, "pool_quota", s.pool_quota);
		set(o, "store_bytes", s.store_bytes);
		set(o, "store_quota", s.store_quota);
		set(o, "frame_bytes", s.frame_bytes);
		set(o, "raw_bytes", s.raw_bytes);
		json_array_append_new(array, o);
	}
	return array;
}

json_t *control_cache_object(const struct daemon *d)
{
	struct cache_stats s;
	json_t *o = json_object();

	cache_get_stats(d->cache, &s);
	set(o, "chunks", s.n_entries);
	set(o, "in_pool", s.n_in_pool);
	set(o, "on_disk", s.n_on_disk);
	set(o, "hits", s.n_hits);
	set(o, "misses", s.n_misses);
	set(o, "filled", s.n_filled);
	set(o, "evicted", s.n_evicted);
	set(o, "dropped", s.n_dropped);
	set(o, "removed", s.n_removed);
	set(o, "fetched", s.n_fetched);
	set(o, "replaced", s.n_replaced);
	set(o, "write_errors", s.n_write_errors);
	set(o, "frame_bytes", s.frame_bytes);
	set(o, "raw_bytes", s.raw_bytes);
	set(o, "index_bytes", s.index_bytes);
	json_object_set_new(o, "namespaces", shares_array(d));
	return o;
}

/* ---- purge ---- */

struct purge {
	struct cache_wait wait;
	struct session *session;
	size_t n;
	bool done;
	int status;
};

static void answer_purge(struct purge *p)
{
	struct session *s = p->session;
	json_t *answer = p->status ? control_failure("the purge is in force, and not on stable storage")
				   : json_pack("{s:b, s:o}", "ok", 1, "purged", number(p->n));

	attach_answer(s, answer);
	free(p);
	session_request_ended(s);
}

static void purged(struct cache_wait *wait, int status)
{
	struct purge *p = (struct purge *)wait;

	p->status = status;
	/* It may be done before it is known how many there were. */
	if (p->done)
		answer_purge(p);
	p->done = true;
}

json_t *control_purge(struct daemon *d, uid_t uid, const json_t *request)
{
	const char *name = json_string_value(json_object_get(request, "namespace"));
	struct purge *p;
	uint8_t id[16];

	if (!name || !*name || strlen(name) >= WIRE_NAMESPACE_MAX)
		return control_failure("purge needs a \"namespace\"");
	p = calloc(1, sizeof *p);
	if (!p)
		return NULL;
	attach_name_space_id(name, id);
	p->wait.fn = purged;
	p->session = d->asking;
	d->asking->n_requests++;
	d->asking = NULL;
	fidelity_forget_name_space(d->fidelity, id);
	p->n = cache_purge(d->cache, id, &p->wait);
	log_info("namespace %s purged by uid %u: %zu chunks", name, (unsigned)uid, p->n);
	if (p->done)
		answer_purge(p);
	else
		p->done = true;
	return NULL;
}
