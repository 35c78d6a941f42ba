#include "runtime/store/engine.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- tasks ---- */

int engine_init(struct engine *e, const struct store_config *config, int dir_fd, bool direct)
{
	*e = (struct engine){.depth = config->depth,
		.limit_bytes = config->limit_bytes,
		.segment_bytes = config->segment_bytes};
	op_list_init(&e->reads);
	op_list_init(&e->others);
	op_list_init(&e->finished);
	e->tasks = calloc(e->depth, sizeof *e->tasks);
	if (!e->tasks)
		return -ENOMEM;
	for (uint32_t i = 0; i < e->depth; i++) {
		e->tasks[i].engine = e;
		e->tasks[i].next = e->idle;
		e->idle = &e->tasks[i];
	}
	return segments_init(&e->segments, dir_fd, direct);
}

uint32_t engine_requests(const struct engine *e)
{
	/* Segments being synced or closed have requests of their own beside the tasks'. */
	return e->depth + 16;
}

void engine_fini(struct engine *e)
{
	assert(e->n_busy == 0 && e->n_closing == 0);
	for (uint32_t i = 0; e->tasks && i < e->depth; i++)
		free(e->tasks[i].page);
	free(e->tasks);
	segments_fini(&e->segments);
}

void engine_submit(struct engine *e, struct store_op *op)
{
	op_list_add(op->kind == STORE_READ ? &e->reads : &e->others, op);
}

static void finish_op(struct engine *e, struct store_op *op, int status)
{
	/* A full store and a record that is not there are answers, not errors of the disk. */
	e->stats.n_errors += status < 0 && status != -ENOSPC && status != -ENOENT && status != -EBADMSG;
	e->stats.n_dropped += status == -EBADMSG;
	op->status = status;
	op_list_add(&e->finished, op);
}

static void free_task(struct task *t)
{
	struct engine *e = t->engine;

	e->n_busy--;
	e->n_busy_others -= t->op->kind != STORE_READ;
	t->op = NULL;
	t->segment = NULL;
	t->next = e->idle;
	e->idle = t;
}

static void finish_task(struct task *t, int status)
{
	finish_op(t->engine, t->op, status);
	free_task(t);
}

static void start_io(struct task *t, enum io_kind kind, int fd, void *data, uint64_t len, uint64_t offset,
	void (*done)(struct io_request *, int))
{
	t->io = (struct io_request){.kind = kind,
		.fd = fd,
		.data = data,
		.len = (size_t)len,
		.offset = offset,
		.done = done,
		.user = t};
	t->segment->n_in_flight++;
	io_start(&t->engine->io, &t->io);
}

/* ---- closing a segment ---- */

/* The end of closing, well or not. What the file has too much is given back; without a footer it is scanned
 * at the next start. */
static void closed(struct segment *g, uint64_t len_bytes)
{
	struct engine *e = g->owner;

	if (g->fd >= 0 && len_bytes < g->len_bytes && ftruncate(g->fd, (off_t)len_bytes) == 0)
		segments_shrink(&e->segments, g, len_bytes);
	free(g->footer);
	free(g->headers);
	g->footer = NULL;
	g->headers = NULL;
	g->n_headers = g->headers_capacity = 0;
	g->state = SEGMENT_CLOSED;
	e->n_closing--;
}

static void footer_synced(struct io_request *r, int status)
{
	struct segment *g = r->user;

	g->n_in_flight--;
	if (status < 0)
		log_warning("store: segment-%08x: sync: %s", g->number, strerror(-status));
	else
		g->dirty = false;
	closed(g, r->offset + r->len);
}

static void footer_written(struct io_request *r, int status)
{
	struct segment *g = r->user;
	struct engine *e = g->owner;

	if (status < 0) {
		g->n_in_flight--;
		log_warning("store: segment-%08x: cannot write its footer: %s", g->number, strerror(-status));
		closed(g, g->end);
		return;
	}
	g->dirty = true;
	r->kind = IO_FDATASYNC;
	r->done = footer_synced;
	io_start(&e->io, r);
}

static int compare_offset(const void *a, const void *b)
{
	uint64_t x = ((const struct format_record *)a)->offset, y = ((const struct format_record *)b)->offset;

	return x < y ? -1 : x > y;
}

/* Once no record is being written any more. Writes ended in any order, the footer is in order of place. */
static void write_footer(struct segment *g)
{
	struct engine *e = g->owner;
	size_t len = (size_t)format_footer_bytes(g->n_headers);

	g->footer = g->no_footer ? NULL : aligned_alloc(STORE_ALIGN, len);
	if (!g->footer) {
		closed(g, g->end);
		return;
	}
	if (g->n_headers)
		qsort(g->headers, g->n_headers, sizeof *g->headers, compare_offset);
	format_footer_encode(g->footer, g->headers, g->n_headers, g->number, g->salt, g->end);
	g->closing = (struct io_request){.kind = IO_WRITE,
		.fd = g->fd,
		.data = g->footer,
		.len = len,
		.offset = g->end,
		.done = footer_written,
		.user = g};
	g->n_in_flight++;
	io_start(&e->io, &g->closing);
}

