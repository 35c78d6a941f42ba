#include "runtime/stats/board.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* ---- the page's description of itself ---- */

#define LEN_COUNTER(unit) 8
#define LEN_GAUGE(unit) 8
#define LEN_HISTOGRAM(unit) sizeof(struct histogram)
#define LEN_TEXT(unit) (unit)
#define UNIT_COUNTER(unit) STATS_##unit
#define UNIT_GAUGE(unit) STATS_##unit
#define UNIT_HISTOGRAM(unit) STATS_##unit
#define UNIT_TEXT(unit) STATS_PLAIN
#define DESCRIBE(record, kind_, unit_, id_, metric_, labels_, help_)                                         \
	{.id = #id_,                                                                                         \
		.metric = metric_,                                                                           \
		.labels = labels_,                                                                           \
		.help = help_,                                                                               \
		.offset = offsetof(struct record, id_),                                                      \
		.len_bytes = LEN_##kind_(unit_),                                                             \
		.kind = STATS_##kind_,                                                                       \
		.unit = UNIT_##kind_(unit_)},

static const struct stats_field daemon_fields[] = {
#define FIELD(group, kind, unit, id, metric, labels, help)                                                   \
	STATS_ONLY_DAEMON_##group(DESCRIBE(stats_daemon, kind, unit, id, metric, labels, help))
#include "shm/stats/fields.h"
};

static const struct stats_field cache_fields[] = {
#define FIELD(group, kind, unit, id, metric, labels, help)                                                   \
	STATS_ONLY_CACHE_##group(DESCRIBE(stats_cache, kind, unit, id, metric, labels, help))
#include "shm/stats/fields.h"
};

/* The page: header, both groups' descriptions, their records. */
struct page {
	struct stats_header header;
	struct stats_field daemon_fields[sizeof daemon_fields / sizeof *daemon_fields];
	struct stats_field cache_fields[sizeof cache_fields / sizeof *cache_fields];
	_Alignas(64) struct stats_daemon daemon;
	_Alignas(64) struct stats_cache caches[STATS_CACHES_MAX];
	_Alignas(64) struct trace_event traces[TRACE_EVENTS];
};

static void describe(struct page *p)
{
	struct stats_header *h = &p->header;

	h->magic = STATS_MAGIC;
	h->version = STATS_VERSION;
	h->len_bytes = sizeof *p;
	h->n_groups = STATS_GROUPS;
	h->histogram_buckets = HISTOGRAM_BUCKETS;
	h->histogram_first_ns = HISTOGRAM_FIRST_NS;
	h->histogram_steps = HISTOGRAM_STEPS;
	h->pid = (uint64_t)getpid();
	h->trace_off = offsetof(struct page, traces);
	h->n_traces = TRACE_EVENTS;
	h->trace_bytes = sizeof(struct trace_event);
	h->groups[STATS_DAEMON] = (struct stats_group){.name = "daemon",
		.record_bytes = sizeof(struct stats_daemon),
		.n_records_max = 1,
		.records_off = offsetof(struct page, daemon),
		.fields_off = offsetof(struct page, daemon_fields),
		.n_fields = sizeof daemon_fields / sizeof *daemon_fields};
	h->groups[STATS_CACHE] = (struct stats_group){.name = "cache",
		.record_bytes = sizeof(struct stats_cache),
		.n_records_max = STATS_CACHES_MAX,
		.records_off = offsetof(struct page, caches),
		.fields_off = offsetof(struct page, cache_fields),
		.n_fields = sizeof cache_fields / sizeof *cache_fields};
	memcpy(p->daemon_fields, daemon_fields, sizeof daemon_fields);
	memcpy(p->cache_fields, cache_fields, sizeof cache_fields);
	atomic_store_explicit(&h->n_records[STATS_DAEMON], 1, memory_order_relaxed);
}

static int make_page(struct board *b)
{
	const int fd = memfd_create("cistern-statistics", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *addr;
	int r;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, sizeof(struct page)))
		goto fail;
	addr = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (addr == MAP_FAILED)
		goto fail;
	/* FUTURE_WRITE leaves our mapping writable and refuses every other, also through /proc/PID/fd. */
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)) {
		r = -errno;
		munmap(addr, sizeof(struct page));
		close(fd);
		return r;
	}
	b->fd = fd;
	b->page = addr;
	b->page_bytes = sizeof(struct page);
	describe(addr);
	return 0;
fail:
	r = -errno;
	close(fd);
	return r;
}

