/* A statistics page in the Prometheus text format (version 0.0.4): every field that has a metric, in the
 * order of the page, histograms with one bucket to a doubling from 1 us to 17 s. Any thread, with a view of
 * its own. */
#ifndef RUNTIME_STATS_METRICS_H
#define RUNTIME_STATS_METRICS_H

#include <stddef.h>

#include "shm/stats/view.h"

/* The text, malloc'd, the caller's. -ENOMEM. */
int metrics_text(const struct stats_view *v, const struct stats_snapshot *s, char **text, size_t *len);

#endif