static void close_segment(struct engine *e, struct segment *g)
{
	assert(g == e->open);
	e->open = NULL;
	e->n_closing++;
	g->state = SEGMENT_CLOSING;
	if (g->n_writing == 0)
		write_footer(g);
}

/* ---- writing ---- */

/* The open segment, or a new one, with room for one more record of len_bytes. The last segment_bytes of the
 * limit are for tombstones alone: without room to forget, nothing could ever be forgotten. -ENOSPC; -EAGAIN:
 * a segment is being closed, and may turn out to make room. */
static int find_room(struct engine *e, uint64_t len_bytes, bool tombstone, struct segment **out)
{
	struct segment *g = e->open;
	struct segments *t = &e->segments;
	bool fits = g && g->end + len_bytes + format_footer_bytes(g->n_slots + 1) <= g->len_bytes;
	uint64_t own = STORE_ALIGN + len_bytes + format_footer_bytes(1);
	uint64_t new_bytes = fits ? 0 : own > e->segment_bytes ? own : e->segment_bytes;
	uint64_t limit_bytes = e->limit_bytes - (tombstone ? 0 : e->segment_bytes);
	int r;

	if (new_bytes > limit_bytes)
		return -ENOSPC;
	while (t->used_bytes > limit_bytes - new_bytes)
		if (!segments_reclaim(t))
			return e->n_closing ? -EAGAIN : -ENOSPC;
	if (!fits) {
		do
			r = segments_create(t, new_bytes, &g);
		while (r == -ENOSPC && segments_reclaim(t));
		if (r < 0)
			return r;
		g->owner = e;
		/* Only now: had there been no room for a new one, the old one would still take shorter
		 * records. */
		if (e->open)
			close_segment(e, e->open);
		e->open = g;
	}
	*out = g;
	return 0;
}

static void written(struct io_request *r, int status)
{
	struct task *t = r->user;
	struct engine *e = t->engine;
	struct segment *g = t->segment;

	g->n_in_flight--;
	g->n_writing--;
	/* A write that failed may have left anything in its place, which is not used again; a scan will tell.
	 */
	g->dirty = true;
	if (status == 0 && segment_add_header(g, &t->header) < 0)
		g->no_footer = true;
	if (g->state == SEGMENT_CLOSING && g->n_writing == 0)
		write_footer(g);
	if (status < 0) {
		finish_task(t, status);
		return;
	}
	e->stats.n_writes++;
	e->stats.written_bytes += r->len;
	if (t->header.kind == FORMAT_TOMBSTONE) {
		t->serial = 0;
		t->next = e->syncs;
		e->syncs = t;
		return;
	}
	segment_set_live(&e->segments, g, t->slot, true);
	format_record_describe(&t->header, &t->op->record);
	finish_task(t, 0);
}

static struct format_record header_of(const struct store_record *r)
{
	struct format_record h = {.raw_bytes = r->raw_bytes,
		.position = r->position,
		.n_tokens = r->n_tokens,
		.kind = FORMAT_WRITE};

	memcpy(h.name_space, r->name_space, sizeof h.name_space);
	memcpy(h.fingerprint, r->fingerprint, sizeof h.fingerprint);
	memcpy(h.key, r->key, sizeof h.key);
	memcpy(h.parent, r->parent, sizeof h.parent);
	memcpy(h.transform, r->transform, sizeof h.transform);
	return h;
}

/* Writes the record in data, of which header and padding are filled in here. */
static int start_write(struct task *t, char *data, uint64_t frame_bytes)
{
	struct engine *e = t->engine;
	uint64_t len = format_pad(STORE_HEADER_BYTES + frame_bytes);
	struct format_record *h = &t->header;
	struct segment *g;
	int r = find_room(e, len, h->kind == FORMAT_TOMBSTONE, &g);

	if (r < 0)
		return r;
	h->frame_bytes = frame_bytes;
	h->sequence = e->next_sequence;
	h->segment = g->number;
	h->offset = g->end;
	r = segment_add_slot(g, segment_hash(h->name_space, h->fingerprint, h->key), h, &t->slot);
	if (r < 0)
		return r;
	h->body_checksum = format_checksum(data + STORE_HEADER_BYTES, (size_t)frame_bytes, g->salt);
	format_record_seal(h, g->salt);
	memcpy(data, h, sizeof *h);
	memset(data + STORE_HEADER_BYTES + frame_bytes, 0, (size_t)(len - STORE_HEADER_BYTES - frame_bytes));
	e->next_sequence++;
	g->end += len;
	g->n_writing++;
	t->serial = ++e->serial;
	t->segment = g;
	start_io(t, IO_WRITE, g->fd, data, len, h->offset, written);
	return 0;
}

