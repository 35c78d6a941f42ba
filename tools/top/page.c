#include "tools/top/page.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/top/units.h"

enum {
	DETAIL_LINES = 7, /* of the selected row, with the line of keys */
	NARROW = 80,
};

/* One namespace and model. */
struct row {
	uint32_t record;
	const char *name_space, *model;
	double hit; /* -1: nothing was looked up */
	double gets, puts, ratio, raw, pool, store;
	uint64_t get_p50, get_p99, put_p50, put_p99;
};

static const char *const sort_names[SORT_KINDS] = {
	"NAMESPACE", "HIT", "GET/s", "GET p99", "PUT/s", "PUT p99", "x", "RAW", "POOL", "DISK"};

static __attribute__((format(printf, 3, 4))) void line(
	struct page *p, enum page_style style, const char *format, ...)
{
	struct page_line *l = &p->lines[p->n_lines];
	va_list args;

	if (p->n_lines == PAGE_LINES_MAX)
		return;
	p->n_lines++;
	l->style = style;
	va_start(args, format);
	vsnprintf(l->text, sizeof l->text, format, args);
	va_end(args);
	/* Names come from others, and a terminal obeys what it is shown. */
	for (char *c = l->text; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
}

/* ---- the daemon ---- */

enum { BAR = 11 };

static const char *bar(double part, double whole, char out[BAR + 3])
{
	const double share = whole > 0 ? part / whole : 0;

	out[0] = '[';
	for (int i = 0; i < BAR; i++)
		out[1 + i] = share * BAR >= i + 0.5 ? '#' : ' ';
	out[1 + BAR] = ']';
	out[2 + BAR] = 0;
	return out;
}

static double level(const struct watch *w, const char *id)
{
	return (double)watch_number(w, STATS_DAEMON, 0, id);
}

static double rate(const struct watch *w, const char *id)
{
	return watch_rate(w, STATS_DAEMON, 0, id);
}

static void compose_first(struct page *p, const struct watch *w, const struct page_choice *choice)
{
	const uint64_t up_s = (uint64_t)watch_uptime_s(w);
	char clock[16];
	time_t now = time(NULL);
	struct tm local;

	localtime_r(&now, &local);
	strftime(clock, sizeof clock, "%H:%M:%S", &local);
	line(p, PAGE_BOLD, "cistern %s  %s  up %llu:%02llu:%02llu  engines %.0f  jobs %.0f/%.0f  %s",
		watch_text(w, STATS_DAEMON, 0, "version"), watch_text(w, STATS_DAEMON, 0, "backend"),
		(unsigned long long)up_s / 3600, (unsigned long long)up_s / 60 % 60,
		(unsigned long long)up_s % 60, level(w, "sessions"), level(w, "jobs"), level(w, "workers"),
		choice->paused ? "PAUSED" : clock);
}

static void compose_daemon(struct page *p, const struct watch *w)
{
	const double pool = level(w, "pool_used_bytes"), pool_limit = level(w, "pool_limit_bytes");
	const double store = level(w, "store_used_bytes"), store_limit = level(w, "store_limit_bytes");
	const bool failing = level(w, "store_state") == 2;
	const double errors = level(w, "store_write_errors") + level(w, "store_read_errors");
	char a[UNITS_TEXT], b[UNITS_TEXT], c[UNITS_TEXT], d[UNITS_TEXT], e[UNITS_TEXT], f[UNITS_TEXT];
	char bar_a[BAR + 3], bar_b[BAR + 3];

	if (store_limit > 0)
		line(p, PAGE_PLAIN, "pool %s %5s of %5s %4s  store %s %5s of %5s %4s",
			bar(pool, pool_limit, bar_a), units_bytes(pool, a), units_bytes(pool_limit, b),
			units_share(pool, pool_limit, c), bar(store, store_limit, bar_b),
			units_bytes(store, d), units_bytes(store_limit, e),
			units_share(store, store_limit, f));
	else
		line(p, PAGE_PLAIN, "pool %s %5s of %5s %4s  no store", bar(pool, pool_limit, bar_a),
			units_bytes(pool, a), units_bytes(pool_limit, b), units_share(pool, pool_limit, c));
	line(p, PAGE_PLAIN, "disk write %4sB/s %4s/s p99 %5s   read %4sB/s %4s/s p99 %5s  depth %.0f",
		units_bytes(rate(w, "store_written_bytes"), a), units_count(rate(w, "store_writes"), b),
		units_ns(watch_quantile_ns(w, STATS_DAEMON, 0, "store_write_ns", 0.99), c),
		units_bytes(rate(w, "store_read_bytes"), d), units_count(rate(w, "store_reads"), e),
		units_ns(watch_quantile_ns(w, STATS_DAEMON, 0, "store_read_ns", 0.99), f),
		level(w, "store_in_flight"));
	line(p, errors > 0 || failing ? PAGE_ALARM : PAGE_PLAIN,
		"chunks evicted %s/s  lost %s/s  read back %s/s   disk %s %.0f  rotten %.0f",
		units_count(rate(w, "evicted"), a), units_count(rate(w, "lost"), b),
		units_count(rate(w, "fetched"), c), failing ? "FAILS, errors" : "errors", errors,
		level(w, "store_dropped"));
}

/* ---- namespaces and models ---- */

static struct row row_of(const struct watch *w, uint32_t i)
{
	const double asked = (double)watch_gain(w, STATS_CACHE, i, "lookup_chunks");
	const double raw = watch_real(w, STATS_CACHE, i, "raw_bytes");
	const double frames = watch_real(w, STATS_CACHE, i, "frame_bytes");
	const char *model = watch_text(w, STATS_CACHE, i, "model");

