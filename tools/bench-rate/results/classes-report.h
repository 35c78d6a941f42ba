/* What classes of tokens earn at an equal number of bytes: each point against the curve of the same codec
 * with plain tokens alone, read at the point's ratio. */
#ifndef BENCH_RATE_CLASSES_REPORT_H
#define BENCH_RATE_CLASSES_REPORT_H

#include <stdbool.h>

#include "tools/bench-rate/results/figures.h"

/* points: the plain codec's, named "cistern", and the others. */
void classes_report(const struct figures *points, size_t n, bool json);

#endif
