#include "runtime/daemon/events.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"

struct events {
	struct event *ring; /* event number i is at i % n_kept */
	size_t n_kept;
	uint64_t next; /* number of the next event */
};

static const char *const kind_names[EVENT_KINDS] = {
	"daemon", "client", "policy", "alarm", "store", "cache", "model"};

struct events *events_new(size_t n_kept)
{
	struct events *e = calloc(1, sizeof *e);

	if (!e)
		return NULL;
	e->ring = calloc(n_kept, sizeof *e->ring);
	e->n_kept = n_kept;
	e->next = 1;
	return e->ring ? e : events_free(e);
}

struct events *events_free(struct events *e)
{
	if (e)
		free(e->ring);
	free(e);
	return NULL;
}

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void events_add(
	struct events *e, enum event_kind kind, uid_t uid, const char *name_space, const char *format, ...)
{
	struct event *event = &e->ring[e->next % e->n_kept];
	va_list args;

	*event = (struct event){.number = e->next++, .time_ms = now_ms(), .kind = kind, .uid = uid};
	if (name_space)
		snprintf(event->name_space, sizeof event->name_space, "%s", name_space);
	va_start(args, format);
	vsnprintf(event->text, sizeof event->text, format, args);
	va_end(args);
	if (kind == EVENT_ALARM)
		log_warning("%s: %s", kind_names[kind], event->text);
	else
		log_info("%s: %s", kind_names[kind], event->text);
}

size_t events_read(
	const struct events *e, uint64_t from, struct event *out, size_t n, uint64_t *next, uint64_t *n_lost)
{
	const uint64_t oldest = e->next > e->n_kept ? e->next - e->n_kept : 1;
	size_t count = 0;

	*n_lost = from && from < oldest ? oldest - from : 0;
	if (from < oldest)
		from = oldest;
	for (; count < n && from < e->next; from++)
		out[count++] = e->ring[from % e->n_kept];
	*next = from < e->next ? from : e->next;
	return count;
}

const char *event_kind_name(enum event_kind kind)
{
	return kind_names[kind];
}

int event_kind_of(const char *name)
{
	for (int i = 0; i < EVENT_KINDS; i++)
		if (!strcmp(name, kind_names[i]))
			return i;
	return -1;
}
