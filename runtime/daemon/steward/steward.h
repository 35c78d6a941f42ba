/*
 * The steward looks after chunks that are kept already, in the background and one at a time:
 *
 * - A chunk that the window has left behind, since its successors came, is settled (runtime/settle.h): once,
 *   when the window has left all of it, so that a chunk is written to the disk twice at most.
 * - In mode=pressure, as the pool fills, cold chunks are coded on coarser rungs, from their levels.
 *
 * Either way a new frame is made of the old one on a thread with a share of a core, and takes its place when
 * nobody reads the chunk and it is not on its way to or from the disk; else the steward waits for a moment,
 * and gives up after a while: there will be another occasion. A GET that has begun to read a frame goes on
 * reading it. Nothing is read from the disk for any of this.
 *
 * Chunks to be settled wait in a line that is bounded and kept nowhere: what is lost with it, or passed over,
 * is found again when the chunk is next read. Belongs to the front thread.
 */
#ifndef RUNTIME_DAEMON_STEWARD_STEWARD_H
#define RUNTIME_DAEMON_STEWARD_STEWARD_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/index.h"

struct daemon;
struct steward;

/* Starts its thread. -ENOMEM, -errno. */
int steward_new(struct daemon *d, struct steward **out);
/* Ends the thread, as soon as it comes to a rest, and what is in flight. NULL is fine. */
void steward_stop(struct steward *s);
/* Stopped. NULL is fine. */
struct steward *steward_free(struct steward *s);

/* A chunk was put: the first of its tokens stands at position, n_window of them are in the window, end tokens
 * are known of its sequence. */
void steward_put(struct steward *s, struct index_entry *e, uint32_t preset, uint64_t position,
	uint32_t n_window, uint64_t end);
/* A chunk whose last token stands before chunk_end was read by one who knows end tokens of its sequence, all
 * of them kept. */
void steward_read(struct steward *s, struct index_entry *e, uint64_t chunk_end, uint64_t end);

/* Readable when the thread has finished something; then steward_run is to be called. */
int steward_fd(const struct steward *s);
void steward_run(struct steward *s);
/* Begins what is to be begun. Returns in how many ms to call it next; -1: when something has happened. */
int steward_tick(struct steward *s);

/* Cold chunks are being made coarser. */
bool steward_has_pressure(const struct steward *s);
/* For `status`. */
json_t *steward_status(const struct steward *s);

#endif