	return (struct row){.record = i,
		.name_space = watch_text(w, STATS_CACHE, i, "name_space"),
		.model = model[0] ? model : watch_text(w, STATS_CACHE, i, "fingerprint"),
		.hit = asked > 0 ? (double)watch_gain(w, STATS_CACHE, i, "hit_chunks") / asked : -1,
		.gets = watch_rate(w, STATS_CACHE, i, "gets"),
		.puts = watch_rate(w, STATS_CACHE, i, "puts"),
		.get_p50 = watch_quantile_ns(w, STATS_CACHE, i, "get_ns", 0.5),
		.get_p99 = watch_quantile_ns(w, STATS_CACHE, i, "get_ns", 0.99),
		.put_p50 = watch_quantile_ns(w, STATS_CACHE, i, "put_ns", 0.5),
		.put_p99 = watch_quantile_ns(w, STATS_CACHE, i, "put_ns", 0.99),
		.ratio = frames > 0 ? raw / frames : 0,
		.raw = raw,
		.pool = watch_real(w, STATS_CACHE, i, "pool_bytes"),
		.store = watch_real(w, STATS_CACHE, i, "store_bytes")};
}

static int by_name(const struct row *a, const struct row *b)
{
	const int r = strcmp(a->name_space, b->name_space);

	return r ? r : strcmp(a->model, b->model);
}

static double sort_value(const struct row *r, enum page_sort sort)
{
	switch (sort) {
	case SORT_HIT: return r->hit;
	case SORT_GETS: return r->gets;
	case SORT_GET_P99: return (double)r->get_p99;
	case SORT_PUTS: return r->puts;
	case SORT_PUT_P99: return (double)r->put_p99;
	case SORT_RATIO: return r->ratio;
	case SORT_RAW: return r->raw;
	case SORT_POOL: return r->pool;
	case SORT_STORE: return r->store;
	default: return 0;
	}
}

static int compare_rows(const void *a, const void *b, void *arg)
{
	const struct page_choice *choice = arg;
	const double x = sort_value(a, choice->sort), y = sort_value(b, choice->sort);
	int r = (x < y) - (x > y);

	if (!r)
		r = by_name(a, b);
	return choice->reversed ? -r : r;
}

static uint32_t find_rows(
	const struct watch *w, struct page_choice *choice, struct row rows[STATS_CACHES_MAX])
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < w->now.n[STATS_CACHE] && n < STATS_CACHES_MAX; i++) {
		rows[n] = row_of(w, i);
		if (!choice->filter[0] || strcasestr(rows[n].name_space, choice->filter) ||
			strcasestr(rows[n].model, choice->filter))
			n++;
	}
	qsort_r(rows, n, sizeof *rows, compare_rows, choice);
	return n;
}

/* What is over in a wide terminal goes to the two names. */
static void name_widths(uint32_t n_columns, int *name_space, int *model)
{
	const int more = n_columns > NARROW ? (int)n_columns - NARROW : 0;

	*name_space = 9 + (more / 3 < 30 ? more / 3 : 30);
	*model = 9 + (more - more / 3 < 50 ? more - more / 3 : 50);
}

