#include "shm/stats/view.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

enum { TAKE_MS = 100 };

static bool lies_inside(const struct stats_header *h, uint64_t off, uint64_t n, uint64_t size)
{
	uint64_t bytes, end;

	return off % 8 == 0 && !__builtin_mul_overflow(n, size, &bytes) &&
	       !__builtin_add_overflow(off, bytes, &end) && end <= h->len_bytes;
}

static bool is_sound_field(const struct stats_group *g, const struct stats_field *f)
{
	uint32_t end;

	if (f->offset % 8 || __builtin_add_overflow(f->offset, f->len_bytes, &end) || end > g->record_bytes ||
		!memchr(f->id, 0, sizeof f->id) || !memchr(f->metric, 0, sizeof f->metric) ||
		!memchr(f->labels, 0, sizeof f->labels) || !memchr(f->help, 0, sizeof f->help))
		return false;
	switch (f->kind) {
	case STATS_COUNTER:
	case STATS_GAUGE: return f->len_bytes == 8;
	case STATS_HISTOGRAM: return f->len_bytes == sizeof(struct histogram);
	case STATS_TEXT: return f->len_bytes >= 8 && f->len_bytes % 8 == 0;
	default: return true; /* of a kind from the future: skipped */
	}
}

/* The page comes from a daemon that its reader trusts; the checks are against pages of other makers' and
 * versions, so that no reader crashes on one. */
static const char *fault_of(const struct stats_header *h, uint64_t file_bytes)
{
	if (h->magic != STATS_MAGIC)
		return "not a statistics page";
	if (h->version != STATS_VERSION)
		return "a statistics page of another version";
	if (h->len_bytes > file_bytes || h->n_groups < STATS_GROUPS ||
		h->histogram_buckets != HISTOGRAM_BUCKETS || h->histogram_first_ns != HISTOGRAM_FIRST_NS ||
		h->histogram_steps != HISTOGRAM_STEPS)
		return "a statistics page whose header contradicts itself or this reader";
	if (!h->n_traces || h->trace_bytes != sizeof(struct trace_event) ||
		!lies_inside(h, h->trace_off, h->n_traces, h->trace_bytes))
		return "a statistics page with a trace outside of it, or of another kind";
	for (uint32_t i = 0; i < STATS_GROUPS; i++) {
		const struct stats_group *g = &h->groups[i];
		const struct stats_field *fields = (const void *)((const char *)h + g->fields_off);

		if (!g->record_bytes || g->record_bytes % 8 ||
			!lies_inside(h, g->records_off, g->n_records_max, g->record_bytes) ||
			!lies_inside(h, g->fields_off, g->n_fields, sizeof *fields))
			return "a statistics page with records or descriptions outside of it";
		for (uint32_t k = 0; k < g->n_fields; k++)
			if (!is_sound_field(g, &fields[k]))
				return "a statistics page with a field that contradicts itself";
	}
	return NULL;
}

int stats_view_map(int fd, struct stats_view *out, const char **why)
{
	const char *fault = "not a statistics page";
	const struct stats_header *h;
	struct stat st;
	size_t len;

	if (fstat(fd, &st))
		return -errno;
	len = (size_t)st.st_size;
	/* Else the daemon, or who stands for it, could cut the file short under the reader (SIGBUS). */
	if (len < sizeof *h || !(fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK)) {
		*why = fault;
		return -EPROTO;
	}
	h = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
	if (h == MAP_FAILED)
		return -errno;
	fault = fault_of(h, len);
	if (fault) {
		munmap((void *)h, len);
		*why = fault;
		return -EPROTO;
	}
	*out = (struct stats_view){.header = h, .len_bytes = len};
	return 0;
}

void stats_view_fini(struct stats_view *v)
{
	if (v->header)
		munmap((void *)v->header, v->len_bytes);
	*v = (struct stats_view){0};
}

const struct stats_field *stats_view_fields(
	const struct stats_view *v, enum stats_group_id group, uint32_t *n)
{
	const struct stats_group *g = &v->header->groups[group];

	*n = g->n_fields;
	return (const void *)((const char *)v->header + g->fields_off);
}

const struct stats_field *stats_view_field(
	const struct stats_view *v, enum stats_group_id group, const char *id)
{
	uint32_t n;
	const struct stats_field *fields = stats_view_fields(v, group, &n);

	for (uint32_t i = 0; i < n; i++)
		if (!strcmp(fields[i].id, id))
			return &fields[i];
	return NULL;
}

/* Copies n words that may be written meanwhile. Acquire, each of them: what is loaded after the copy
 * (sequence, head) is loaded after every word, and a word of a later writing brings with it what the writer
 * stored before it. On x86 these are plain loads. */
