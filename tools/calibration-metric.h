/* The transform's metric (policy/metric.h) from the queries of captures. One thread. */
#ifndef TOOLS_CALIBRATION_METRIC_H
#define TOOLS_CALIBRATION_METRIC_H

#include "kernels/kernels.h"
#include "policy/metric.h"
#include "tools/capture.h"

/* Adds a capture's queries to m, made for its geometry and number of query heads: every query, and what
 * attention it gave to the tokens from skip_positions on, but for the window_tokens last ones. Attention is
 * softmax(q . k / sqrt(dim)). -ENOMEM. */
int calibration_metric_add(const struct kernels *kernels, const struct capture *capture,
	uint64_t skip_positions, uint32_t window_tokens, struct metric *m);

#endif
