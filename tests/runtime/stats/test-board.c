/* The board and its page: what is counted is what readers see, whole, and nobody else can write it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/stats/board.h"
#include "shm/stats/view.h"

static const uint8_t some_space[16] = {1}, model_a[16] = {0xab, 0xcd}, model_b[16] = {2};

static int make(void **state)
{
	struct board *b;

	if (board_new(&b))
		return -1;
	*state = b;
	return 0;
}

static int clean_up(void **state)
{
	board_free(*state);
	return 0;
}

static struct stats_view view_of(const struct board *b)
{
	struct stats_view v;
	const char *why;

	assert_int_equal(stats_view_map(board_fd(b), &v, &why), 0);
	return v;
}

static uint64_t cache_number(
	const struct stats_view *v, const struct stats_snapshot *s, uint32_t i, const char *id)
{
	const struct stats_field *field = stats_view_field(v, STATS_CACHE, id);

	assert_non_null(field);
	return stats_number(stats_record(v, s, STATS_CACHE, i), field);
}

static void counts_are_seen_by_name(void **state)
{
	struct board *b = *state;
	struct stats_view v = view_of(b);
	struct stats_snapshot s = {0};
	struct frame_info info = {.n_tokens = 256,
		.n_raw = 134,
		.raw_bytes = 1000,
		.len_bytes = 100,
		.error = {{.mean = 0.25f, .max = 0.5f}, {.mean = 0.125f, .max = 0.75f}}};
	const uint32_t n_class[BOARD_CLASSES] = {[TOKEN_PLAIN] = 124, [TOKEN_SINK] = 4, [TOKEN_WINDOW] = 128};
	const void *record;

	board_encoded(board_cache(b, some_space, model_a), &info, n_class, 2000);
	board_request(board_cache(b, some_space, model_b), WIRE_LOOKUP, 0, 3, 8, 500);
	board_request(board_cache(b, some_space, model_b), WIRE_GET, -EIO, 0, 8, 500);
	b->daemon.connections = 7;
	assert_int_equal(stats_snapshot_take(&v, &s), 0);
	assert_int_equal(s.n[STATS_CACHE], 0); /* nothing is published yet */
	board_publish(b, 0);
	assert_int_equal(stats_snapshot_take(&v, &s), 0);
	assert_int_equal(s.n[STATS_DAEMON], 1);
	assert_int_equal(s.n[STATS_CACHE], 2);
	assert_int_equal(stats_number(stats_record(&v, &s, STATS_DAEMON, 0),
				 stats_view_field(&v, STATS_DAEMON, "connections")),
		7);
	record = stats_record(&v, &s, STATS_CACHE, 0);
	assert_string_equal(
		stats_text(record, stats_view_field(&v, STATS_CACHE, "fingerprint")), "abcd000000000000");
	assert_int_equal(cache_number(&v, &s, 0, "put_chunks"), 1);
	assert_int_equal(cache_number(&v, &s, 0, "tokens_plain"), 122);
	assert_int_equal(cache_number(&v, &s, 0, "tokens_exact"), 2);
	assert_true(stats_real(record, stats_view_field(&v, STATS_CACHE, "value_error_max")) == 0.75);
	assert_int_equal(
		histogram_count(stats_histogram(record, stats_view_field(&v, STATS_CACHE, "encode_ns"))), 1);
	assert_int_equal(cache_number(&v, &s, 1, "lookup_chunks"), 8);
	assert_int_equal(cache_number(&v, &s, 1, "hit_chunks"), 3);
	assert_int_equal(cache_number(&v, &s, 1, "failed"), 1);
	assert_null(stats_view_field(&v, STATS_CACHE, "no-such-field"));
	stats_snapshot_fini(&s);
	stats_view_fini(&v);
}

