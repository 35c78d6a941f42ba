/*
 * What is known of one model's sinks: the mean token, the direction in which sinks lie, how the signals are
 * spread, and which of them have foretold the attention that was seen. Immutable, shared by reference count;
 * any thread may read it. A learner (learner.h) makes a new one when it knows more.
 *
 * The score of a token is the logarithm of the attention it is expected to rest, in multiples of the uniform
 * share, when the detector has learned that from attention it has seen (trained). Before, no signal can be
 * trusted alone, since each means different things in different models; the score is then how far the
 * token's keys, on average over heads, and its values, in their most unusual head, lie from the mean token,
 * in standard deviations of that sum over tokens.
 *
 * A detector that has learned knows that measure too: what it learned holds for tokens like those it learned
 * from, and one that lies far from all of them may be anything.
 */
#ifndef POLICY_SINKS_DETECTOR_H
#define POLICY_SINKS_DETECTOR_H

#include <stdbool.h>

#include "policy/sinks/view.h"

/* Of one layer and plane: [width] each. */
struct sinks_basis {
	float *centre;
	float *weight; /* one over the variance */
	float *direction;
};

struct sinks_detector {
	struct sinks_view view;
	uint64_t n_tokens;   /* that the means and spreads rest on */
	uint64_t n_observed; /* whose attention was seen */
	bool trained;
	struct sinks_basis basis[SINKS_LAYERS_MAX][GEOMETRY_PLANES_MAX];
	float mean[SINKS_FEATURES_MAX];
	float scale[SINKS_FEATURES_MAX];       /* one over the standard deviation; 0: tells nothing */
	float coefficient[SINKS_FEATURES_MAX]; /* trained: score = offset + sum of coefficient * z */
	float offset;
	float cold_mean, cold_scale; /* of the cold sum; trained: over tokens that are no sinks */
	float familiar;              /* trained: how unusual these are, but for one in 500 */
	float threshold; /* trained: predicted scores from here on are sinks; chosen from attention seen */
	float caught;    /* share of the sinks seen that it catches, and of the others, on tokens held out */
	float mistaken;
	float correlation; /* of predicted and seen scores, on tokens held out */
};

/* An empty one, for the learner to fill. NULL: out of memory. */
struct sinks_detector *sinks_detector_new(const struct sinks_view *view);
struct sinks_detector *sinks_detector_ref(struct sinks_detector *d);
struct sinks_detector *sinks_detector_unref(struct sinks_detector *d);

/* From sums over features to features. statistics: [n_tokens, n_heads, 3] of one layer (by its index in the
 * view) and plane: squared norm, weighted squared distance, dot product with the direction. features:
 * [n_tokens, view->n_features]; those of this layer and plane are written. */
void sinks_features(const struct sinks_view *view, uint32_t layer_index, uint32_t plane,
	const float *statistics, size_t n_tokens, float *features);

/* Scores [n_tokens] from features. Values that are not finite count as far out. */
void sinks_score(const struct sinks_detector *d, const float *features, size_t n_tokens, float *scores);

/* How unusual tokens are: the score of a detector that has not learned. */
void sinks_unusual(const struct sinks_detector *d, const float *features, size_t n_tokens, float *unusual);

/* The feature that added most to the score of one token; or to how unusual it is. */
uint16_t sinks_top(const struct sinks_detector *d, const float *features, bool unusual);

/* What the view's layer l adds to a token's score; cold, how far out its mean signal lies there. */
float sinks_layer_score(const struct sinks_detector *d, const float *features, uint32_t l);

#endif