static void compose_row(struct page *p, const struct row *r, enum page_style style, int wide_a, int wide_b)
{
	char hit[UNITS_TEXT], a[UNITS_TEXT], b[UNITS_TEXT], c[UNITS_TEXT], d[UNITS_TEXT], e[UNITS_TEXT];
	char f[UNITS_TEXT], g[UNITS_TEXT], h[UNITS_TEXT], i[UNITS_TEXT];

	line(p, style, "%-*.*s %-*.*s %4s %5s %5s %5s %5s %5s %5s %4.1f %4s %4s %4s", wide_a, wide_a,
		r->name_space, wide_b, wide_b, r->model, r->hit < 0 ? "-" : units_share(r->hit, 1, hit),
		units_count(r->gets, a), units_ns(r->get_p50, b), units_ns(r->get_p99, c),
		units_count(r->puts, d), units_ns(r->put_p50, e), units_ns(r->put_p99, f), r->ratio,
		units_bytes(r->raw, g), units_bytes(r->pool, h), units_bytes(r->store, i));
}

static void compose_header(struct page *p, int wide_a, int wide_b)
{
	line(p, PAGE_HEADER, "%-*s %-*s %4s %5s %5s %5s %5s %5s %5s %4s %4s %4s %4s", wide_a, "NAMESPACE",
		wide_b, "MODEL", "HIT", "GET/s", "p50", "p99", "PUT/s", "p50", "p99", "x", "RAW", "POOL",
		"DISK");
}

/* ---- the selected row ---- */

static void compose_attention(struct page *p, const struct watch *w, uint32_t i)
{
	const bool alarm = watch_number(w, STATS_CACHE, i, "alarm_attention") ||
			   watch_number(w, STATS_CACHE, i, "alarm_error");
	const unsigned long long n = watch_number(w, STATS_CACHE, i, "attention_chunks");

	if (n)
		line(p, alarm ? PAGE_ALARM : PAGE_PLAIN,
			"attend  outputs %.4f off, worst %.4f, on %llu chunks compared%s",
			watch_real(w, STATS_CACHE, i, "attention_error_mean"),
			watch_real(w, STATS_CACHE, i, "attention_error_max"), n, alarm ? "   ALARM" : "");
	else
		line(p, alarm ? PAGE_ALARM : PAGE_PLAIN,
			"attend  never compared: queries are needed (OBSERVE)%s", alarm ? "   ALARM" : "");
}

static void compose_detail(struct page *p, const struct watch *w, const struct row *r)
{
	static const char *const classes[] = {"plain", "salient", "redundant", "sink", "window", "exact"};
	const uint32_t i = r->record;
	const double bound = watch_real(w, STATS_CACHE, i, "error_bound");
	const char *learning = watch_text(w, STATS_CACHE, i, "learning");
	double n[6], sum = 0;
	char text[200], share[UNITS_TEXT], a[UNITS_TEXT], b[UNITS_TEXT], c[UNITS_TEXT], d[UNITS_TEXT];
	int len = 0;

	for (int k = 0; k < 6; k++) {
		char id[32];

		snprintf(id, sizeof id, "tokens_%s", classes[k]);
		n[k] = (double)watch_number(w, STATS_CACHE, i, id);
		sum += n[k];
	}
	for (int k = 0; k < 6; k++)
		if (n[k] > 0)
			len += snprintf(text + len, sizeof text - (size_t)len, "  %s %s", classes[k],
				units_share(n[k], sum, share));
	line(p, PAGE_BOLD, "%s %s: %s chunks, %s tokens, %s%s%s", r->name_space, r->model,
		units_count(watch_real(w, STATS_CACHE, i, "chunks"), a),
		units_count(watch_real(w, STATS_CACHE, i, "tokens"), b),
		watch_number(w, STATS_CACHE, i, "transform") ? "transform in use" : "plain 8-bit codec",
		*learning ? ", " : "", learning);
	line(p, PAGE_PLAIN, "tokens%s", len ? text : "  none encoded since the start");
	if (bound > 0)
		snprintf(text, sizeof text, "bound %.3g", bound);
	else
		snprintf(text, sizeof text, "no bound");
	line(p,
		bound > 0 && (watch_real(w, STATS_CACHE, i, "key_error_max") > bound ||
				     watch_real(w, STATS_CACHE, i, "value_error_max") > bound)
			? PAGE_ALARM
			: PAGE_PLAIN,
		"error   keys %.3f, worst %.3f   values %.3f, worst %.3f   %s",
		watch_real(w, STATS_CACHE, i, "key_error_mean"),
		watch_real(w, STATS_CACHE, i, "key_error_max"),
		watch_real(w, STATS_CACHE, i, "value_error_mean"),
		watch_real(w, STATS_CACHE, i, "value_error_max"), text);
	compose_attention(p, w, i);
	line(p, PAGE_PLAIN, "chunk   encode p50 %s p99 %s   decode p50 %s p99 %s   failed %llu",
		units_ns(watch_quantile_ns(w, STATS_CACHE, i, "encode_ns", 0.5), a),
		units_ns(watch_quantile_ns(w, STATS_CACHE, i, "encode_ns", 0.99), b),
		units_ns(watch_quantile_ns(w, STATS_CACHE, i, "decode_ns", 0.5), c),
		units_ns(watch_quantile_ns(w, STATS_CACHE, i, "decode_ns", 0.99), d),
		(unsigned long long)watch_number(w, STATS_CACHE, i, "failed"));
}

