/* Operators' commands: a JSON object in, a JSON object out. docs/protocol.md lists them. Front thread. */
#ifndef RUNTIME_DAEMON_CONTROL_H
#define RUNTIME_DAEMON_CONTROL_H

#include <jansson.h>
#include <stddef.h>
#include <sys/types.h>

struct daemon;

/* Carries out the command in text (not NUL-terminated), for this user. Returns the answer, malloc'd, the
 * caller's: always an object with "ok", and "error" when that is false. NULL: out of memory, or, when
 * d->asking is NULL on return, that the answer comes later. */
char *control_answer(struct daemon *d, uid_t uid, const char *text, size_t len);

/* ---- for the files that carry commands out: each takes the whole request and returns the whole answer, or
 * NULL when it is out of memory ---- */

json_t *control_events(struct daemon *d, uid_t uid, const json_t *request);
/* Answers later: takes d->asking, and sets it to NULL. */
json_t *control_pool_resize(struct daemon *d, uid_t uid, const json_t *request);
json_t *control_purge(struct daemon *d, uid_t uid, const json_t *request);

json_t *control_list(struct daemon *d, uid_t uid, const json_t *request);
json_t *control_drain(struct daemon *d, uid_t uid, const json_t *request);
json_t *control_stop(struct daemon *d, uid_t uid, const json_t *request);

/* Parts of the status. */
json_t *control_store_object(const struct daemon *d);
json_t *control_cache_object(const struct daemon *d);
json_t *control_inspect(struct daemon *d, uid_t uid, const json_t *request);
json_t *control_decisions(struct daemon *d, uid_t uid, const json_t *request);
json_t *control_policy_get(struct daemon *d, uid_t uid, const json_t *request);
json_t *control_policy_list(struct daemon *d, uid_t uid, const json_t *request);
json_t *control_policy_set(struct daemon *d, uid_t uid, const json_t *request);
json_t *control_policy_reset(struct daemon *d, uid_t uid, const json_t *request);
json_t *control_policy_save(struct daemon *d, uid_t uid, const json_t *request);

/* The answer that says why a command was not carried out. */
json_t *control_failure(const char *why);

#endif
