#include "tools/top/units.h"

#include <math.h>
#include <stdio.h>

/* Three digits where it is 1 or more, and the unit's letters. */
static const char *scaled(double n, double step, const char *const *units, int n_units, char *out)
{
	int unit = 0;

	while (n >= (step == 1024 ? 1000 : step - 0.5) && unit + 1 < n_units) {
		n /= step;
		unit++;
	}
	if (n >= 9.95 || (unit == 0 && n == floor(n)))
		snprintf(out, UNITS_TEXT, "%.0f%s", n, units[unit]);
	else
		snprintf(out, UNITS_TEXT, "%.1f%s", n, units[unit]);
	return out;
}

const char *units_bytes(double n, char out[UNITS_TEXT])
{
	static const char *const units[] = {"", "K", "M", "G", "T", "P", "E"};

	return scaled(n, 1024, units, 7, out);
}

const char *units_count(double n, char out[UNITS_TEXT])
{
	static const char *const units[] = {"", "k", "M", "G", "T", "P"};

	return scaled(n, 1000, units, 6, out);
}

const char *units_ns(uint64_t ns, char out[UNITS_TEXT])
{
	static const char *const units[] = {"ns", "us", "ms", "s"};

	if (!ns) {
		snprintf(out, UNITS_TEXT, "-");
		return out;
	}
	return scaled((double)ns, 1000, units, 4, out);
}

const char *units_share(double part, double whole, char out[UNITS_TEXT])
{
	if (whole > 0)
		snprintf(out, UNITS_TEXT, "%.0f%%", 100 * part / whole);
	else
		snprintf(out, UNITS_TEXT, "-");
	return out;
}