int board_new(struct board **out)
{
	struct board *b = calloc(1, sizeof *b);
	int r = -ENOMEM;

	if (!b)
		return r;
	b->fd = -1;
	b->caches = calloc(STATS_CACHES_MAX, sizeof *b->caches);
	if (b->caches)
		r = make_page(b);
	if (r) {
		board_free(b);
		return r;
	}
	*out = b;
	return 0;
}

struct board *board_free(struct board *b)
{
	if (!b)
		return NULL;
	if (b->page)
		munmap(b->page, b->page_bytes);
	if (b->fd >= 0)
		close(b->fd);
	free(b->caches);
	free(b);
	return NULL;
}

int board_fd(const struct board *b)
{
	return b->fd;
}

/* ---- counting ---- */

static bool is_of(const struct board_cache *c, const uint8_t name_space[16], const uint8_t fingerprint[16])
{
	return !memcmp(c->fingerprint, fingerprint, 16) && !memcmp(c->name_space, name_space, 16);
}

static struct board_cache *add_cache(
	struct board *b, const uint8_t name_space[16], const uint8_t fingerprint[16])
{
	struct board_cache *c = &b->caches[b->n_caches];

	if (b->n_caches == STATS_CACHES_MAX)
		return c - 1;
	b->n_caches++;
	if (b->n_caches == STATS_CACHES_MAX) {
		strcpy(c->stats.name_space, "(others)");
		return c;
	}
	memcpy(c->name_space, name_space, 16);
	memcpy(c->fingerprint, fingerprint, 16);
	for (int i = 0; i < 8; i++) {
		c->stats.fingerprint[2 * i] = "0123456789abcdef"[fingerprint[i] >> 4];
		c->stats.fingerprint[2 * i + 1] = "0123456789abcdef"[fingerprint[i] & 15];
	}
	return c;
}

struct stats_cache *board_cache(struct board *b, const uint8_t name_space[16], const uint8_t fingerprint[16])
{
	struct board_cache *c = &b->caches[b->last];

	if (!b->n_caches || !is_of(c, name_space, fingerprint)) {
		uint32_t i = 0;

		while (i < b->n_caches && !is_of(&b->caches[i], name_space, fingerprint))
			i++;
		c = i < b->n_caches ? &b->caches[i] : add_cache(b, name_space, fingerprint);
		b->last = (uint32_t)(c - b->caches);
	}
	c->changed = true;
	b->changed = true;
	return &c->stats;
}

void board_request(
	struct stats_cache *s, enum wire_op op, int status, uint32_t n_chunks, uint32_t n_asked, uint64_t ns)
{
	s->failed += status != 0;
	switch (op) {
	case WIRE_LOOKUP:
		s->lookups++;
		s->lookup_chunks += n_asked;
		s->hit_chunks += n_chunks;
		histogram_add(&s->lookup_ns, ns);
		break;
	case WIRE_PUT:
		s->puts++;
		histogram_add(&s->put_ns, ns);
		break;
	case WIRE_GET:
		s->gets++;
		histogram_add(&s->get_ns, ns);
		break;
	case WIRE_PREFETCH: s->prefetches++; break;
	case WIRE_REMOVE: s->removes++; break;
	default: break;
	}
}

/* Keeps a mean in which what is n chunks back counts (63/64)^n. */
static void note_error(double *mean, double *max, const struct frame_error *e, bool first)
{
	*mean = first ? e->mean : *mean + (e->mean - *mean) / 64;
	if (e->max > *max)
		*max = e->max;
}

void board_encoded(struct stats_cache *s, const struct frame_info *info,
	const uint32_t n_class[BOARD_CLASSES], uint64_t ns)
{
	const uint32_t n_raw = n_class[TOKEN_SINK] + n_class[TOKEN_WINDOW],
		       n_coded = info->n_tokens - info->n_raw;
	const uint32_t n_finer_or_coarser = n_class[TOKEN_SALIENT] + n_class[TOKEN_REDUNDANT];

	if (info->n_raw < info->n_tokens) {
		const bool first = s->key_error_mean == 0 && s->value_error_mean == 0;

		note_error(&s->key_error_mean, &s->key_error_max, &info->error[0], first);
		note_error(&s->value_error_mean, &s->value_error_max, &info->error[1], first);
	}
	s->put_chunks++;
	s->put_raw_bytes += info->raw_bytes;
	s->put_frame_bytes += info->len_bytes;
	s->tokens_sink += n_class[TOKEN_SINK];
	s->tokens_window += n_class[TOKEN_WINDOW];
	s->tokens_exact += info->n_raw - n_raw;
	s->tokens_salient += n_class[TOKEN_SALIENT];
	s->tokens_redundant += n_class[TOKEN_REDUNDANT];
	s->tokens_plain += n_coded > n_finer_or_coarser ? n_coded - n_finer_or_coarser : 0;
	histogram_add(&s->encode_ns, ns);
}

