/* cistern trace: the daemon's last spans of work, as a file that a browser's trace viewer opens. */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cistern.h"
#include "tools/top/watch.h"

static const char usage[] =
	"Usage: cistern trace [--out FILE] [--last SECONDS] [--socket PATH]\n"
	"\n"
	"Writes the daemon's last 16384 spans of work in the Chrome trace format (JSON), which "
	"chrome://tracing and\n"
	"ui.perfetto.dev open: one track for each session's requests, each worker, and the disk. Requests "
	"that\n"
	"took less than 10 us left no span. Reads the statistics page; the daemon does nothing for it.\n"
	"\n"
	"  -o, --out FILE        where to (default: -, the standard output)\n"
	"      --last SECONDS    spans that ended so recently alone\n"
	"  -s, --socket PATH     the daemon's socket (default: $CISTERN_SOCKET, else "
	"/run/cistern/cistern.sock)\n"
	"      --json            as without: the output is JSON\n";

/* Spans of one session may overlap, and the format has rows whose spans nest: each span goes to the first row
 * of its lane that is free by then. */
enum { ROWS_MAX = 64 };

struct lane {
	uint32_t track, lane;
	uint32_t n_rows;
	uint64_t free_ns[ROWS_MAX];
};

struct lanes {
	struct lane *list;
	size_t n, capacity;
};

static const char *name_of(uint32_t name)
{
	switch (name) {
	case TRACE_LOOKUP: return "LOOKUP";
	case TRACE_PUT: return "PUT";
	case TRACE_GET: return "GET";
	case TRACE_PREFETCH: return "PREFETCH";
	case TRACE_PIN: return "PIN";
	case TRACE_UNPIN: return "UNPIN";
	case TRACE_REMOVE: return "REMOVE";
	case TRACE_SYNC: return "SYNC";
	case TRACE_OBSERVE: return "OBSERVE";
	case TRACE_ENCODE: return "encode";
	case TRACE_DECODE: return "decode";
	case TRACE_SETTLE: return "settle";
	case TRACE_COARSEN: return "coarsen";
	case TRACE_WRITE: return "write";
	case TRACE_READ: return "read";
	case TRACE_TOMBSTONE: return "remove";
	case TRACE_FLUSH: return "flush";
	default: return "other";
	}
}

static const char *track_name(uint32_t track)
{
	switch (track) {
	case TRACE_SESSION: return "session";
	case TRACE_WORKER: return "codec";
	case TRACE_STORE: return "disk";
	case TRACE_UPKEEP: return "upkeep";
	default: return "other";
	}
}

static struct lane *find_lane(struct lanes *lanes, uint32_t track, uint32_t lane)
{
	for (size_t i = 0; i < lanes->n; i++)
		if (lanes->list[i].track == track && lanes->list[i].lane == lane)
			return &lanes->list[i];
	if (lanes->n == lanes->capacity) {
		const size_t capacity = lanes->capacity ? 2 * lanes->capacity : 16;
		struct lane *more = realloc(lanes->list, capacity * sizeof *more);

		if (!more)
			return NULL;
		lanes->list = more;
		lanes->capacity = capacity;
	}
	lanes->list[lanes->n] = (struct lane){.track = track, .lane = lane};
	return &lanes->list[lanes->n++];
}

static uint32_t take_row(struct lane *l, const struct trace_event *e)
{
	uint32_t row = 0;

	while (row < l->n_rows && row + 1 < ROWS_MAX && l->free_ns[row] > e->start_ns)
		row++;
	if (row == l->n_rows)
		l->n_rows++;
	l->free_ns[row] = e->start_ns + e->duration_ns;
	return row;
}

/* The format's process and thread numbers. */
static unsigned thread_of(const struct lane *l, uint32_t row)
{
	return l->lane * ROWS_MAX + row + 1;
}

static void print_span(FILE *out, const struct trace_event *e, const struct lane *l, uint32_t row)
{
	fprintf(out,
		"{\"ph\":\"X\",\"cat\":\"%s\",\"name\":\"%s\",\"pid\":%u,\"tid\":%u,\"ts\":%.3f,\"dur\":%.3f,"
		"\"args\":{\"request\":%llu,\"chunks\":%u,\"bytes\":%llu,\"status\":%d}},\n",
		track_name(e->track), name_of(e->name), e->track, thread_of(l, row),
		(double)e->start_ns / 1000, (double)e->duration_ns / 1000, (unsigned long long)e->request,
		e->n_chunks, (unsigned long long)e->bytes, e->status);
}

