#include <stdlib.h>

#include "runtime/daemon/control.h"
#include "runtime/daemon/daemon.h"

/* Events of one answer: the texts of so many fit into one message. */
enum { ANSWER_EVENTS = 128 };

static json_t *event_object(const struct event *e)
{
	json_t *o = json_pack("{s:I, s:I, s:s, s:s, s:s}", "number", (json_int_t)e->number, "time_ms",
		(json_int_t)e->time_ms, "kind", event_kind_name(e->kind), "namespace", e->name_space, "text",
		e->text);

	json_object_set_new(o, "uid", e->uid == EVENT_NOBODY ? json_null() : json_integer(e->uid));
	return o;
}

json_t *control_events(struct daemon *d, uid_t uid, const json_t *request)
{
	const json_t *from = json_object_get(request, "from");
	struct event *list;
	json_t *array;
	uint64_t next, n_lost;
	size_t n;

	(void)uid;
	if (from && (!json_is_integer(from) || json_integer_value(from) < 0))
		return control_failure("\"from\" is not an event's number");
	list = malloc(ANSWER_EVENTS * sizeof *list);
	array = json_array();
	if (!list || !array) {
		free(list);
		json_decref(array);
		return NULL;
	}
	n = events_read(d->events, (uint64_t)json_integer_value(from), list, ANSWER_EVENTS, &next, &n_lost);
	for (size_t i = 0; i < n; i++)
		json_array_append_new(array, event_object(&list[i]));
	free(list);
	return json_pack("{s:b, s:o, s:I, s:I}", "ok", 1, "events", array, "next", (json_int_t)next, "lost",
		(json_int_t)n_lost);
}