void board_decoded(struct stats_cache *s, uint64_t raw_bytes, uint64_t frame_bytes, bool first, uint64_t ns)
{
	histogram_add(&s->decode_ns, ns);
	if (!first)
		return;
	s->get_chunks++;
	s->get_raw_bytes += raw_bytes;
	s->get_frame_bytes += frame_bytes;
}

void board_entry(struct board *b, const struct index_owner *owner, const struct index_entry *e, int sign)
{
	const bool in_pool = e->record != NULL, on_disk = e->page != 0;
	const int64_t bytes = (int64_t)sign * e->frame_bytes;
	struct stats_cache *s;

	if (!in_pool && !on_disk)
		return;
	s = board_cache(b, owner->name_space, owner->fingerprint);
	s->chunks += sign;
	s->tokens += (int64_t)sign * e->n_tokens;
	s->raw_bytes += (int64_t)sign * (int64_t)e->raw_bytes;
	s->frame_bytes += bytes;
	s->pool_chunks += in_pool ? sign : 0;
	s->pool_bytes += in_pool ? bytes : 0;
	s->store_chunks += on_disk ? sign : 0;
	s->store_bytes += on_disk ? bytes : 0;
}

void board_store_op(struct board *b, const struct store_op *op, uint64_t submitted_ns)
{
	const uint64_t ns = board_now_ns() - submitted_ns;
	struct trace_event e = {.start_ns = submitted_ns,
		.duration_ns = ns,
		.track = TRACE_STORE,
		.status = op->status,
		.bytes = op->record.frame_bytes};

	switch (op->kind) {
	case STORE_WRITE:
		histogram_add(&b->daemon.store_write_ns, ns);
		e.name = TRACE_WRITE;
		break;
	case STORE_READ:
		histogram_add(&b->daemon.store_read_ns, ns);
		e.name = TRACE_READ;
		break;
	case STORE_SYNC: e.name = TRACE_FLUSH; break;
	default: e.name = TRACE_TOMBSTONE; break;
	}
	board_trace(b, &e);
}

/* ---- publication ---- */

/* Release, each of them: who sees a word of this writing sees what was stored before it (the odd number, the
 * head). On x86 these are plain stores. Fences would say the same in one line, but thread sanitizers do not
 * know them. */
static void copy_words(void *to, const void *from, size_t len_bytes)
{
	_Atomic uint64_t *words = to;
	const uint64_t *source = from;

	for (size_t i = 0; i < len_bytes / 8; i++)
		atomic_store_explicit(
			&words[i], source[i], memory_order_release); /* pairs with view.c's copy_words */
}

void board_trace(struct board *b, const struct trace_event *e)
{
	struct page *p = (struct page *)b->page;
	const uint64_t head = atomic_load_explicit(&p->header.trace_head, memory_order_relaxed);

	copy_words(&p->traces[head % TRACE_EVENTS], e, sizeof *e);
	/* Pairs with the reader's acquire load. */
	atomic_store_explicit(&p->header.trace_head, head + 1, memory_order_release);
}

void board_publish(struct board *b, uint64_t now_ms)
{
	struct page *p = (struct page *)b->page;
	struct stats_header *h = &p->header;
	const uint64_t sequence = atomic_load_explicit(&h->sequence, memory_order_relaxed);

	atomic_store_explicit(&h->sequence, sequence + 1, memory_order_relaxed);
	atomic_store_explicit(&h->published_ns, board_now_ns(), memory_order_release);
	atomic_store_explicit(&h->n_records[STATS_CACHE], b->n_caches, memory_order_release);
	copy_words(&p->daemon, &b->daemon, sizeof b->daemon);
	for (uint32_t i = 0; i < b->n_caches; i++) {
		if (!b->caches[i].changed)
			continue;
		copy_words(&p->caches[i], &b->caches[i].stats, sizeof b->caches[i].stats);
		b->caches[i].changed = false;
	}
	/* Pairs with the reader's acquire load. */
	atomic_store_explicit(&h->sequence, sequence + 2, memory_order_release);
	b->changed = false;
	b->published_ms = now_ms;
}

uint64_t board_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