static void print_names(FILE *out, const struct lanes *lanes)
{
	for (uint32_t track = TRACE_SESSION; track <= TRACE_STORE; track++)
		fprintf(out,
			"{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":%u,\"tid\":0,\"args\":{\"name\":\"%"
			"s\"}}%s\n",
			track, track == TRACE_SESSION ? "sessions" : track_name(track),
			track == TRACE_STORE && !lanes->n ? "" : ",");
	for (size_t i = 0; i < lanes->n; i++)
		for (uint32_t row = 0; row < lanes->list[i].n_rows; row++) {
			const struct lane *l = &lanes->list[i];
			const bool last = i + 1 == lanes->n && row + 1 == l->n_rows;

			fprintf(out,
				"{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":%u,\"tid\":%u,\"args\":{"
				"\"name\":\"%s",
				l->track, thread_of(l, row), track_name(l->track));
			if (l->track != TRACE_STORE)
				fprintf(out, " %u", l->lane);
			if (row)
				fprintf(out, " (+%u)", row);
			fprintf(out, "\"}}%s\n", last ? "" : ",");
		}
}

static int by_start(const void *a, const void *b)
{
	const struct trace_event *x = a, *y = b;

	return (x->start_ns > y->start_ns) - (x->start_ns < y->start_ns);
}

/* 0 or -ENOMEM. */
static int print_trace(FILE *out, struct trace_event *events, size_t n, uint64_t from_ns)
{
	struct lanes lanes = {0};
	int r = 0;

	qsort(events, n, sizeof *events, by_start);
	fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n", out);
	for (size_t i = 0; i < n && !r; i++) {
		struct lane *l;

		if (events[i].start_ns + events[i].duration_ns < from_ns)
			continue;
		l = find_lane(&lanes, events[i].track, events[i].lane);
		if (l)
			print_span(out, &events[i], l, take_row(l, &events[i]));
		else
			r = -ENOMEM;
	}
	print_names(out, &lanes);
	fputs("]}\n", out);
	free(lanes.list);
	return r;
}

static int write_trace(const char *path, double last_s, struct watch *w)
{
	const bool to_stdout = !strcmp(path, "-");
	struct trace_event *events = malloc(w->view.header->n_traces * sizeof *events);
	const double from_ns = (w->now_s - last_s) * 1e9;
	FILE *out = to_stdout ? stdout : fopen(path, "we");
	int r = events && out ? 0 : -ENOMEM;
	size_t n;

	if (!out) {
		r = -errno;
	} else if (!r) {
		n = stats_trace(&w->view, events, w->view.header->n_traces);
		r = print_trace(out, events, n, from_ns > 0 ? (uint64_t)from_ns : 0);
	}
	if (out && (to_stdout ? fflush(out) : fclose(out)) && !r)
		r = -errno;
	free(events);
	if (r)
		fprintf(stderr, "cistern trace: %s: %s\n", path, strerror(-r));
	return r;
}

int cmd_trace(int argc, char **argv)
{
	static const struct option options[] = {{"out", required_argument, NULL, 'o'},
		{"last", required_argument, NULL, 'l'}, {"socket", required_argument, NULL, 's'},
		{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
	const char *socket = NULL, *path = "-";
	double last_s = INFINITY;
	struct watch w;
	char *end;
	int option, r;

	optind = 1;
	while ((option = getopt_long(argc, argv, "o:s:", options, NULL)) != -1)
		switch (option) {
		case 'o': path = optarg; break;
		case 'l':
			last_s = strtod(optarg, &end);
			if (*end || end == optarg || !(last_s > 0)) {
				fprintf(stderr, "cistern trace: --last %s: not a number of seconds\n",
					optarg);
				return EXIT_USAGE;
			}
			break;
		case 's': socket = optarg; break;
		case 'j': break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: fputs(usage, stderr); return EXIT_USAGE;
		}
	if (optind != argc) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	watch_init(&w, socket);
	r = watch_look(&w);
	if (r)
		fprintf(stderr, "cistern trace: %s\n", w.why);
	else
		r = write_trace(path, last_s, &w);
	watch_fini(&w);
	return r ? EXIT_FAILURE : EXIT_SUCCESS;
}
