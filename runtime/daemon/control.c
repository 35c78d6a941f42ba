#include "runtime/daemon/control.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/daemon.h"
#include "runtime/daemon/shadow/fidelity.h"
#include "runtime/daemon/device/gpu.h"

static json_t *number(uint64_t n)
{
	return json_integer((json_int_t)n);
}

static json_t *pool_object(const struct daemon *d)
{
	struct pool_stats s;

	pool_get_stats(d->pool, &s);
	return json_pack("{s:o, s:o, s:o, s:o}", "limit_bytes", number(s.limit_bytes), "used_bytes",
		number(s.used_bytes), "largest_free_bytes", number(s.largest_free_bytes), "extents",
		number(s.n_extents));
}

static json_t *models_array(const struct daemon *d)
{
	json_t *array = json_array();

	for (size_t i = 0; i < registry_n_models(d->registry); i++) {
		const struct model *m = registry_model_at(d->registry, i);

		json_array_append_new(
			array, json_pack("{s:s, s:i, s:o, s:b, s:o}", "name", m->geometry.name, "layers",
				       (int)m->geometry.n_layers, "token_bytes",
				       number(geometry_token_bytes(&m->geometry)), "transform",
				       m->transform != NULL, "learning", learn_status(d->learn, m)));
	}
	return array;
}

static json_t *sessions_array(const struct daemon *d)
{
	json_t *array = json_array();

	for (const struct session *s = d->sessions; s; s = s->next)
		if (s->attached && !s->closed)
			json_array_append_new(
				array, json_pack("{s:i, s:s, s:i, s:o, s:i, s:o}", "id", (int)s->id,
					       "namespace", s->name_space_name, "uid", (int)s->uid,
					       "requests", number(s->n_served), "in_flight",
					       (int)s->n_requests, "pins", number(s->n_pins)));
	return array;
}

static json_t *requests_object(const struct daemon *d)
{
	static const char *const names[DAEMON_OPS] = {
		"nop", "lookup", "put", "get", "prefetch", "pin", "unpin", "remove", "sync", "observe"};
	json_t *object = json_object();

	for (int i = 0; i < DAEMON_OPS; i++)
		json_object_set_new(object, names[i], number(d->counters.n_requests[i]));
	json_object_set_new(object, "bad", number(d->counters.n_bad_requests));
	return object;
}

static json_t *status_object(struct daemon *d)
{
	const struct daemon_counters *n = &d->counters;
	const struct policy *policy =
		&policies_now(d->policies, (size_t)policies_find(d->policies, "default"))->policy[0];

	return json_pack(
		"{s:b, s:s, s:o, s:s, s:s, s:i, s:i, s:{s:i, s:i, s:i, s:f, s:f}, s:o, s:o, s:o, s:o, s:o, "
		"s:o, s:{s:o, s:o}, s:{s:o, s:o, s:o, s:o, s:o}}",
		"ok", 1, "version", CISTERN_VERSION, "uptime_ms", number(daemon_now_ms() - d->started_ms),
		"backend", "host", "kernels", d->kernels->name, "workers", (int)d->n_workers, "chunk_tokens",
		(int)d->config->chunk_tokens, "policy", "version", (int)policy->version, "sink_tokens",
		(int)policy->sink_tokens, "window_tokens", (int)policy->window_tokens, "ratio", policy->ratio,
		"max_error", policy->max_error, "pool", pool_object(d), "store", control_store_object(d),
		"cache", control_cache_object(d), "models", models_array(d), "sessions", sessions_array(d),
		"requests", requests_object(d), "transforms", "count",
		number(registry_n_transforms(d->registry)), "bytes",
		number(registry_transform_bytes(d->registry)), "chunks", "encoded", number(n->n_put_chunks),
		"decoded", number(n->n_get_chunks), "encoded_raw_bytes", number(n->put_raw_bytes),
		"encoded_frame_bytes", number(n->put_frame_bytes), "encoded_exact_bytes",
		number(n->put_raw_section_bytes));
}

static json_t *status(struct daemon *d, uid_t uid, const json_t *request)
{
	json_t *object = status_object(d), *more = governor_status(d->governor);

	(void)uid;
	(void)request;
	json_object_update(object, more);
	json_decref(more);
	json_object_set_new(object, "upkeep", steward_status(d->steward));
	json_object_set_new(object, "draining", json_boolean(d->draining));
	json_object_set_new(object, "shadow", fidelity_status(d->fidelity));
	json_object_set_new(object, "device", gpu_status(d->gpu));
	return object;
}

static json_t *drop_pool(struct daemon *d, uid_t uid, const json_t *request)
{
	(void)uid;
	(void)request;
	return json_pack("{s:b, s:o}", "ok", 1, "dropped", number(cache_drop_pool(d->cache)));
}

static const struct command {
	const char *name;
	json_t *(*run)(struct daemon *d, uid_t uid, const json_t *request);
} commands[] = {
	{"status", status},
	{"drop-pool", drop_pool},
	{"list", control_list},
	{"drain", control_drain},
	{"stop", control_stop},
	{"events", control_events},
	{"pool-resize", control_pool_resize},
	{"purge", control_purge},
	{"inspect", control_inspect},
	{"decisions", control_decisions},
	{"policy-get", control_policy_get},
	{"policy-list", control_policy_list},
	{"policy-set", control_policy_set},
	{"policy-reset", control_policy_reset},
	{"policy-save", control_policy_save},
};

json_t *control_failure(const char *why)
{
	return json_pack("{s:b, s:s}", "ok", 0, "error", why);
}

static json_t *carry_out(struct daemon *d, uid_t uid, const json_t *request)
{
	const char *name = json_string_value(json_object_get(request, "command"));

	if (!name)
		return control_failure("a command is a JSON object with a \"command\"");
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		if (!strcmp(commands[i].name, name))
			return commands[i].run(d, uid, request);
	return control_failure("no such command");
}

char *control_answer(struct daemon *d, uid_t uid, const char *text, size_t len)
{
	json_t *request = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
	json_t *answer = carry_out(d, uid, request);
	char *out = answer ? json_dumps(answer, JSON_COMPACT) : NULL;

	json_decref(request);
	json_decref(answer);
	return out;
}
