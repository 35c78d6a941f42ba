/* What operators ask of the daemon as a whole: a list of its chunks, no new engines, the end. */
#include "runtime/daemon/control.h"

#include <string.h>

#include "runtime/daemon/daemon.h"
#include "runtime/daemon/gauges.h"

enum {
	LIST_ANSWER = 256,     /* chunks of one answer, which must fit into a message */
	LIST_LOOKED_AT = 8192, /* numbers of one answer, so that engines do not wait for a list */
};

static void hex(const uint8_t *bytes, size_t n, char *out)
{
	for (size_t i = 0; i < n; i++) {
		out[2 * i] = "0123456789abcdef"[bytes[i] >> 4];
		out[2 * i + 1] = "0123456789abcdef"[bytes[i] & 15];
	}
	out[2 * n] = 0;
}

static json_t *chunk_object(
	const struct index *x, const struct index_entry *e, uint32_t number, const struct stats_cache *names)
{
	static const uint8_t plain[16] = {0};
	const uint8_t *transform = index_transform(x, e);
	char key[65], id[33] = "";

	hex(e->key, 32, key);
	if (memcmp(transform, plain, 16) != 0)
		hex(transform, 16, id);
	return json_pack("{s:I, s:s, s:s, s:s, s:i, s:I, s:I, s:b, s:b, s:i, s:s, s:I}", "number",
		(json_int_t)number, "namespace", names->name_space, "model",
		names->model[0] ? names->model : names->fingerprint, "key", key, "tokens", (int)e->n_tokens,
		"raw_bytes", (json_int_t)e->raw_bytes, "frame_bytes", (json_int_t)e->frame_bytes, "in_pool",
		e->record != NULL, "on_disk", index_location(e).len_pages != 0, "pins", (int)e->n_pins,
		"transform", id, "parent", (json_int_t)e->parent);
}

json_t *control_list(struct daemon *d, uid_t uid, const json_t *request)
{
	const char *wanted = json_string_value(json_object_get(request, "namespace"));
	const json_t *from = json_object_get(request, "from");
	const struct index *x = cache_index(d->cache);
	const uint32_t end = index_end(x);
	uint32_t number = json_is_integer(from) ? (uint32_t)json_integer_value(from) : 1, looked = 0;
	json_t *array = json_array();

	(void)uid;
	if ((from && !json_is_integer(from)) || json_integer_value(from) < 0 ||
		json_integer_value(from) > UINT32_MAX) {
		json_decref(array);
		return control_failure("\"from\" is not a chunk's number");
	}
	for (number = number ? number : 1;
		number < end && looked < LIST_LOOKED_AT && json_array_size(array) < LIST_ANSWER;
		number++, looked++) {
		const struct index_entry *e = index_at(x, number);
		const struct stats_cache *names;
		const struct index_owner *owner;

		if (!e->owner || e->dead || !e->frame_bytes)
			continue;
		owner = index_owner(x, e->owner);
		names = gauges_names(d, owner->name_space, owner->fingerprint);
		if (!wanted || !strcmp(wanted, names->name_space))
			json_array_append_new(array, chunk_object(x, e, number, names));
	}
	return json_pack(
		"{s:b, s:o, s:I}", "ok", 1, "chunks", array, "next", (json_int_t)(number < end ? number : 0));
}

json_t *control_drain(struct daemon *d, uid_t uid, const json_t *request)
{
	const json_t *on = json_object_get(request, "on");
	struct cache_stats cache;
	uint32_t n_engines = 0;

	if (on && !json_is_boolean(on))
		return control_failure("\"on\" is neither true nor false");
	if (on && json_is_true(on) != d->draining) {
		d->draining = json_is_true(on);
		events_add(d->events, EVENT_DAEMON, uid, NULL, "%s",
			d->draining ? "draining: no new engines are taken" : "no longer draining");
	}
	for (const struct session *s = d->sessions; s; s = s->next)
		n_engines += s->attached && !s->closed;
	cache_get_stats(d->cache, &cache);
	return json_pack("{s:b, s:b, s:i, s:I, s:I}", "ok", 1, "draining", d->draining, "engines",
		(int)n_engines, "unwritten", (json_int_t)cache.n_unwritten, "writing_bytes",
		(json_int_t)cache.writing_bytes);
}

json_t *control_stop(struct daemon *d, uid_t uid, const json_t *request)
{
	(void)request;
	events_add(d->events, EVENT_DAEMON, uid, NULL, "stopping: an operator asked for it");
	d->stopping = true;
	return json_pack("{s:b}", "ok", 1);
}
