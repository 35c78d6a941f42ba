/*
 * One frame on its way to be made anew: what settling and coarsening share. Made on the front thread, run on
 * the steward's, ended on the front thread. There is one at a time.
 */
#ifndef RUNTIME_DAEMON_STEWARD_ERRAND_H
#define RUNTIME_DAEMON_STEWARD_ERRAND_H

#include "runtime/daemon/learn/background.h"
#include "runtime/daemon/registry.h"
#include "runtime/settle.h"

struct daemon;
struct steward;

enum errand_kind { ERRAND_SETTLE, ERRAND_COARSEN, ERRAND_KINDS };

struct errand {
	struct task task;
	struct steward *steward;
	enum errand_kind kind;
	struct index_entry *entry; /* held; NULL: none is on its way */
	struct frame_info before;
	const struct model *model;
	const struct transform *transform; /* held */
	struct policy policy;              /* that the chunk is kept by */
	uint32_t tenant;
	/* ERRAND_SETTLE */
	struct sinks_detector *detector; /* held, or NULL */
	struct detection *detection;     /* lent */
	float *seen;                     /* of attention, or NULL */
	struct settled settled;
	/* ERRAND_COARSEN */
	uint32_t rung; /* wanted */
	/* What came of it. */
	int status;
	uint8_t *frame;
	size_t frame_bytes;
	struct frame_info info;
	uint64_t started_ns, ended_ns;
	uint64_t give_up_ms; /* waits to take its place, until then */
};

/* The policy that a kept chunk is under: with the preset that it was put with, and its namespace's number. */
void steward_policy(
	const struct daemon *d, const struct index_entry *e, uint32_t *tenant, struct policy *out);

/* NULL: nobody has registered it since the start. */
const struct model *steward_model(const struct daemon *d, const struct index_entry *e);

/* On the steward's thread. */
void errand_run(struct task *task, struct background *b);

#endif
