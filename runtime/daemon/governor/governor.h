/*
 * What policies mean for the next chunk: its rung, its classes, what there is to learn from it; and how well
 * that goes, by namespace and model. The decisions are those of policy/; here is what they remember between
 * chunks.
 *
 * Belongs to the front thread. A plan is made there before a chunk is encoded, carried out by the worker that
 * encodes it, and handed back when that is done:
 *
 *     governor_plan; plan_classify and plan_learn on the worker; governor_note; plan_end
 */
#ifndef RUNTIME_DAEMON_GOVERNOR_GOVERNOR_H
#define RUNTIME_DAEMON_GOVERNOR_GOVERNOR_H

#include <jansson.h>

#include "policy/rate.h"
#include "runtime/daemon/governor/figures.h"
#include "runtime/daemon/governor/record.h"
#include "runtime/daemon/policies.h"
#include "runtime/daemon/registry.h"
#include "runtime/detection.h"

struct daemon;
struct governor;
struct tenancy;
struct insight;

struct plan {
	struct governor *governor;
	struct tenancy *tenancy;          /* namespace and model */
	struct insight *insight;          /* model */
	struct policy_snapshot *policies; /* held */
	const struct policy *policy;      /* in it */
	uint32_t preset;
	bool rated; /* a rung was chosen: it is to be noted */
	struct rate_plan rate;
	struct sinks_detector *detector; /* held; NULL: none yet, or none is wanted */
	struct detection *detection;     /* scratch, lent */
	/* For plan_classify: the chunk's, by that detector; the caller's. NULL: it computes them. */
	const struct detection_statistics *given;
	struct sinks_learner *learner; /* lent to this plan alone; NULL: no lesson */
	float *seen;           /* [2, n_tokens]: drawing and asked, a copy; NULL: no attention was seen */
	uint8_t *before;       /* [n_tokens]; NULL: not known */
	struct record *record; /* NULL: no memory for one */
	struct sinks_detector *learned; /* what plan_learn made */
};

/* NULL: out of memory. */
struct governor *governor_new(struct daemon *d);
struct governor *governor_free(struct governor *g);

/* For a chunk of n_tokens of a model that a session puts: tenant is its namespace's number, t what the frame
 * will be made with. Never fails for want of memory: what could not be had is left out. */
void governor_plan(struct governor *g, uint32_t tenant, const struct model *model, const struct transform *t,
	const struct index_key *id, uint32_t n_tokens, uint32_t preset, struct plan *plan);

/* What plan_classify and plan_learn are going to read of the chunk. */
enum plan_need {
	PLAN_NOTHING,    /* but how long it is, and where */
	PLAN_STATISTICS, /* the layers that are searched for sinks; nothing, when statistics are given */
	PLAN_LAYERS,     /* those layers */
};
enum plan_need plan_needs(const struct plan *plan);

/* On the worker: classes [n_tokens] of the chunk; seq_end: as policy_classify. */
int plan_classify(struct plan *plan, const struct codec_chunk *chunk, uint64_t seq_end, uint8_t *classes);
/* On the worker, when the chunk is encoded: the lesson, if this plan has one. */
void plan_learn(struct plan *plan, const struct codec_chunk *chunk);

/* The frame is made, with this header, as codec_encode gave it. */
void governor_note(struct governor *g, struct plan *plan, const struct frame_info *info);
/* Gives everything back; a plan that was not noted counts as nothing. */
void plan_end(struct plan *plan);

/* A chunk's attention was compared with what its frame gives back (shadow/fidelity.h). */
void governor_compared(struct governor *g, uint32_t tenant, const struct model *model,
	const struct index_key *id, const struct attention_error *e);
/* Policies were changed: alarms go by what they say now. */
void governor_review(struct governor *g);
/* Of a namespace and model; NULL: nothing was ever put there. */
const struct figures *governor_figures(const struct governor *g, uint32_t tenant, const struct model *model);

/* Attention that was shown of a sequence's chunks: drawing and asked, [n_tokens]. */
struct sinks_learner *governor_lend_learner(struct governor *g, const struct model *model);
void governor_take_lesson(struct governor *g, const struct model *model, struct sinks_learner *learner,
	struct sinks_detector *learned);
void governor_saw(struct governor *g, const struct index_key *id, const float *drawing, const float *asked,
	uint32_t n_tokens);
struct detection *governor_lend_detection(struct governor *g);
void governor_return_detection(struct governor *g, struct detection *detection);

/* For judging a kept chunk once more, what is known by now: its model's detector, with a reference, or NULL;
 * the attention that was seen, [2, n_tokens], a copy that is the caller's, or NULL. */
void governor_recall(struct governor *g, const struct model *model, const struct index_key *id,
	uint32_t n_tokens, struct sinks_detector **detector, float **seen);
/* A kept chunk was settled. */
void governor_settled(struct governor *g, const struct index_key *id, const struct settled *s);
/* The frame of a kept chunk, whose header was `before`, was made anew under p: is the bound still kept? What
 * the frame had lost already is not held against it: the bound may have been another then. */
void governor_remade(struct governor *g, uint32_t tenant, const struct model *model, const struct policy *p,
	const struct frame_info *before, const struct frame_info *info);

/* Decisions kept of the last chunks. */
const struct records *governor_records(const struct governor *g);
/* By namespace and model: what is achieved, errors, alarms; and what is known of each model's sinks. */
json_t *governor_status(const struct governor *g);

#endif
