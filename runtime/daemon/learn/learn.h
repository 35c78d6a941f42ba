/*
 * Online calibration: transforms that the daemon learns from what it is given to keep. Workers copy some of
 * the chunks that they encode; a background thread (background.h) adds them to covariances (student.h) and,
 * when the learner (policy/learner.h) says so, makes a transform of them, whose file (versions.h) is durable
 * before the first frame is made with it. New chunks use it from then on; chunks that were kept plain are
 * made anew with it, and versions that no frame needs any more are taken away (upkeep.h).
 *
 * Belongs to the front thread, which never waits for any of it: there are so many buffers for samples, and a
 * chunk that finds none free is not sampled. When [learn] is not enabled it loads the versions that are
 * there, so that their frames can be read, and does nothing else.
 */
#ifndef RUNTIME_DAEMON_LEARN_LEARN_H
#define RUNTIME_DAEMON_LEARN_LEARN_H

#include <jansson.h>

#include "runtime/daemon/learn/sample.h"
#include "runtime/daemon/registry.h"

struct daemon;
struct learn;

/* Loads the versions beside the store, oldest first, into the daemon's registry. To be called before the
 * operator's own transforms are loaded, which go before them. -ENOMEM, -errno. */
int learn_new(struct daemon *d, struct learn **out);
/* Begins to learn, if enabled: the operator's transforms are loaded now. */
int learn_start(struct learn *l);
/* Ends the thread, as soon as it comes to a rest; what it was at is given up. Nothing new is begun. */
void learn_stop(struct learn *l);
/* Stopped, and nothing in flight: see learn_is_idle. NULL is fine. */
struct learn *learn_free(struct learn *l);
bool learn_is_idle(const struct learn *l);

/* Readable when there is something to do; then learn_run does it. -1: nothing ever is. */
int learn_fd(const struct learn *l);
void learn_run(struct learn *l);

/* A chunk of so many tokens is about to be encoded. NULL: it is not to be sampled. */
struct sample *learn_sample(struct learn *l, const struct model *m, uint32_t n_tokens);
/* The worker is done with it: hands it to the background thread, when it was filled. */
void learn_take(struct learn *l, struct sample *sample);

/* What is known of a model, for `status`; null: nothing is learned for it. */
json_t *learn_status(const struct learn *l, const struct model *m);
/* The same in a word, empty when nothing is learned for it; and the share of energy captured now, -1: not
 * known. */
const char *learn_state(const struct learn *l, const struct model *m, double *captured);

#endif