/* A page with more tenants than it has records loses none of what they did. */
static void too_many_share_the_last(void **state)
{
	struct board *b = *state;
	struct stats_view v = view_of(b);
	struct stats_snapshot s = {0};
	uint64_t sum = 0;

	for (uint32_t round = 0; round < 2; round++)
		for (uint32_t i = 0; i < STATS_CACHES_MAX + 10; i++) {
			uint8_t model[16] = {0};

			memcpy(model, &i, sizeof i);
			board_cache(b, some_space, model)->puts++;
		}
	board_publish(b, 0);
	assert_int_equal(stats_snapshot_take(&v, &s), 0);
	assert_int_equal(s.n[STATS_CACHE], STATS_CACHES_MAX);
	for (uint32_t i = 0; i < STATS_CACHES_MAX; i++)
		sum += cache_number(&v, &s, i, "puts");
	assert_int_equal(sum, 2 * (STATS_CACHES_MAX + 10));
	assert_int_equal(cache_number(&v, &s, STATS_CACHES_MAX - 1, "puts"), 2 * 11);
	stats_snapshot_fini(&s);
	stats_view_fini(&v);
}

static void nobody_else_writes(void **state)
{
	const int fd = board_fd(*state);
	char path[64];
	int again;

	assert_true(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
	assert_int_equal(pwrite(fd, "x", 1, 0), -1);
	assert_int_equal(ftruncate(fd, 0), -1);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR);
	if (again >= 0) {
		assert_int_equal(pwrite(again, "x", 1, 0), -1);
		close(again);
	}
}

struct race {
	struct board *board;
	_Atomic bool stop;
};

/* Keeps lookups twice as many as puts in every publication. */
static void *publish(void *arg)
{
	struct race *r = arg;

	while (!atomic_load(&r->stop)) {
		struct stats_cache *c = board_cache(r->board, some_space, model_a);

		c->puts++;
		c->lookups += 2;
		r->board->daemon.connections = c->puts;
		board_publish(r->board, 0);
		/* The daemon's come 50 ms apart; without any pause no reader would ever get through. */
		usleep(20);
	}
	return NULL;
}

static void copies_are_whole(void **state)
{
	struct race r = {.board = *state};
	struct stats_view v = view_of(r.board);
	struct stats_snapshot s = {0};
	uint64_t last = 0, n_moved = 0;
	pthread_t writer;

	assert_int_equal(pthread_create(&writer, NULL, publish, &r), 0);
	while (n_moved < 500) { /* the test's time-out is the bound */
		uint64_t puts;

		if (stats_snapshot_take(&v, &s) || !s.n[STATS_CACHE])
			continue;
		puts = cache_number(&v, &s, 0, "puts");
		assert_int_equal(cache_number(&v, &s, 0, "lookups"), 2 * puts);
		assert_int_equal(stats_number(stats_record(&v, &s, STATS_DAEMON, 0),
					 stats_view_field(&v, STATS_DAEMON, "connections")),
			puts);
		assert_true(puts >= last);
		n_moved += puts > last;
		last = puts;
	}
	atomic_store(&r.stop, true);
	pthread_join(writer, NULL);
	stats_snapshot_fini(&s);
	stats_view_fini(&v);
}

/* As a daemon leaves the page that is killed while it writes: readers come back with an error. */
static void a_writer_that_died(void **state)
{
	struct board *b = *state;
	struct stats_view v = view_of(b);
	struct stats_snapshot s = {0};

	atomic_fetch_add(&b->page->sequence, 1);
	assert_int_equal(stats_snapshot_take(&v, &s), -EAGAIN);
	stats_view_fini(&v);
}

/* Spans whose fields all follow from one number: a torn one shows. */
static struct trace_event span(uint64_t i)
{
	return (struct trace_event){.start_ns = i,
		.duration_ns = 2 * i,
		.track = TRACE_WORKER,
		.lane = (uint32_t)(3 * i),
		.request = 4 * i,
		.bytes = 5 * i};
}

static void assert_spans(const struct trace_event *e, size_t n, uint64_t first)
{
	for (size_t i = 0; i < n; i++) {
		const struct trace_event wanted = span(first + i);

		assert_memory_equal(&e[i], &wanted, sizeof wanted);
	}
}

static void the_last_spans_are_kept(void **state)
{
	struct board *b = *state;
	struct stats_view v = view_of(b);
	struct trace_event *e = calloc(TRACE_EVENTS, sizeof *e), s;

	assert_int_equal(stats_trace(&v, e, TRACE_EVENTS), 0);
	for (uint64_t i = 0; i < 10; i++) {
		s = span(i);
		board_trace(b, &s);
	}
	assert_int_equal(stats_trace(&v, e, TRACE_EVENTS), 10);
	assert_spans(e, 10, 0);
	assert_int_equal(stats_trace(&v, e, 3), 3);
	assert_spans(e, 3, 7);
	for (uint64_t i = 10; i < 3 * TRACE_EVENTS; i++) {
		s = span(i);
		board_trace(b, &s);
	}
	/* The oldest lies where the next will be written, and may be half gone. */
	assert_int_equal(stats_trace(&v, e, TRACE_EVENTS), TRACE_EVENTS - 1);
	assert_spans(e, TRACE_EVENTS - 1, 2 * TRACE_EVENTS + 1);
	free(e);
	stats_view_fini(&v);
}

