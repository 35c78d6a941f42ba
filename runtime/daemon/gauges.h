/* What the board cannot count up by itself: levels, as pool, store, registry and sessions have them now, and
 * names of namespaces and models. Front thread. */
#ifndef RUNTIME_DAEMON_GAUGES_H
#define RUNTIME_DAEMON_GAUGES_H

#include <stdint.h>

struct daemon;

/* Once, at start. */
void gauges_init(struct daemon *d);

/* To be called once a round, before the loop sleeps for up to timeout_ms (-1: for ever). Publishes the board
 * when something has changed and the last publication is old enough; else, with something to publish, makes
 * the sleep short enough. Returns the time-out to use. */
int gauges_publish(struct daemon *d, int timeout_ms);

#endif