static bool is_aligned(const void *data)
{
	return data && (uintptr_t)data % STORE_ALIGN == 0;
}

static int start_record(struct task *t)
{
	const struct store_op *op = t->op;

	if (!is_aligned(op->data) || op->record.frame_bytes == 0 ||
		op->record.frame_bytes >= (uint64_t)UINT32_MAX * STORE_ALIGN - STORE_HEADER_BYTES)
		return -EINVAL;
	t->header = header_of(&op->record);
	return start_write(t, op->data, op->record.frame_bytes);
}

static int start_tombstone(struct task *t)
{
	const struct store_record *r = &t->op->record;

	if (!t->page)
		t->page = aligned_alloc(STORE_ALIGN, STORE_ALIGN);
	if (!t->page)
		return -ENOMEM;
	t->header = (struct format_record){.kind = FORMAT_TOMBSTONE};
	memcpy(t->header.name_space, r->name_space, sizeof r->name_space);
	memcpy(t->header.fingerprint, r->fingerprint, sizeof r->fingerprint);
	memcpy(t->header.key, r->key, sizeof r->key);
	return start_write(t, t->page, 0);
}

/* ---- reading ---- */

/* Whether what was read is the record that was asked for, whole. */
static int check_record(const struct task *t)
{
	const struct store_record *wanted = &t->op->record;
	const struct segment *g = t->segment;
	const char *data = t->io.data;
	struct format_record h;
	int r;

	if (t->io.n_done < t->io.len)
		return -EBADMSG;
	r = format_record_decode(data, g->salt, g->number, t->io.offset, t->io.offset + t->io.len, &h);
	if (r < 0)
		return r;
	if (h.kind != FORMAT_WRITE || h.frame_bytes != wanted->frame_bytes ||
		memcmp(h.key, wanted->key, sizeof h.key) != 0 ||
		memcmp(h.name_space, wanted->name_space, sizeof h.name_space) != 0 ||
		memcmp(h.fingerprint, wanted->fingerprint, sizeof h.fingerprint) != 0)
		return -EBADMSG;
	if (format_checksum(data + STORE_HEADER_BYTES, (size_t)h.frame_bytes, g->salt) != h.body_checksum)
		return -EBADMSG;
	return 0;
}

static void read_done(struct io_request *r, int status)
{
	struct task *t = r->user;
	struct engine *e = t->engine;

	t->segment->n_in_flight--;
	if (status == 0)
		status = check_record(t);
	if (status == 0) {
		e->stats.n_reads++;
		e->stats.read_bytes += r->len;
	}
	finish_task(t, status);
}

static int start_read(struct task *t)
{
	struct engine *e = t->engine;
	const struct store_record *wanted = &t->op->record;
	const struct store_location *l = &wanted->location;
	uint64_t len = (uint64_t)l->len_pages * STORE_ALIGN;
	struct segment *g;
	int fd;

	if (!is_aligned(t->op->data) || l->offset % STORE_ALIGN || len < STORE_ALIGN ||
		wanted->frame_bytes > len - STORE_HEADER_BYTES)
		return -EINVAL;
	g = segments_find(&e->segments, l->segment);
	if (!g || l->offset > g->len_bytes || len > g->len_bytes - l->offset)
		return -ENOENT;
	fd = segment_fd(&e->segments, g);
	if (fd < 0)
		return fd;
	t->segment = g;
	start_io(t, IO_READ, fd, t->op->data, len, l->offset, read_done);
	return 0;
}

/* ---- syncing ---- */

static void end_round(struct engine *e)
{
	int status = e->round_status;

	e->round_status = 0;
	while (e->round) {
		struct task *t = e->round;

		e->round = t->next;
		finish_task(t, status);
	}
	/* What the disk did with the data is unknown then, and a later sync may well say that all is fine.
	 * Those who asked for this one have been told; what comes now goes elsewhere. */
	if (status < 0 && e->open)
		close_segment(e, e->open);
}

static void request_synced(struct engine *e, int status)
{
	if (status < 0)
		e->round_status = status;
	if (--e->n_round_requests == 0)
		end_round(e);
}

static void segment_synced(struct io_request *r, int status)
{
	struct segment *g = r->user;

	g->n_in_flight--;
	if (status < 0) {
		g->dirty = true;
		log_error("store: segment-%08x: sync: %s", g->number, strerror(-status));
	}
	request_synced(g->owner, status);
}

static void dir_synced(struct io_request *r, int status)
{
	struct engine *e = r->user;

	if (status < 0) {
		e->segments.dir_dirty = true;
		log_error("store: directory: sync: %s", strerror(-status));
	}
	request_synced(e, status);
}