static void *keep_tracing(void *arg)
{
	struct race *r = arg;

	for (uint64_t i = 0; !atomic_load(&r->stop); i++) {
		const struct trace_event s = span(i);

		board_trace(r->board, &s);
		if (i % 64 == 0)
			usleep(20); /* or it would always be a whole ring ahead of a slow reader */
	}
	return NULL;
}

static void no_span_is_torn(void **state)
{
	struct race r = {.board = *state};
	struct stats_view v = view_of(r.board);
	struct trace_event *e = calloc(TRACE_EVENTS, sizeof *e);
	size_t n_seen = 0, n_moved = 0;
	uint64_t last = 0;
	pthread_t writer;

	assert_int_equal(pthread_create(&writer, NULL, keep_tracing, &r), 0);
	/* Until many spans have been seen in copies of a ring that moved on. */
	while (n_seen < 300000 || n_moved < 10) {
		const size_t n = stats_trace(&v, e, TRACE_EVENTS);

		if (!n)
			continue;
		assert_spans(e, n, e[0].start_ns);
		n_seen += n;
		n_moved += e[0].start_ns > last;
		last = e[0].start_ns;
	}
	atomic_store(&r.stop, true);
	pthread_join(writer, NULL);
	free(e);
	stats_view_fini(&v);
}

static int memfd_with(const void *data, size_t len, size_t size)
{
	const int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, len), (ssize_t)len);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	return fd;
}

static void other_files_are_refused(void **state)
{
	const struct board *b = *state;
	const size_t len = b->page_bytes;
	struct stats_header *h = malloc(len);
	struct stats_view v;
	const char *why;
	int fd;

	memcpy(h, b->page, len);
	for (int fault = 0; fault < 10; fault++) {
		struct stats_header bad = *h;
		size_t size = len;

		switch (fault) {
		case 0: bad.magic++; break;
		case 1: bad.version++; break;
		case 2: bad.len_bytes += 4096; break;
		case 3: bad.histogram_buckets--; break;
		case 4: bad.groups[1].records_off = UINT64_MAX - 7; break;
		case 5: bad.groups[1].n_records_max = UINT32_MAX; break;
		case 6: bad.groups[0].record_bytes = 16; break; /* fields reach outside */
		case 7: size = 64; break;
		case 8: bad.trace_off = UINT64_MAX - 7; break;
		case 9: bad.n_traces = 0; break;
		}
		fd = memfd_with(&bad, size < sizeof bad ? size : sizeof bad, size);
		assert_int_equal(pwrite(fd, (char *)h + sizeof bad,
					 size - (size < sizeof bad ? size : sizeof bad), sizeof bad),
			(ssize_t)(size - (size < sizeof bad ? size : sizeof bad)));
		assert_int_equal(stats_view_map(fd, &v, &why), -EPROTO);
		close(fd);
	}
	/* Whoever could cut it short could kill its readers. */
	fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(write(fd, h, len), (ssize_t)len);
	assert_int_equal(stats_view_map(fd, &v, &why), -EPROTO);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	assert_int_equal(stats_view_map(fd, &v, &why), 0);
	stats_view_fini(&v);
	close(fd);
	free(h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(counts_are_seen_by_name, make, clean_up),
		cmocka_unit_test_setup_teardown(too_many_share_the_last, make, clean_up),
		cmocka_unit_test_setup_teardown(nobody_else_writes, make, clean_up),
		cmocka_unit_test_setup_teardown(copies_are_whole, make, clean_up),
		cmocka_unit_test_setup_teardown(a_writer_that_died, make, clean_up),
		cmocka_unit_test_setup_teardown(the_last_spans_are_kept, make, clean_up),
		cmocka_unit_test_setup_teardown(no_span_is_torn, make, clean_up),
		cmocka_unit_test_setup_teardown(other_files_are_refused, make, clean_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
