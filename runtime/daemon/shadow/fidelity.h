/*
 * What compression costs attention, measured while the daemon serves: chunks that were chosen are kept
 * uncompressed beside their frames (shadow=), and when an engine shows queries that stand behind such a
 * chunk, what they get from the original and from what the frame gives back is compared. Queries may also
 * come first: those of chunks that will be chosen (attention_share=, shadow=) wait for their put. The result
 * goes to the governor, which keeps the running figure and raises the alarm.
 *
 * Nobody waits for it. A put or an OBSERVE that takes part copies some bytes on its worker; decoding and
 * attention run on a background thread, for no more than a tenth of a core; memory has one limit
 * (shadow_memory), and what finds no room, or finds too many comparisons waiting, does not take place. All of
 * it is dropped when the machine runs short of memory, and a namespace's when its mode is pressure and the
 * pool is as full as pressure_from. Front thread, but for fidelity_fill and shadow_fill.
 */
#ifndef RUNTIME_DAEMON_SHADOW_FIDELITY_H
#define RUNTIME_DAEMON_SHADOW_FIDELITY_H

#include <jansson.h>

#include "runtime/daemon/observe.h"
#include "runtime/daemon/shadow/shadows.h"

struct daemon;
struct fidelity;
struct stats_daemon;

/* NULL: out of memory. The background thread starts with the first comparison. */
struct fidelity *fidelity_new(struct daemon *d);
/* Ends the thread; what it was at comes back. Twice is fine. */
void fidelity_stop(struct fidelity *f);
/* Stopped, and nothing lent. NULL is fine. */
struct fidelity *fidelity_free(struct fidelity *f);

/* PUT: the chunk's shadow, to be filled by its worker and taken back; NULL: it was not chosen, or there is no
 * room. */
struct shadow *fidelity_lend(struct fidelity *f, const struct session *session, const struct model *model,
	const struct index_key *id, uint32_t n_tokens);
/* The chunk was encoded, into this frame, which is only read; NULL: it was not, and the shadow goes. */
void fidelity_take(struct fidelity *f, struct shadow *shadow, const void *frame, size_t frame_bytes);

/* OBSERVE: chooses of which chunks queries are kept; the worker copies them; they are taken. */
void fidelity_pick(struct fidelity *f, struct observation *o);
void fidelity_fill(struct observation *o);
void fidelity_observed(struct fidelity *f, struct observation *o);

/* A chunk, or all of a namespace, is forgotten: so is what was kept of it here. */
void fidelity_forget(struct fidelity *f, const struct index_key *id);
void fidelity_forget_name_space(struct fidelity *f, const uint8_t name_space[16]);

/* SOURCE_FIDELITY: comparisons have ended. */
void fidelity_reap(struct fidelity *f);
/* Gives back what is to go by now. Returns in how many ms to call it next; -1: no need. */
int fidelity_tick(struct fidelity *f, uint64_t now_ms);

/* Limit, bytes, chunks, what became of them. */
json_t *fidelity_status(const struct fidelity *f);
void fidelity_gauges(const struct fidelity *f, struct stats_daemon *out);

#endif
