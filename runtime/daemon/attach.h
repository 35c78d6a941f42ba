/*
 * The messages on a session's socket: hello, registrations, control. Each gets one answer, in order; a fault
 * is answered with a sentence that says what was wrong. Front thread.
 */
#ifndef RUNTIME_DAEMON_ATTACH_H
#define RUNTIME_DAEMON_ATTACH_H

#include <jansson.h>

#include "runtime/daemon/session.h"

/* The memory that session->leaving_id named is unmapped: sends the answer that waited for it. */
void attach_unregistered(struct session *s);

/* Answers to a registration. */
void attach_registered(struct session *s, uint32_t id);
void attach_refuse(struct session *s, int status, const char *text);

/* The answer to a control command that took time; it is taken. NULL: out of memory. */
void attach_answer(struct session *s, json_t *answer);

/* What a namespace's name is called in keys and records: XXH3-128 of it. */
void attach_name_space_id(const char *name, uint8_t out[16]);

#endif
