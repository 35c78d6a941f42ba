/*
 * OBSERVE: attention that an engine shows for a sequence whose keys lie in its memory. The request is checked
 * and copied on the front thread; a worker computes where attention rested and teaches the model's detector;
 * then the front thread keeps the result by chunk, for the puts that follow. What lies on the GPU is staged
 * piece by piece, the keys of one layer or the tokens of one chunk, with a job for each.
 */
#ifndef RUNTIME_DAEMON_OBSERVE_H
#define RUNTIME_DAEMON_OBSERVE_H

#include <math.h>

#include "policy/sinks/observe.h"
#include "runtime/daemon/mapping.h"
#include "runtime/daemon/session.h"
#include "runtime/daemon/worker.h"

struct device_chunk;
struct query_sample;

enum { OBSERVATION_PICKS_MAX = 4 };

/* What a job does. */
enum observation_piece {
	OBSERVE_ALL,   /* everything, in memory that is mapped */
	OBSERVE_SUMS,  /* what needs none of the engine's memory */
	OBSERVE_LAYER, /* the queries of layer next_layer */
	OBSERVE_COUNT, /* which chunks are judged */
	OBSERVE_CHUNK, /* the lesson of chunk next_chunk */
	OBSERVE_END,
};

struct observation {
	struct job job; /* first */
	struct daemon *daemon;
	void *owner; /* the caller's own */
	const struct model *model;
	const struct mapping *mapping; /* the caller's, until done */
	const uint32_t *blocks;        /* the caller's */
	const uint8_t (*keys)[32];     /* [n_chunks], the caller's */
	uint32_t block_offset, n_tokens, n_chunks;
	uint8_t name_space[16];
	struct wire_observation head;
	uint8_t *data; /* what follows the header, a copy */
	size_t data_bytes;
	struct detection *detection;
	struct sinks_learner *learner; /* NULL: lent to somebody else now */
	struct sinks_detector *learned;
	double mistaken_max, multiple; /* for the detector made */
	struct observed observed;      /* one allocation, at drawing */
	uint32_t n_judged;             /* chunks, from the first on */
	uint32_t n_picks;
	/* Queries kept of some chunks, to compare what attention gets from them: shadow/fidelity.h. */
	struct query_sample *picks[OBSERVATION_PICKS_MAX];
	int status;
	void (*done)(struct observation *o); /* on the front thread */
	enum observation_piece piece;
	uint32_t next_layer, next_chunk;
	struct lane **lane;          /* the session's: memory on the GPU */
	struct device_chunk *staged; /* the piece's tokens; NULL: they are where the mapping says */
};

/* By what scores are multiplied. */
static inline float observation_scale(const struct wire_observation *head, uint32_t dim)
{
	return head->scale > 0 ? head->scale : 1 / sqrtf((float)dim);
}

/* Copies the observation at this offset of the session's arena and checks it against the model. The fields up
 * to name_space are set by the caller before, and done. -EINVAL, -ENOMEM. */
int observation_take(struct observation *o, const struct session *s, uint64_t data_off);
/* Hands it to a worker. */
void observation_start(struct observation *o);
void observation_fini(struct observation *o);

#endif
