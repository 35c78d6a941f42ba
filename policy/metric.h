/*
 * What an error of a key or a value costs attention, feature by feature: the transform's metric, learned from
 * queries that the model has asked. Pure; one owner, one thread at a time.
 *
 * Keys. The logit of a query q at position m and a key k at position n is (R_m q)^T (R_n k), R the rotation;
 * an error e of the key before rotation moves it by ((R_n)^T R_m q)^T e. Its mean square is e^T M e with M
 * the second moment of the queries as keys at all the positions behind them see them. Rotation makes M nearly
 * diagonal: its diagonal is the metric.
 *
 * Values. The output is the sum of a_n v_n; independent errors of variance s add up to s sum_n a_n^2: how
 * much a head's attention is concentrated says what an error of its values costs. Weighing by all of that,
 * measured on one moment's queries, would leave little to heads that look everywhere; its square root is
 * taken (docs/codec-notes.md has the measurements).
 */
#ifndef POLICY_METRIC_H
#define POLICY_METRIC_H

#include <stddef.h>
#include <stdint.h>

#include "base/geometry.h"

struct metric;

/* n_query_heads: of a layer, a multiple of the key heads (query head h looks at key head h * key heads /
 * query heads). -EINVAL; -ENOMEM. g is copied. */
int metric_new(const struct geometry *g, uint32_t n_query_heads, struct metric **out);
struct metric *metric_free(struct metric *m);

/* A query [dim of the key plane], rotated as it met the keys, of a token at position; keys lie at [0,
 * position). */
void metric_add_query(
	struct metric *m, uint32_t layer, uint32_t query_head, const float *query, uint64_t position);
/* The weights [n] that attention gave to values that are not raw anyway. */
void metric_add_attention(
	struct metric *m, uint32_t layer, uint32_t query_head, const float *attention, size_t n);

/* Weights of layers [first_layer, first_layer + n_layers) of a plane, as calibrate_set_weight takes them:
 * [n_layers, heads, dim]. Layers of which nothing was added weigh as if all were alike. */
void metric_weights(
	const struct metric *m, uint32_t plane, uint32_t first_layer, uint32_t n_layers, float *weight);

#endif
