/*
 * The models that clients have registered, and the transforms that were loaded for them. One struct model per
 * geometry, shared by all sessions, kept until the daemon ends. Front thread; a model's geometry and a
 * transform are immutable, so workers may read them.
 */
#ifndef RUNTIME_DAEMON_REGISTRY_H
#define RUNTIME_DAEMON_REGISTRY_H

#include "base/geometry.h"
#include "policy/transform.h"

enum { REGISTRY_MODELS_MAX = 256 };

struct registry;

struct model {
	struct geometry geometry;
	uint8_t fingerprint[16];
	const struct transform *transform; /* what new frames are made with; NULL: the plain codec */
};

struct registry *registry_new(void);
struct registry *registry_free(struct registry *r);

/* Loads a transform file. A later file for the same model replaces the earlier one for new frames; both stay
 * for old frames. One log line. -errno, -EBADMSG (said in a log line with the path). */
int registry_load_transform(struct registry *r, const char *path);

/* The same for one that is in memory, of len_bytes serialised; takes over the reference. -EEXIST: there is
 * one with its id; -ENOMEM: the reference stays the caller's. */
int registry_add_transform(struct registry *r, struct transform *t, size_t len_bytes);
/* Takes one away: new frames are made with what is left. -ENOENT; -EBUSY: it is held. */
int registry_remove_transform(struct registry *r, const uint8_t id[16]);
/* For as long as frames are made or read with it. */
void registry_hold(struct registry *r, const struct transform *t);
void registry_release(struct registry *r, const struct transform *t);

/* The transform with this id; NULL: not loaded. */
const struct transform *registry_transform(const struct registry *r, const uint8_t id[16]);

/* The model of this geometry, which has been checked; made when it is new. -ENOSPC: too many; -ENOMEM. */
int registry_model(struct registry *r, const struct geometry *g, struct model **out);

size_t registry_n_models(const struct registry *r);
const struct model *registry_model_at(const struct registry *r, size_t i);
size_t registry_n_transforms(const struct registry *r);
/* Bytes of the serialised transforms in memory. */
size_t registry_transform_bytes(const struct registry *r);

#endif
