#include "runtime/stats/metrics.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
	LE_FIRST = 2, /* doublings of HISTOGRAM_FIRST_NS: 1 us */
	LE_LAST = 26, /* 17 s */
};

/* A label's value: backslash, quote and newline are escaped. */
static void print_escaped(FILE *out, const char *text)
{
	for (; *text; text++)
		switch (*text) {
		case '\\': fputs("\\\\", out); break;
		case '"': fputs("\\\"", out); break;
		case '\n': fputs("\\n", out); break;
		default: putc(*text, out);
		}
}

/* The record's own labels, the field's, and one more (le), in braces when there are any. */
static void print_labels(FILE *out, const struct stats_view *v, enum stats_group_id group, const void *record,
	const char *of_field, const char *more)
{
	uint32_t n;
	const struct stats_field *fields = stats_view_fields(v, group, &n);
	const char *separator = "{";

	for (uint32_t i = 0; i < n && group != STATS_DAEMON; i++) {
		if (fields[i].kind != STATS_TEXT || !fields[i].metric[0])
			continue;
		fprintf(out, "%s%s=\"", separator, fields[i].metric);
		print_escaped(out, stats_text(record, &fields[i]));
		putc('"', out);
		separator = ",";
	}
	if (of_field[0]) {
		fprintf(out, "%s%s", separator, of_field);
		separator = ",";
	}
	if (more[0]) {
		fprintf(out, "%s%s", separator, more);
		separator = ",";
	}
	if (*separator == ',')
		putc('}', out);
}

static void print_seconds(FILE *out, uint64_t ns)
{
	fprintf(out, "%llu.%09llu", (unsigned long long)(ns / 1000000000),
		(unsigned long long)(ns % 1000000000));
}

static void print_histogram(FILE *out, const struct stats_view *v, enum stats_group_id group,
	const void *record, const struct stats_field *f)
{
	const struct histogram *h = stats_histogram(record, f);
	uint64_t n = 0;
	uint32_t bucket = 0;

	for (uint32_t doubling = LE_FIRST; doubling <= LE_LAST; doubling++) {
		const uint64_t end_ns = (uint64_t)HISTOGRAM_FIRST_NS << doubling;
		char le[48];

		/* Doublings are ends of buckets, so nothing is estimated. */
		while (histogram_end_ns(bucket) <= end_ns)
			n += h->buckets[bucket++];
		snprintf(le, sizeof le, "le=\"%.9g\"", (double)end_ns / 1e9);
		fprintf(out, "cistern_%s_bucket", f->metric);
		print_labels(out, v, group, record, f->labels, le);
		fprintf(out, " %llu\n", (unsigned long long)n);
	}
	n = histogram_count(h);
	fprintf(out, "cistern_%s_bucket", f->metric);
	print_labels(out, v, group, record, f->labels, "le=\"+Inf\"");
	fprintf(out, " %llu\ncistern_%s_sum", (unsigned long long)n, f->metric);
	print_labels(out, v, group, record, f->labels, "");
	putc(' ', out);
	print_seconds(out, h->sum_ns);
	fprintf(out, "\ncistern_%s_count", f->metric);
	print_labels(out, v, group, record, f->labels, "");
	fprintf(out, " %llu\n", (unsigned long long)n);
}

static void print_sample(FILE *out, const struct stats_view *v, enum stats_group_id group, const void *record,
	const struct stats_field *f)
{
	if (f->kind == STATS_HISTOGRAM) {
		print_histogram(out, v, group, record, f);
		return;
	}
	fprintf(out, "cistern_%s", f->metric);
	print_labels(out, v, group, record, f->labels, "");
	putc(' ', out);
	if (f->unit == STATS_NS)
		print_seconds(out, stats_number(record, f));
	else if (f->unit == STATS_REAL)
		fprintf(out, "%.9g", stats_real(record, f));
	else
		fprintf(out, "%llu", (unsigned long long)stats_number(record, f));
	putc('\n', out);
}

static bool is_metric(const struct stats_field *f)
{
	return f->metric[0] && f->kind >= STATS_COUNTER && f->kind <= STATS_HISTOGRAM;
}

static void print_group(
	FILE *out, const struct stats_view *v, const struct stats_snapshot *s, enum stats_group_id group)
{
	static const char *const types[] = {
		[STATS_COUNTER] = "counter", [STATS_GAUGE] = "gauge", [STATS_HISTOGRAM] = "histogram"};
	uint32_t n, end;
	const struct stats_field *fields = stats_view_fields(v, group, &n);

	for (uint32_t i = 0; i < n; i = end) {
		end = i + 1;
		if (!is_metric(&fields[i]))
			continue;
		while (end < n && !strcmp(fields[end].metric, fields[i].metric))
			end++;
		fprintf(out, "# HELP cistern_%s %s\n# TYPE cistern_%s %s\n", fields[i].metric, fields[i].help,
			fields[i].metric, types[fields[i].kind]);
		for (uint32_t r = 0; r < s->n[group]; r++)
			for (uint32_t k = i; k < end; k++)
				print_sample(out, v, group, stats_record(v, s, group, r), &fields[k]);
	}
}

/* The daemon's texts, as labels of a metric that is always 1. */
static void print_info(FILE *out, const struct stats_view *v, const struct stats_snapshot *s)
{
	uint32_t n;
	const struct stats_field *fields = stats_view_fields(v, STATS_DAEMON, &n);
	const char *separator = "{";

	fputs("# HELP cistern_info What runs here\n# TYPE cistern_info gauge\ncistern_info", out);
	for (uint32_t i = 0; i < n; i++) {
		if (fields[i].kind != STATS_TEXT || !fields[i].metric[0])
			continue;
		fprintf(out, "%s%s=\"", separator, fields[i].metric);
		print_escaped(out, stats_text(stats_record(v, s, STATS_DAEMON, 0), &fields[i]));
		putc('"', out);
		separator = ",";
	}
	fputs("} 1\n", out);
}

/* What every exporter says about its process, under the names that all use. */
static void print_process(FILE *out)
{
	struct rusage usage;
	unsigned long pages = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	if (f) {
		if (fscanf(f, "%*u %lu", &pages) != 1)
			pages = 0;
		fclose(f);
	}
	getrusage(RUSAGE_SELF, &usage);
	fprintf(out,
		"# HELP process_cpu_seconds_total User and system time of the process\n"
		"# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total %.6f\n"
		"# HELP process_resident_memory_bytes Memory of the process in RAM\n"
		"# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes %llu\n",
		(double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec +
			(double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6,
		(unsigned long long)pages * (unsigned long long)sysconf(_SC_PAGESIZE));
}

int metrics_text(const struct stats_view *v, const struct stats_snapshot *s, char **text, size_t *len)
{
	char *buffer = NULL;
	size_t size;
	FILE *out = open_memstream(&buffer, &size);

	if (!out)
		return -ENOMEM;
	print_info(out, v, s);
	print_group(out, v, s, STATS_DAEMON);
	print_group(out, v, s, STATS_CACHE);
	print_process(out);
	if (fclose(out)) {
		free(buffer);
		return -ENOMEM;
	}
	*text = buffer;
	*len = size;
	return 0;
}
