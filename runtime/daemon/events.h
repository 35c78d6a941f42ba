/*
 * What has happened in the daemon that an operator may ask about later: a bounded ring of typed events, each
 * with its time, who caused it and a sentence. Numbered from 1; a reader asks from a number on and is told
 * when what it asked for has been overwritten. Owned by the front thread; workers hand what they noticed back
 * with their jobs.
 */
#ifndef RUNTIME_DAEMON_EVENTS_H
#define RUNTIME_DAEMON_EVENTS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { EVENTS_KEPT = 1024, EVENT_TEXT_MAX = 224, EVENT_NAMESPACE_MAX = 64 };

enum event_kind {
	EVENT_DAEMON, /* start, stop, reload */
	EVENT_CLIENT, /* connections */
	EVENT_POLICY, /* a policy was changed, or a change was refused */
	EVENT_ALARM,  /* a figure left its bound, or came back */
	EVENT_STORE,
	EVENT_CACHE, /* chunks removed by an operator; pressure on cold ones */
	EVENT_MODEL, /* models and transforms */
	EVENT_KINDS
};

#define EVENT_NOBODY ((uid_t)-1) /* the daemon itself */

struct event {
	uint64_t number;
	uint64_t time_ms; /* since 1970 */
	enum event_kind kind;
	uid_t uid;                            /* whose doing; EVENT_NOBODY */
	char name_space[EVENT_NAMESPACE_MAX]; /* empty: none in particular */
	char text[EVENT_TEXT_MAX];
};

struct events;

/* Room for n_kept. NULL: out of memory. */
struct events *events_new(size_t n_kept);
struct events *events_free(struct events *e);

/* Notes an event, and logs it. name_space: NULL for none. A text that is too long is cut. */
void events_add(struct events *e, enum event_kind kind, uid_t uid, const char *name_space, const char *format,
	...) __attribute__((format(printf, 5, 6)));

/* Copies events numbered `from` and up, oldest first, at most n. Returns how many. *next: the number to ask
 * from the next time; *n_lost: how many of those asked for are no longer there. */
size_t events_read(
	const struct events *e, uint64_t from, struct event *out, size_t n, uint64_t *next, uint64_t *n_lost);

/* "policy", "alarm", ...; and the kind of a name, or -1. */
const char *event_kind_name(enum event_kind kind);
int event_kind_of(const char *name);

#endif
