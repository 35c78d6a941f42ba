#include "tools/top/watch.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "shm/cistern.h"

static double clock_s(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void watch_init(struct watch *w, const char *socket)
{
	*w = (struct watch){.socket = socket, .alive = -1};
}

void watch_fini(struct watch *w)
{
	if (w->alive >= 0)
		close(w->alive);
	stats_snapshot_fini(&w->now);
	stats_snapshot_fini(&w->before);
	stats_view_fini(&w->view);
	*w = (struct watch){.alive = -1};
}

static int attach(struct watch *w)
{
	struct stats_view view;
	const char *why = "";
	int page, alive, r;

	r = cistern_statistics(w->socket, &page, &alive, 1000);
	if (r) {
		snprintf(w->why, sizeof w->why, "%s", cistern_error(NULL));
		return r;
	}
	r = stats_view_map(page, &view, &why);
	close(page);
	if (r) {
		snprintf(w->why, sizeof w->why, "%s", r == -EPROTO ? why : strerror(-r));
		close(alive);
		return r;
	}
	/* Nothing of the daemon before can be compared with the new one's. */
	stats_snapshot_fini(&w->now);
	stats_snapshot_fini(&w->before);
	stats_view_fini(&w->view);
	w->view = view;
	w->alive = alive;
	w->now_s = w->before_s = 0;
	return 0;
}

int watch_look(struct watch *w)
{
	struct stats_snapshot s = {0};
	int r;

	if (w->alive >= 0 && poll(&(struct pollfd){.fd = w->alive, .events = POLLIN}, 1, 0) > 0) {
		close(w->alive);
		w->alive = -1;
	}
	if (w->alive < 0) {
		r = attach(w);
		if (r)
			return r;
	}
	r = stats_snapshot_take(&w->view, &s);
	if (r) {
		snprintf(w->why, sizeof w->why, "the page cannot be read: %s", strerror(-r));
		return r;
	}
	stats_snapshot_fini(&w->before);
	w->before = w->now;
	w->before_s = w->now_s;
	w->now = s;
	w->now_s = clock_s(CLOCK_MONOTONIC);
	return 0;
}

void watch_since_start(struct watch *w)
{
	stats_snapshot_fini(&w->before);
	w->before_s = 0;
}

double watch_uptime_s(const struct watch *w)
{
	return clock_s(CLOCK_REALTIME) - (double)watch_number(w, STATS_DAEMON, 0, "started_ns") / 1e9;
}

double watch_seconds(const struct watch *w)
{
	return w->before.n[STATS_DAEMON] ? w->now_s - w->before_s : watch_uptime_s(w);
}

/* ---- values ---- */

static const void *record_now(const struct watch *w, enum stats_group_id group, uint32_t i)
{
	return i < w->now.n[group] ? stats_record(&w->view, &w->now, group, i) : NULL;
}

/* NULL: it was not there then, and counts from 0. */
static const void *record_before(const struct watch *w, enum stats_group_id group, uint32_t i)
{
	return i < w->before.n[group] ? stats_record(&w->view, &w->before, group, i) : NULL;
}

uint64_t watch_number(const struct watch *w, enum stats_group_id group, uint32_t i, const char *id)
{
	const void *record = record_now(w, group, i);

	return record ? stats_number(record, stats_view_field(&w->view, group, id)) : 0;
}

double watch_real(const struct watch *w, enum stats_group_id group, uint32_t i, const char *id)
{
	const void *record = record_now(w, group, i);

	return record ? stats_real(record, stats_view_field(&w->view, group, id)) : 0;
}

const char *watch_text(const struct watch *w, enum stats_group_id group, uint32_t i, const char *id)
{
	const void *record = record_now(w, group, i);

	return record ? stats_text(record, stats_view_field(&w->view, group, id)) : "";
}

uint64_t watch_gain(const struct watch *w, enum stats_group_id group, uint32_t i, const char *id)
{
	const void *record = record_before(w, group, i);
	const uint64_t before = record ? stats_number(record, stats_view_field(&w->view, group, id)) : 0;

	return watch_number(w, group, i, id) - before;
}

double watch_rate(const struct watch *w, enum stats_group_id group, uint32_t i, const char *id)
{
	const double seconds = watch_seconds(w);

	return seconds > 0 ? (double)watch_gain(w, group, i, id) / seconds : 0;
}

uint64_t watch_quantile_ns(
	const struct watch *w, enum stats_group_id group, uint32_t i, const char *id, double q)
{
	static const struct histogram none;
	const struct stats_field *field = w->view.header ? stats_view_field(&w->view, group, id) : NULL;
	const void *now = record_now(w, group, i), *before = record_before(w, group, i);
	const struct histogram *a = now ? stats_histogram(now, field) : NULL;
	const struct histogram *b = before ? stats_histogram(before, field) : &none;
	struct histogram between;

	if (!a)
		return 0;
	histogram_between(b ? b : &none, a, &between);
	return histogram_quantile_ns(histogram_count(&between) ? &between : a, q);
}

/* ---- JSON ---- */

static json_t *histogram_json(const struct histogram *h)
{
	return json_pack("{s:I, s:I, s:I, s:I}", "count", (json_int_t)histogram_count(h), "sum_ns",
		(json_int_t)h->sum_ns, "p50_ns", (json_int_t)histogram_quantile_ns(h, 0.5), "p99_ns",
		(json_int_t)histogram_quantile_ns(h, 0.99));
}

static json_t *record_json(const struct watch *w, enum stats_group_id group, uint32_t i)
{
	const void *record = record_now(w, group, i);
	json_t *object = json_object(), *rates = json_object();
	uint32_t n;
	const struct stats_field *fields = stats_view_fields(&w->view, group, &n);

	for (uint32_t k = 0; k < n; k++) {
		const struct stats_field *f = &fields[k];
		json_t *value = NULL;

		switch (f->kind) {
		case STATS_COUNTER:
			value = json_integer((json_int_t)stats_number(record, f));
			json_object_set_new(rates, f->id, json_real(watch_rate(w, group, i, f->id)));
			break;
		case STATS_GAUGE:
			value = f->unit == STATS_REAL ? json_real(stats_real(record, f))
						      : json_integer((json_int_t)stats_number(record, f));
			break;
		case STATS_HISTOGRAM: value = histogram_json(stats_histogram(record, f)); break;
		case STATS_TEXT: value = json_string(stats_text(record, f)); break;
		default: break;
		}
		if (value)
			json_object_set_new(object, f->id, value);
	}
	json_object_set_new(object, "per_second", rates);
	return object;
}

json_t *watch_json(const struct watch *w)
{
	json_t *caches = json_array();

	for (uint32_t i = 0; i < w->now.n[STATS_CACHE]; i++)
		json_array_append_new(caches, record_json(w, STATS_CACHE, i));
	return json_pack("{s:f, s:f, s:o, s:o}", "uptime_s", watch_uptime_s(w), "interval_s",
		watch_seconds(w), "daemon", record_json(w, STATS_DAEMON, 0), "caches", caches);
}