static void compose_help(struct page *p)
{
	static const char *const text[] = {
		"",
		"HIT    chunks that lookups found, of those asked for",
		"GET/s  requests; p50, p99: from taking one off its ring to its last completion",
		"x      KV of the chunks kept (RAW), over their frames; POOL, DISK: frames there",
		"       Rates and quantiles are of the last interval; where nothing happened in",
		"       it, quantiles are of all time.",
		"error  relative L2 error of coded tokens: mean over about the last 64 chunks",
		"attend the same of attention outputs, where queries were shown (OBSERVE)",
		"",
		"s  sort by the next column, S by the one before       r  reverse",
		"/  filter by namespace or model: type, Enter; empty for all",
		"up, down, page up, page down  select a row, shown in detail below",
		"p  pause     + -  interval     h  this text     q  quit",
	};

	for (size_t i = 0; i < sizeof text / sizeof *text; i++)
		line(p, PAGE_PLAIN, "%s", text[i]);
}

/* ---- the story ---- */

static void compose_keys(struct page *p, const struct page_choice *choice)
{
	if (choice->typing)
		line(p, PAGE_HEADER, "filter: %s_   Enter: done, Esc: none", choice->filter);
	else
		line(p, PAGE_DIM,
			"h help  q quit  s sort: %s%s  r reverse  + - interval  p pause  / filter%s%s",
			sort_names[choice->sort], choice->reversed ? " up" : "",
			choice->filter[0] ? ": " : "", choice->filter);
}

static void compose_rows(struct page *p, const struct watch *w, struct page_choice *choice, uint32_t n_lines,
	uint32_t n_columns)
{
	struct row rows[STATS_CACHES_MAX];
	const bool detailed = n_lines >= p->n_lines + DETAIL_LINES + 3;
	const uint32_t foot = detailed ? DETAIL_LINES : 1;
	uint32_t n_room, first;
	int wide_a, wide_b;

	name_widths(n_columns, &wide_a, &wide_b);
	compose_header(p, wide_a, wide_b);
	p->n_rows = find_rows(w, choice, rows);
	if (choice->selected >= p->n_rows)
		choice->selected = p->n_rows ? p->n_rows - 1 : 0;
	n_room = n_lines > p->n_lines + foot ? n_lines - p->n_lines - foot : 0;
	first = choice->selected >= n_room ? choice->selected + 1 - n_room : 0;
	for (uint32_t i = first; i < p->n_rows && i < first + n_room; i++)
		compose_row(p, &rows[i], i == choice->selected ? PAGE_SELECTED : PAGE_PLAIN, wide_a, wide_b);
	if (!p->n_rows && n_room)
		line(p, PAGE_DIM, "%s",
			choice->filter[0] ? "nothing here passes the filter"
					  : "no chunk was ever put or looked up");
	while (p->n_lines + foot < n_lines)
		line(p, PAGE_PLAIN, "%s", "");
	if (detailed && p->n_rows) {
		line(p, PAGE_PLAIN, "%s", "");
		compose_detail(p, w, &rows[choice->selected]);
	}
}

void page_compose(struct page *p, const struct watch *w, struct page_choice *choice, bool connected,
	uint32_t n_lines, uint32_t n_columns)
{
	n_lines = n_lines < PAGE_LINES_MAX ? n_lines : PAGE_LINES_MAX;
	n_columns = n_columns < PAGE_COLUMNS_MAX ? n_columns : PAGE_COLUMNS_MAX;
	p->n_lines = p->n_rows = 0;
	if (!connected)
		line(p, PAGE_ALARM, "no daemon, trying again (figures are old): %s", w->why);
	else
		compose_first(p, w, choice);
	if (choice->help) {
		compose_help(p);
	} else if (w->now.n[STATS_DAEMON]) {
		compose_daemon(p, w);
		compose_rows(p, w, choice, n_lines, n_columns);
	}
	while (p->n_lines + 1 < n_lines)
		line(p, PAGE_PLAIN, "%s", "");
	if (p->n_lines + 1 > n_lines)
		p->n_lines = n_lines ? n_lines - 1 : 0;
	if (n_lines)
		compose_keys(p, choice);
	for (uint32_t i = 0; i < p->n_lines; i++)
		p->lines[i].text[n_columns] = 0;
}
