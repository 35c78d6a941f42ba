/* A frame's header, classes and sections as JSON, for `cistern inspect`; of a chunk in the pool or of a file.
 * Pure. */
#ifndef RUNTIME_DAEMON_FRAME_JSON_H
#define RUNTIME_DAEMON_FRAME_JSON_H

#include <jansson.h>

#include "runtime/frame.h"

/* An object; NULL: not a frame, or damaged, or out of memory. */
json_t *frame_json(const void *frame, size_t len);

/* Runs of equal class: [[name, length], ...]. */
json_t *frame_json_classes(const uint8_t *classes, uint32_t n_tokens);

#endif
