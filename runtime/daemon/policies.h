/*
 * The policies in force, one for each namespace, and how they are changed while the daemon runs. A change
 * makes a new immutable snapshot with the next version; work that has begun keeps the snapshot it began with,
 * so no chunk ever sees half a change. Owned by the front thread; a snapshot may be read by any thread that
 * holds a reference.
 */
#ifndef RUNTIME_DAEMON_POLICIES_H
#define RUNTIME_DAEMON_POLICIES_H

#include "policy/fields.h"
#include "runtime/config.h"

/* One namespace's policy, and the same with each preset laid over it, for requests that ask for one. All have
 * the same version. */
struct policy_snapshot {
	struct policy policy[POLICY_PRESETS]; /* by enum policy_preset; [0]: as it is */
};

struct policy_snapshot *policy_snapshot_ref(struct policy_snapshot *s);
struct policy_snapshot *policy_snapshot_unref(struct policy_snapshot *s);

struct policies;

/* One field to be set, by name. "preset" with a preset's name sets several. */
struct policy_change {
	const char *name, *value;
};

enum { POLICY_CHANGES_MAX = 64, POLICY_SUMMARY_MAX = 200 };

/* As the configuration has them, all of version 1. NULL: out of memory. */
struct policies *policies_new(const struct config *config);
struct policies *policies_free(struct policies *p);

/* The number of a namespace; -ENOENT. */
int policies_find(const struct policies *p, const char *name_space);
size_t policies_count(const struct policies *p);
const char *policies_name(const struct policies *p, size_t i);
/* 16 bytes, as frames name it. */
const uint8_t *policies_id(const struct policies *p, size_t i);

/* The snapshot in force, without a reference of the caller's. */
struct policy_snapshot *policies_now(const struct policies *p, size_t i);
/* The number of a namespace by its id (16 bytes, as frames name it); of "default" for an id that is not
 * configured. */
size_t policies_number(const struct policies *p, const uint8_t id[16]);
/* Its snapshot. */
struct policy_snapshot *policies_of(const struct policies *p, const uint8_t id[16]);
/* The version that was given out last. */
uint32_t policies_version(const struct policies *p);

/* Sets fields, all or none, in their order. summary: what changed, in one line, for the event log.
 * -EINVAL with a sentence in why that names the field; -ENOMEM. */
int policies_set(struct policies *p, size_t i, const struct policy_change *changes, size_t n,
	char summary[POLICY_SUMMARY_MAX], char *why, size_t why_len);
/* Sets fields (n 0: all) back to what the configuration says. Errors as policies_set. */
int policies_reset(struct policies *p, size_t i, const char *const *names, size_t n,
	char summary[POLICY_SUMMARY_MAX], char *why, size_t why_len);

/* Takes the policies of a configuration that was read anew, for the namespaces that there are; every one that
 * differs gets a new version. -ENOMEM: all stay as they were. */
int policies_reload(struct policies *p, const struct config *config);

/* Writes every namespace's policy as [policy NAME] sections: the whole file, replaced in one step. -errno of
 * the file. */
int policies_save(const struct policies *p, const char *path);

#endif
