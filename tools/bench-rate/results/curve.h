/* Curves of a codec: reading one between its points. Pure. */
#ifndef BENCH_RATE_CURVE_H
#define BENCH_RATE_CURVE_H

#include <stddef.h>

/* y at x on the line through the points, straight in log x and log y. x is in any order; all values are
 * positive. NAN outside the points, or with fewer than two: a curve is not drawn further than it was
 * measured. */
double curve_at(const double *x, const double *y, size_t n, double at);

#endif
