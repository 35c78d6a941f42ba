/*
 * What the parts of a request share: request.c has its story, step.c one chunk of it on its way, put.c and
 * get.c what becomes of a chunk, restore.c the same on the GPU. Front thread, but for the jobs' run.
 */
#ifndef RUNTIME_DAEMON_REQUEST_INTERNAL_H
#define RUNTIME_DAEMON_REQUEST_INTERNAL_H

#include <stddef.h>

#include "policy/sinks/view.h"
#include "runtime/cuda/tier.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/device/chunk.h"
#include "runtime/daemon/device/coders.h"
#include "runtime/daemon/device/restore.h"
#include "runtime/daemon/device/signals.h"
#include "runtime/daemon/observe.h"
#include "runtime/daemon/request.h"

enum { PHASES_MAX = GEOMETRY_LAYERS_MAX };

struct request;

/* One chunk of a request on its way. */
struct step {
	struct job job; /* first of these two: a step is found from either */
	struct cache_wait wait;
	struct request *request;
	uint32_t chunk;
	struct index_entry *entry;
	int status;
	bool missing;
	uint8_t *frame; /* PUT: what the job made */
	size_t frame_bytes;
	struct frame_info info;
	const struct transform
		*transform;    /* GET: which the frame names; PUT: the model's, as it was then; held */
	struct sample *sample; /* PUT: to learn from; NULL: none */
	struct shadow *shadow; /* PUT: the original, to compare with; NULL: none */
	uint32_t n_class[BOARD_CLASSES]; /* PUT */
	struct plan plan;                /* PUT: what the policies make of the chunk */
	struct device_chunk *staged;     /* of memory on the GPU, while it is in the daemon's hands */
	bool unhanded;                   /* its copy from or to the GPU is still to be handed to the lane */
	/* PUT: as classified. on_device: the staged copy is encoded on the GPU. */
	uint8_t *classes; /* [n_tokens] */
	struct codec_options options;
	bool on_device;
	struct sinks_view view;              /* what of the copy the host gets then, if anything */
	struct device_statistics statistics; /* or what is computed of it instead */
	struct detection_statistics given;
	struct codec_chunk device_view;
	struct coder_put coder;
	struct image *image; /* of the frame that was made so */
	/* GET: its image in the GPU's memory; PUT: where that is made. Held; bytes 0: none. */
	struct tier_frame resident;
};

struct request {
	struct session *session;
	struct daemon *daemon;
	struct wire_sqe sqe;
	struct mapping *mapping;
	const struct model *model;
	uint8_t (*keys)[32]; /* [n_chunks] */
	uint8_t parent[32];
	uint64_t taken_bytes; /* of keys and blocks */
	uint32_t *blocks;
	uint32_t n_chunks; /* that are still wanted: a miss cuts it */
	uint32_t next;     /* chunk to start next */
	uint32_t n_active;
	uint32_t n_done; /* REMOVE: how many there were */
	int status;
	uint64_t bytes;
	uint32_t n_phases, phase;
	uint32_t phase_end[PHASES_MAX]; /* GET: layers [0, phase_end[i]) are complete after phase i */
	bool starting;
	struct cache_wait wait; /* SYNC */
	uint64_t serial, started_ns;
	struct observation *observation; /* OBSERVE */
	struct signals signals;          /* memory on the GPU */
	uint32_t n_unhanded;             /* steps */
	bool recorded;                   /* the phase's events are, or are about to be */
	/* GET: decoded on the GPU, with this transform, held; NULL: chunk by chunk, on the host. */
	const struct transform *restore_transform;
	struct restore *restore;              /* what is being restored, or was last */
	struct step *steps[DEVICE_BATCH_MAX]; /* whose frames are in the pool: they wait for each other */
	uint32_t n_ready;
	bool restoring;
};

/* request.c */
/* Starts chunks while there is room; ends the phase, and the request, with the last of them. */
void request_go_on(struct request *q);
void request_end(struct request *q);
void request_end_restore(struct request *q);

/* step.c */
struct stats_cache *request_stats(const struct request *q);
void request_chunk_id(const struct request *q, uint32_t chunk, struct index_key *out);
uint32_t request_chunk_tokens(const struct request *q, uint32_t chunk);
/* The request is as good as its first bad chunk. */
void request_cut(struct request *q, uint32_t chunk, int status);
/* A completion with CISTERN_MORE. */
void request_tell(struct request *q, uint32_t n_layers);
/* Memory on the GPU: records the phase's events once all of it is with the lane. */
void request_record_events(struct request *q);
/* NULL: out of memory, the request is cut. */
struct step *step_new(struct request *q, uint32_t chunk);
/* Goes on with the request, which may end. */
void step_end(struct step *step, int status);
/* Until the step ends. */
void step_use_transform(struct step *step, const struct transform *t);
/* The chunk where it lies in the client's memory, or in the copy of what lies on the GPU. */
struct codec_chunk step_chunk(const struct step *step);
/* Makes the step go by way of a copy. -ENOMEM. */
int step_stage(struct step *step);
void step_trace(const struct step *step, enum trace_name name, uint64_t bytes);

static inline struct step *step_of_wait(struct cache_wait *wait)
{
	return (struct step *)((char *)wait - offsetof(struct step, wait));
}

/* put.c, get.c */
void put_start(struct request *q, uint32_t chunk);
void get_start(struct request *q, uint32_t chunk);
/* The tokens are where they belong, or cannot be had. */
void get_end(struct step *step, int status);
/* The chunk's frame could not be decoded: it goes. */
void get_damaged(struct step *step, int status);
/* Where a layerwise GET may stop: after layers that no part reaches across. */
void request_find_phases(struct request *q);

/* restore.c */
/* Has the GPU decode it, if it can: q->restore_transform is set then. */
void request_choose_restore(struct request *q);
/* Restores the chunks that are ready, once all that are to go together are. */
void request_try_restore(struct request *q);

#endif
