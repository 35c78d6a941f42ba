/* Operators' commands: a JSON object in, a JSON object out. docs/protocol.md lists them. Front thread. */
#ifndef RUNTIME_DAEMON_CONTROL_H
#define RUNTIME_DAEMON_CONTROL_H

#include <stddef.h>

struct daemon;

/* Carries out the command in text (not NUL-terminated). Returns the answer, malloc'd, the caller's: always an
 * object with "ok", and "error" when that is false. NULL: out of memory. */
char *control_answer(struct daemon *d, const char *text, size_t len);

#endif
