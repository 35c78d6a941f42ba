/*
 * How well compression does in a namespace, with a model, as it goes on: what its frames lost by their own
 * account, what attention lost where that was compared, and the alarms when one of them leaves its bound.
 * Plain data, one owner.
 */
#ifndef RUNTIME_DAEMON_GOVERNOR_FIGURES_H
#define RUNTIME_DAEMON_GOVERNOR_FIGURES_H

#include "policy/alarm.h"
#include "policy/policy.h"
#include "runtime/attention-error.h"
#include "runtime/frame.h"

enum {
	FIGURES_CHUNKS = 64,        /* over about so many of the last frames errors are means */
	FIGURES_COMPARED = 16,      /* and over so many comparisons */
	FIGURES_ALARM_CHUNKS = 32,  /* before which no error is called bad */
	FIGURES_ALARM_COMPARED = 4, /* nor what attention lost */
};

struct figures {
	double error[GEOMETRY_PLANES_MAX]; /* of coded tokens, mean */
	double worst[GEOMETRY_PLANES_MAX];
	uint64_t n_chunks, n_tokens, n_raw, n_sinks;
	uint64_t n_violations; /* planes of chunks with a token over the bound that it was coded under */
	double attention, attention_worst;
	uint32_t attention_layer, attention_head; /* where that was */
	uint64_t n_compared;
	struct alarm error_alarm, attention_alarm;
};

/* A frame was made under this policy. */
void figures_frame(struct figures *f, const struct policy *p, const struct frame_info *info);
/* A kept frame was made anew under this policy. What it had lost before is not held against it: the bound may
 * have been another then. */
void figures_remade(struct figures *f, const struct policy *p, const struct frame_info *before,
	const struct frame_info *info);
/* A chunk's attention was compared. */
void figures_attention(struct figures *f, const struct attention_error *e);

/* The larger of the planes' errors, which is what alarm_error bounds. */
double figures_error(const struct figures *f);
/* The alarms, after any of the above or when the policy was changed. */
void figures_review(
	struct figures *f, const struct policy *p, enum alarm_turn *error, enum alarm_turn *attention);

#endif
