/*
 * The search for sinks in a chunk where it lies in an engine's memory: kernels measure, policy/sinks judges.
 * Holds no state but scratch memory, which belongs to the calling thread; detectors are only read, a learner
 * belongs to the caller for the call.
 */
#ifndef RUNTIME_DETECTION_H
#define RUNTIME_DETECTION_H

#include "policy/sinks/decide.h"
#include "policy/sinks/learner.h"
#include "policy/sinks/observe.h"
#include "runtime/codec.h"

struct detection;

/* NULL: out of memory. */
struct detection *detection_new(const struct kernels *kernels);
struct detection *detection_free(struct detection *d);
/* Bytes of scratch held now; and giving them back. */
size_t detection_scratch_bytes(const struct detection *d);
void detection_trim(struct detection *d);

/* Scores a chunk's tokens: sets what a detector tells in the evidence; its arrays are valid until the next
 * call on d. The detector must be of the chunk's geometry. -ENOMEM. */
int detection_score(struct detection *d, const struct codec_chunk *chunk,
	const struct sinks_detector *detector, struct sinks_evidence *evidence);
/* The same for tokens that need not follow each other: token i of the chunk's run stands at positions[i] of
 * its sequence. The chunk's own position is not looked at. */
int detection_score_at(struct detection *d, const struct codec_chunk *chunk, const uint64_t *positions,
	const struct sinks_detector *detector, struct sinks_evidence *evidence);

/* Statistics of a chunk's tokens that were computed elsewhere: of the view's layer l (by its index) and plane
 * p [n_tokens, n_heads] at of[l][p], as kernels->statistics has them. */
struct detection_statistics {
	const struct token_statistic *of[SINKS_LAYERS_MAX][GEOMETRY_PLANES_MAX];
};

/* The same from statistics, those of the detector's view against its bases: nothing of the chunk is read. */
int detection_score_given(struct detection *d, const struct detection_statistics *statistics, size_t n_tokens,
	const struct sinks_detector *detector, struct sinks_evidence *evidence);

/* Of the tokens scored last, the one found: the feature that added most. */
uint16_t detection_top(const struct detection *d, const struct sinks_detector *detector,
	const struct sinks_finding *finding);

/* Of the tokens scored last: what each layer of the view added to the score. out: [n_layers, n_tokens]. */
void detection_by_layer(
	const struct detection *d, const struct sinks_detector *detector, size_t n_tokens, float *out);

/* Hands a chunk's tokens to the learner. attention: [n_tokens] as sinks_learn wants it, or NULL. -ENOMEM. */
int detection_learn(struct detection *d, const struct codec_chunk *chunk, struct sinks_learner *learner,
	const float *attention);

/* Query vectors of one layer, as the model multiplies them with cached keys (rotated): [n_queries, n_heads,
 * dim] f32, n_heads a multiple of the key plane's. They are of one sequence, in order of position. */
struct detection_queries {
	uint32_t n_queries, n_heads;
	const uint64_t *positions; /* [n_queries], each below the run's length */
	float scale;               /* of the scores, 1 / sqrt(dim) as a rule */
	const float *values;
};

/* The attention of these queries over a run of tokens from position 0 on, the keys read from one layer's
 * pages of the key plane: raises what was observed, [n_tokens] each, NAN at first. A token is judged by the
 * nearest group of queries (those of one chunk of chunk_tokens) behind its own chunk; what a chunk's own
 * queries give its tokens says more of how near they are. Tokens behind which there is none stay as they are.
 * -ENOMEM. */
int detection_observe(struct detection *d, const struct plane *plane, const struct kv_pages *pages,
	const struct kv_run *run, uint32_t n_tokens, uint32_t chunk_tokens,
	const struct detection_queries *queries, const struct observed *out);

#endif
