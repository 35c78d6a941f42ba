/* What the board cannot count up by itself: levels, as pool, store, registry and sessions have them now, and
 * names of namespaces and models. Front thread. */
#ifndef RUNTIME_DAEMON_GAUGES_H
#define RUNTIME_DAEMON_GAUGES_H

#include <stdint.h>

struct daemon;
struct stats_cache;

/* Once, at start. */
void gauges_init(struct daemon *d);

/* To be called once a round, before the loop sleeps for up to timeout_ms (-1: for ever). Publishes the board
 * when something has changed and the last publication is old enough; else, with something to publish, makes
 * the sleep short enough. Returns the time-out to use. */
int gauges_publish(struct daemon *d, int timeout_ms);

/* The record of a namespace and model, for its names: those of the configuration and the registry, or ids. */
const struct stats_cache *gauges_names(
	struct daemon *d, const uint8_t name_space[16], const uint8_t fingerprint[16]);

#endif
