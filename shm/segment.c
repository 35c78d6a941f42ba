#include "shm/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SEGMENT_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, SEGMENT_ALIGN = 4096 };

static uint64_t align_up(uint64_t n)
{
	return (n + SEGMENT_ALIGN - 1) & ~(uint64_t)(SEGMENT_ALIGN - 1);
}

int segment_check(uint32_t n_entries, uint64_t arena_bytes)
{
	if (n_entries == 0 || n_entries > WIRE_ENTRIES_MAX || (n_entries & (n_entries - 1)))
		return -EINVAL;
	if (arena_bytes < WIRE_ARENA_MIN || arena_bytes > WIRE_ARENA_MAX)
		return -EINVAL;
	return 0;
}

/* Each part starts on a page: a stray write over the end of one is easier to find, and the rings never share
 * a line with anything. */
static void lay_out(uint32_t n_entries, uint64_t arena_bytes, struct wire_welcome *w)
{
	w->sq_entries = n_entries;
	w->cq_entries = 2 * n_entries;
	w->sq_off = 0;
	w->cq_off = align_up(ring_bytes(w->sq_entries, sizeof(struct wire_sqe)));
	w->arena_off = align_up(w->cq_off + ring_bytes(w->cq_entries, sizeof(struct wire_cqe)));
	w->arena_bytes = arena_bytes;
	w->segment_bytes = align_up(w->arena_off + arena_bytes);
}

static void point(struct segment *s, void *addr, const struct wire_welcome *w)
{
	uint8_t *base = addr;

	s->addr = addr;
	s->len_bytes = (size_t)w->segment_bytes;
	s->sq = (struct wire_ring *)(base + w->sq_off);
	s->cq = (struct wire_ring *)(base + w->cq_off);
	s->arena = base + w->arena_off;
	s->arena_bytes = w->arena_bytes;
	s->sq_entries = w->sq_entries;
	s->cq_entries = w->cq_entries;
}

int segment_create(uint32_t n_entries, uint64_t arena_bytes, struct segment *out, int *fd)
{
	struct wire_welcome w = {0};
	void *addr;
	int memfd;
	int r = segment_check(n_entries, arena_bytes);

	if (r < 0)
		return r;
	lay_out(n_entries, arena_bytes, &w);
	memfd = memfd_create("cistern-segment", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (memfd < 0)
		return -errno;
	r = -posix_fallocate(memfd, 0, (off_t)w.segment_bytes);
	if (r < 0)
		goto fail;
	if (fcntl(memfd, F_ADD_SEALS, SEGMENT_SEALS) < 0) {
		r = -errno;
		goto fail;
	}
	addr = mmap(
		NULL, (size_t)w.segment_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memfd, 0);
	if (addr == MAP_FAILED) {
		r = -errno;
		goto fail;
	}
	point(out, addr, &w);
	*fd = memfd;
	return 0;
fail:
	close(memfd);
	return r;
}

void segment_welcome(
	const struct segment *s, uint32_t chunk_tokens, uint32_t session_id, struct wire_welcome *out)
{
	*out = (struct wire_welcome){
		.header = {.magic = WIRE_MAGIC,
			.version = WIRE_VERSION,
			.type = WIRE_WELCOME,
			.len_bytes = sizeof(*out)},
		.chunk_tokens = chunk_tokens,
		.session_id = session_id,
	};
	lay_out(s->sq_entries, s->arena_bytes, out);
}

/* NULL, or what is wrong with a part of the segment. */
static const char *check_part(uint64_t offset, uint64_t len, uint64_t segment_bytes)
{
	if (offset % WIRE_CACHE_LINE)
		return "a part of the segment is misaligned";
	if (len > segment_bytes || offset > segment_bytes - len)
		return "a part of the segment reaches over its end";
	return NULL;
}

static bool overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a < b + b_len && b < a + a_len;
}

static const char *check_welcome(const struct wire_welcome *w)
{
	uint64_t sq_len, cq_len;
	const char *why;

	if (segment_check(w->sq_entries, w->arena_bytes) < 0 || w->cq_entries != 2 * w->sq_entries)
		return "a size in the welcome is out of range";
	if (w->segment_bytes > 4 * (uint64_t)WIRE_ARENA_MAX)
		return "the segment is too large";
	sq_len = ring_bytes(w->sq_entries, sizeof(struct wire_sqe));
	cq_len = ring_bytes(w->cq_entries, sizeof(struct wire_cqe));
	why = check_part(w->sq_off, sq_len, w->segment_bytes);
	if (!why)
		why = check_part(w->cq_off, cq_len, w->segment_bytes);
	if (!why)
		why = check_part(w->arena_off, w->arena_bytes, w->segment_bytes);
	if (why)
		return why;
	if (overlap(w->sq_off, sq_len, w->cq_off, cq_len) ||
		overlap(w->sq_off, sq_len, w->arena_off, w->arena_bytes) ||
		overlap(w->cq_off, cq_len, w->arena_off, w->arena_bytes))
		return "parts of the segment overlap";
	return NULL;
}

int segment_map(const struct wire_welcome *w, int fd, struct segment *out, const char **why)
{
	const char *fault = check_welcome(w);
	struct stat st;
	void *addr;
	int seals;

	if (!fault) {
		seals = fcntl(fd, F_GET_SEALS);
		if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
			fault = "the segment is not sealed against shrinking";
		else if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != w->segment_bytes)
			fault = "the segment's size is not what the welcome says";
	}
	if (fault) {
		if (why)
			*why = fault;
		return -EPROTO;
	}
	addr = mmap(NULL, (size_t)w->segment_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (addr == MAP_FAILED) {
		int r = -errno;

		if (why)
			*why = "the segment cannot be mapped";
		return r;
	}
	point(out, addr, w);
	return 0;
}

void segment_fini(struct segment *s)
{
	if (s->addr)
		munmap(s->addr, s->len_bytes);
	*s = (struct segment){0};
}

void segment_sq_producer(const struct segment *s, struct ring_producer *p)
{
	ring_producer_init(p, s->sq, s->sq_entries, sizeof(struct wire_sqe));
}

void segment_sq_consumer(const struct segment *s, struct ring_consumer *c)
{
	ring_consumer_init(c, s->sq, s->sq_entries, sizeof(struct wire_sqe));
}

void segment_cq_producer(const struct segment *s, struct ring_producer *p)
{
	ring_producer_init(p, s->cq, s->cq_entries, sizeof(struct wire_cqe));
}

void segment_cq_consumer(const struct segment *s, struct ring_consumer *c)
{
	ring_consumer_init(c, s->cq, s->cq_entries, sizeof(struct wire_cqe));
}
