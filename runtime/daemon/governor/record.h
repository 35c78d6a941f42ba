/*
 * What was decided for the chunks encoded last, and why: a bounded ring that `cistern inspect` asks. Memory:
 * about 3 KiB and 4 bytes a token and layer looked at for each of RECORDS_KEPT chunks. Owned by the front
 * thread; a record is filled by the worker that encodes the chunk, and handed over with the job.
 */
#ifndef RUNTIME_DAEMON_GOVERNOR_RECORD_H
#define RUNTIME_DAEMON_GOVERNOR_RECORD_H

#include "policy/sinks/decide.h"
#include "policy/sinks/view.h"
#include "runtime/attention-error.h"
#include "runtime/index.h"
#include "runtime/settle.h"

enum { RECORDS_KEPT = 256 };

struct record {
	struct index_key id;
	uint64_t position;
	uint32_t n_tokens;
	uint32_t policy_version;
	uint32_t rung;
	uint32_t preset;
	bool searched; /* a detector was there: scores mean something */
	bool trained;  /* and what */
	float threshold;
	struct sinks_view view; /* what `feature` of a finding means */
	uint8_t *classes;       /* [n_tokens], before promotions */
	float *scores;          /* [n_tokens] */
	float *by_layer;        /* [view.n_layers, n_tokens]: what each layer added */
	struct sinks_finding *findings;
	uint32_t n_findings;
	struct attention_error attention; /* as compared last; n_compared 0: it never was */
	uint32_t n_settled;               /* tokens that have left the window since, and were judged again */
};

/* For a chunk of n_tokens. NULL: out of memory. */
struct record *record_new(uint32_t n_tokens);
struct record *record_free(struct record *r);

struct records;

struct records *records_new(void);
struct records *records_free(struct records *r);
/* Takes the record; an older one of the same chunk goes. */
void records_add(struct records *r, struct record *record);
/* Notes what attention lost of a chunk, if there is a record of it. */
void records_compared(struct records *r, const struct index_key *id, const struct attention_error *e);
/* NULL: none is kept of that chunk. */
const struct record *records_find(const struct records *r, const struct index_key *id);
/* The chunk of a record was settled: its findings and classes are the record's now. Nothing happens when none
 * is kept of that chunk, or there is no memory. */
void records_settle(struct records *r, const struct index_key *id, const struct settled *s);
/* One whose key begins with these bytes, the newest; NULL: none. */
const struct record *records_find_prefix(const struct records *r, const uint8_t *key, size_t len);
/* The i-th of RECORDS_KEPT, the newest first; NULL: there are not so many. */
const struct record *records_at(const struct records *r, size_t i);

#endif