static void start_round(struct engine *e)
{
	struct segments *t = &e->segments;

	/* One more than there are, lest the round end while it begins. */
	e->n_round_requests = 1;
	for (size_t i = 0; i < t->n; i++) {
		struct segment *g = t->list[i];
		int fd;

		if (!g->dirty)
			continue;
		fd = segment_fd(t, g);
		if (fd < 0) {
			e->round_status = fd;
			continue;
		}
		g->dirty = false;
		g->owner = e;
		g->syncing = (struct io_request){
			.kind = IO_FDATASYNC, .fd = fd, .done = segment_synced, .user = g};
		g->n_in_flight++;
		e->n_round_requests++;
		io_start(&e->io, &g->syncing);
	}
	if (t->dir_dirty) {
		t->dir_dirty = false;
		e->dir_sync =
			(struct io_request){.kind = IO_FSYNC, .fd = t->dir_fd, .done = dir_synced, .user = e};
		e->n_round_requests++;
		io_start(&e->io, &e->dir_sync);
	}
	request_synced(e, 0);
}

/* The lowest serial number of a write in flight, or one more than the last. */
static uint64_t oldest_write(const struct engine *e)
{
	uint64_t oldest = e->serial + 1;

	for (uint32_t i = 0; i < e->depth; i++) {
		const struct task *t = &e->tasks[i];

		/* A tombstone that was written has serial 0 and waits for a sync itself. */
		if (t->op && (t->op->kind == STORE_WRITE || t->op->kind == STORE_REMOVE) && t->serial &&
			t->serial < oldest)
			oldest = t->serial;
	}
	return oldest;
}

static void sync_what_waits(struct engine *e)
{
	uint64_t oldest;

	if (!e->syncs || e->round)
		return;
	oldest = oldest_write(e);
	for (struct task **link = &e->syncs; *link;) {
		struct task *t = *link;

		if (t->serial >= oldest) {
			link = &t->next;
			continue;
		}
		*link = t->next;
		t->next = e->round;
		e->round = t;
	}
	if (e->round)
		start_round(e);
}

/* ---- the turn ---- */

static int start_task(struct task *t)
{
	switch (t->op->kind) {
	case STORE_WRITE: return start_record(t);
	case STORE_READ: return start_read(t);
	case STORE_REMOVE: return start_tombstone(t);
	case STORE_SYNC:
		t->serial = t->engine->serial;
		t->next = t->engine->syncs;
		t->engine->syncs = t;
		return 0;
	}
	return -EINVAL;
}

/* False: it must be tried again when something has ended. */
static bool start_op(struct engine *e, struct store_op *op)
{
	struct task *t = e->idle;
	int r;

	e->idle = t->next;
	e->n_busy++;
	e->n_busy_others += op->kind != STORE_READ;
	t->op = op;
	t->segment = NULL;
	t->serial = 0;
	r = start_task(t);
	if (r == -EAGAIN)
		free_task(t);
	else if (r < 0)
		finish_task(t, r);
	return r != -EAGAIN;
}

static bool start_first(struct engine *e, struct op_list *l)
{
	struct store_op *op = op_list_pop(l);

	if (start_op(e, op))
		return true;
	op_list_put_back(l, op);
	return false;
}

void engine_turn(struct engine *e)
{
	uint32_t others_max = e->depth - e->depth / 4;

	while (e->reads.first && e->idle && start_first(e, &e->reads))
		;
	while (e->others.first && e->idle && e->n_busy_others < others_max && start_first(e, &e->others))
		;
	sync_what_waits(e);
}

void engine_wait(struct engine *e)
{
	int r = io_wait(&e->io);

	if (r < 0) {
		/* Nothing can be taken back from the kernel, so this can only be tried again. */
		log_error("store: io_uring: %s", strerror(-r));
		nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
	}
}

bool engine_is_idle(const struct engine *e)
{
	return !e->reads.first && !e->others.first && e->n_busy == 0;
}

bool engine_wind_up(struct engine *e)
{
	struct segment *g = e->open;

	if (g && g->n_slots == 0 && g->n_in_flight == 0) {
		e->open = NULL;
		(void)segments_remove(&e->segments, g);
	} else if (g) {
		close_segment(e, g);
	}
	return e->n_closing == 0;
}

void engine_get_stats(const struct engine *e, struct store_stats *out)
{
	*out = e->stats;
	out->limit_bytes = e->limit_bytes;
	out->used_bytes = e->segments.used_bytes;
	out->live_bytes = e->segments.live_bytes;
	out->n_segments = e->segments.n;
	out->n_records = e->segments.n_live;
	out->direct = e->segments.direct;
	out->fixed_buffers = e->io.fixed_buffers;
}
