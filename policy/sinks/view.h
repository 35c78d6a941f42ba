/*
 * What of a model the search for sinks looks at: a few layers spread over its depth, the last one among them,
 * and in each every plane, its heads folded into a few groups. A handful of layers is enough, since a sink is
 * one in most of them, and keeps the search a small part of encoding. Plain data that follows from the
 * geometry.
 *
 * Of every layer, plane and group there are three signals of a token; together they are its features.
 */
#ifndef POLICY_SINKS_VIEW_H
#define POLICY_SINKS_VIEW_H

#include <stddef.h>
#include <stdint.h>

#include "base/geometry.h"

enum {
	SINKS_LAYERS_MAX = 4,
	SINKS_GROUPS_MAX = 8,
	SINKS_SIGNALS = 3,
	SINKS_FEATURES_MAX = SINKS_LAYERS_MAX * GEOMETRY_PLANES_MAX * SINKS_GROUPS_MAX * SINKS_SIGNALS,
};

enum sinks_signal {
	SINKS_NORM = 0,      /* log of the squared norm */
	SINKS_DISTANCE = 1,  /* log of the distance to the mean token, in standard deviations */
	SINKS_DIRECTION = 2, /* along the learned sink direction */
};

struct sinks_view {
	uint32_t n_layers; /* looked at */
	uint32_t layers[SINKS_LAYERS_MAX];
	uint32_t n_planes;
	uint32_t n_heads[GEOMETRY_PLANES_MAX];
	uint32_t n_groups[GEOMETRY_PLANES_MAX];
	uint32_t width[GEOMETRY_PLANES_MAX]; /* features of one token in one layer */
	uint32_t first[GEOMETRY_PLANES_MAX]; /* feature number of group 0 of the plane, within its layer */
	uint32_t per_layer;                  /* features of a layer */
	uint32_t n_features;
};

void sinks_view_init(struct sinks_view *view, const struct geometry *g);

/* A feature's number, and the way back. */
uint32_t sinks_feature(const struct sinks_view *view, uint32_t layer_index, uint32_t plane, uint32_t group,
	enum sinks_signal signal);
struct sinks_place {
	uint32_t layer; /* of the model */
	uint32_t plane;
	uint32_t group;
	enum sinks_signal signal;
};
struct sinks_place sinks_place(const struct sinks_view *view, uint32_t feature);

static inline uint32_t sinks_group(const struct sinks_view *view, uint32_t plane, uint32_t head)
{
	return (uint32_t)((uint64_t)head * view->n_groups[plane] / view->n_heads[plane]);
}

#endif
