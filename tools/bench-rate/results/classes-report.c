#include "tools/bench-rate/results/classes-report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tools/bench-rate/results/curve.h"
#include "tools/bench.h"
#include "tools/cistern.h"

enum { POINTS_MAX = 16, LOSSES = 5 };

static const char *const losses[LOSSES] = {"attn", "attn_recall", "kl", "kl_recall", "error_v"};

static double loss_of(const struct figures *f, int which)
{
	const double of[LOSSES] = {f->attn_error, f->attn_error_recall, f->kl, f->kl_recall, f->error[1]};

	return of[which];
}

/* This point's loss over that of plain tokens in as many bytes. */
static double over_plain(const struct figures *points, size_t n, const struct figures *f, int which)
{
	double x[POINTS_MAX], y[POINTS_MAX];
	size_t k = 0;

	for (size_t i = 0; i < n && k < POINTS_MAX; i++)
		if (!strcmp(points[i].codec, "cistern")) {
			x[k] = points[i].ratio_coded;
			y[k++] = loss_of(&points[i], which);
		}
	return loss_of(f, which) / curve_at(x, y, k, f->ratio_coded);
}

static json_t *number(double x)
{
	return isfinite(x) ? json_real(x) : json_null();
}

void classes_report(const struct figures *points, size_t n, bool json)
{
	json_t *list = json_array();

	if (!json)
		printf("%-28s %5s %7s   loss over that of plain tokens in as many bytes\n%-42s   %7s %7s "
		       "%7s %7s %7s\n",
			"classes", "rung", "ratio", "", "attn", "recall", "kl", "recall", "error v");
	for (size_t i = 0; i < n; i++) {
		const struct figures *f = &points[i];
		json_t *o = json_pack(
			"{s:s, s:f, s:f}", "classes", f->codec, "rung", f->rung, "ratio", f->ratio_coded);

		if (!json)
			printf("%-28s %4.0fx %7.2f  ", f->codec, f->rung, f->ratio_coded);
		for (int k = 0; k < LOSSES; k++) {
			const double over = over_plain(points, n, f, k);

			json_object_set_new(o, losses[k], number(loss_of(f, k)));
			if (!json)
				printf(" %7.3f", over);
			if (strcmp(f->codec, "cistern")) {
				char key[40];

				snprintf(key, sizeof key, "%s_over_plain", losses[k]);
				json_object_set_new(o, key, number(over));
			}
		}
		if (!json)
			printf("\n");
		json_array_append_new(list, o);
	}
	if (json)
		print_json(json_pack("{s:O}", "points", list));
	json_decref(list);
}