static void copy_words(uint64_t *to, const void *from, size_t n)
{
	const _Atomic uint64_t *words = from;

	for (size_t i = 0; i < n; i++)
		to[i] = atomic_load_explicit(
			&words[i], memory_order_acquire); /* pairs with board.c's copy_words */
}

/* One try. False: the writer came in between. */
static bool try_copy(const struct stats_view *v, uint8_t *block, struct stats_snapshot *out)
{
	const struct stats_header *h = v->header;
	/* Pairs with the release store of the even number: all of that writing is seen. */
	const uint64_t before = atomic_load_explicit(&h->sequence, memory_order_acquire);

	if (before & 1)
		return false;
	out->published_ns = atomic_load_explicit(&h->published_ns, memory_order_acquire);
	for (uint32_t i = 0; i < STATS_GROUPS; i++) {
		const struct stats_group *g = &h->groups[i];
		uint64_t n = atomic_load_explicit(&h->n_records[i], memory_order_acquire);

		n = n < g->n_records_max ? n : g->n_records_max;
		copy_words((uint64_t *)block, (const char *)h + g->records_off, n * g->record_bytes / 8);
		out->records[i] = block;
		out->n[i] = (uint32_t)n;
		block += (size_t)n * g->record_bytes;
	}
	/* A copy that holds anything of a later writing sees that writing's odd number: see copy_words. */
	return atomic_load_explicit(&h->sequence, memory_order_relaxed) == before;
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

int stats_snapshot_take(const struct stats_view *v, struct stats_snapshot *out)
{
	struct stats_snapshot s;
	const uint64_t until_ms = now_ms() + TAKE_MS;
	size_t room = 0;
	uint8_t *block;

	/* Room for all records there may be; what is not used is never touched. */
	for (uint32_t i = 0; i < STATS_GROUPS; i++)
		room += (size_t)v->header->groups[i].n_records_max * v->header->groups[i].record_bytes;
	block = malloc(room);
	if (!block)
		return -ENOMEM;
	while (!try_copy(v, block, &s)) {
		if (now_ms() >= until_ms) {
			free(block);
			return -EAGAIN;
		}
		sched_yield();
	}
	stats_snapshot_fini(out);
	*out = s;
	return 0;
}

void stats_snapshot_fini(struct stats_snapshot *s)
{
	free(s->records[0]);
	*s = (struct stats_snapshot){0};
}

size_t stats_trace(const struct stats_view *v, struct trace_event *out, size_t n_max)
{
	const struct stats_header *h = v->header;
	const char *slots = (const char *)h + h->trace_off;
	/* Pairs with the release store that moves head on: spans before it are there. */
	const uint64_t head = atomic_load_explicit(&h->trace_head, memory_order_acquire);
	uint64_t first = head > h->n_traces ? head - h->n_traces : 0, behind;
	size_t n = 0, n_lost;

	if (head - first > n_max)
		first = head - n_max;
	for (uint64_t i = first; i < head; i++)
		copy_words((uint64_t *)&out[n++], slots + i % h->n_traces * h->trace_bytes,
			sizeof *out / sizeof(uint64_t));
	/* A copy that holds anything of a later span sees the head that was there then, or a later one: see
	 * copy_words. The slot at that head may be half written. */
	behind = atomic_load_explicit(&h->trace_head, memory_order_relaxed);
	behind = behind + 1 > h->n_traces ? behind + 1 - h->n_traces : 0;
	n_lost = behind > first ? (size_t)(behind - first) : 0;
	if (n_lost >= n)
		return 0;
	memmove(out, out + n_lost, (n - n_lost) * sizeof *out);
	return n - n_lost;
}

const void *stats_record(
	const struct stats_view *v, const struct stats_snapshot *s, enum stats_group_id group, uint32_t i)
{
	return s->records[group] + (size_t)i * v->header->groups[group].record_bytes;
}

/* ---- values ---- */

static const void *value(const void *record, const struct stats_field *field)
{
	return (const char *)record + field->offset;
}

static bool is_number(const struct stats_field *field)
{
	return field && (field->kind == STATS_COUNTER || field->kind == STATS_GAUGE);
}

uint64_t stats_number(const void *record, const struct stats_field *field)
{
	return is_number(field) && field->unit != STATS_REAL ? *(const uint64_t *)value(record, field) : 0;
}

double stats_real(const void *record, const struct stats_field *field)
{
	if (is_number(field) && field->unit == STATS_REAL)
		return *(const double *)value(record, field);
	return (double)stats_number(record, field);
}

const char *stats_text(const void *record, const struct stats_field *field)
{
	const char *text = field && field->kind == STATS_TEXT ? value(record, field) : "";

	return *text && !memchr(text, 0, field->len_bytes) ? "" : text;
}

const struct histogram *stats_histogram(const void *record, const struct stats_field *field)
{
	return field && field->kind == STATS_HISTOGRAM ? value(record, field) : NULL;
}
