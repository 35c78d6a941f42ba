#include "tools/bench-rate/results/curve.h"

#include <math.h>

/* The nearest neighbours on either side, so that the points need no order. */
double curve_at(const double *x, const double *y, size_t n, double at)
{
	size_t below = n, above = n;

	for (size_t i = 0; i < n; i++) {
		if (x[i] <= at && (below == n || x[i] > x[below]))
			below = i;
		if (x[i] >= at && (above == n || x[i] < x[above]))
			above = i;
	}
	if (n < 2 || below == n || above == n)
		return NAN;
	if (below == above || x[below] == x[above])
		return y[below];
	return exp(log(y[below]) + (log(y[above]) - log(y[below])) * (log(at) - log(x[below])) /
					   (log(x[above]) - log(x[below])));
}
