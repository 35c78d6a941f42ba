/* A question to the daemon's control, and what every command does when it goes wrong. */
#ifndef TOOLS_OPERATE_ASK_H
#define TOOLS_OPERATE_ASK_H

#include <jansson.h>

/* Sends the request, which is taken, to the daemon at socket (NULL: the default). Returns its answer, whose
 * "ok" is true; or NULL, having said why on stderr as "cistern COMMAND: ...". Blocks up to timeout_ms (-1:
 * for ever). */
json_t *ask(const char *command, const char *socket, json_t *request, int timeout_ms);

/* A number of the object, 0 where there is none. */
double ask_number(const json_t *object, const char *key);
/* A text of the object, empty where there is none. */
const char *ask_text(const json_t *object, const char *key);

/* Bytes for people: "1.5 GiB". */
const char *ask_bytes(double n, char out[32]);

#endif
