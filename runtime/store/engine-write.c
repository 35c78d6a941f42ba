#include "runtime/store/engine-internal.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	GAP_SHARE = 16, /* so much of a segment may stay empty before its footer */
};

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
	e->segments.nothing_to_reclaim = false;
	segment_trim(&e->segments, g);
	e->n_closing--;
}

/* It is made stable by the next round. */
static void footer_written(struct io_request *r, int status)
{
	struct segment *g = r->user;

	g->n_in_flight--;
	g->footer_dirty = true;
	if (status < 0) {
		log_warning("store: segment-%08x: cannot write its footer: %s", g->number, strerror(-status));
		closed(g, g->end);
		return;
	}
	g->has_footer = true;
	closed(g, r->offset + r->len);
}

static int compare_offset(const void *a, const void *b)
{
	uint64_t x = ((const struct format_record *)a)->offset, y = ((const struct format_record *)b)->offset;

	return x < y ? -1 : x > y;
}

/* Writes ended in any order, the footer is in order of place. */
static void write_footer(struct segment *g)
{
	struct engine *e = g->owner;
	size_t len = (size_t)format_footer_bytes(g->n_headers);
	const uint64_t gap = g->len_bytes - g->end - len;

	g->footer = g->no_footer ? NULL : aligned_alloc(STORE_ALIGN, len);
	if (!g->footer) {
		closed(g, g->end);
		return;
	}
	/* To cut off a little would cost more than it brings: the file system changes a length while all
	 * else waits. */
	if (g->len_bytes >= g->end + len && gap <= g->len_bytes / GAP_SHARE)
		g->end += gap;
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

void engine_go_on_closing(struct segment *g, bool can_sync)
{
	struct engine *e = g->owner;

	if (g->state != SEGMENT_CLOSING || g->n_writing || g->footer ||
		(can_sync && (g->dirty || g->in_sync)))
		return;
	e->n_full--;
	if (can_sync)
		write_footer(g);
	else
		closed(g, g->end);
}

void engine_close_segment(struct engine *e, struct segment *g)
{
	assert(g == e->open);
	e->open = NULL;
	e->n_closing++;
	g->state = SEGMENT_CLOSING;
	e->n_full += g->n_writing == 0;
	engine_go_on_closing(g, true);
}

/* ---- a segment made ahead ---- */

bool engine_drop_spare(struct engine *e)
{
	if (e->spare && e->spare->n_in_flight)
		return false;
	if (e->spare)
		segments_discard(&e->segments, e->spare);
	e->spare = NULL;
	return true;
}

static void spare_written(struct io_request *r, int status)
{
	struct segment *g = r->user;
	struct engine *e = g->owner;

	g->n_in_flight--;
	g->dirty = true;
	free(g->footer);
	g->footer = NULL;
	if (status < 0)
		engine_drop_spare(e);
}

/* Makes the next segment while the open one still has room: making it takes as long as many writes, and what
 * is in flight would be done meanwhile. If that does not work out nothing is lost, and when the segment is
 * needed whoever needs it learns why. */
static void make_spare(struct engine *e)
{
	struct segments *t = &e->segments;
	const uint64_t limit_bytes = e->limit_bytes - 2 * e->segment_bytes;
	struct segment *g;
	void *page;

	e->spare_tried = true;
	if (e->spare || engine_is_small(e))
		return;
	while (t->used_bytes > limit_bytes - e->segment_bytes)
		if (!segments_reclaim(t))
			return;
	page = aligned_alloc(STORE_ALIGN, STORE_ALIGN);
	if (!page || segments_make(t, e->segment_bytes, &g) < 0) {
		free(page);
		return;
	}
	format_segment_encode(page, g->number, g->salt);
	g->footer = page;
	g->owner = e;
	g->closing = (struct io_request){.kind = IO_WRITE,
		.fd = g->fd,
		.data = page,
		.len = STORE_ALIGN,
		.done = spare_written,
		.user = g};
	g->n_in_flight++;
	e->spare = g;
	io_start(&e->io, &g->closing);
}

/* ---- writing ---- */

/* There is no room: status, unless a segment that is being closed may turn out to make some. */
static int after_closing(struct engine *e, int status)
{
	e->close_now = e->n_closing > 0;
	return e->n_closing ? -EAGAIN : status;
}

/* Whether a segment that has n_slots records up to end takes one more of len_bytes, and a footer after it. */
static bool has_room(const struct segment *g, uint64_t end, uint32_t n_slots, uint64_t len_bytes)
{
	return end + len_bytes + format_footer_bytes(n_slots + 1) <= g->len_bytes;
}

/* The open segment, or a new one, with room for one more record of len_bytes. The last segment_bytes of the
 * limit are for tombstones alone: without room to forget, nothing could ever be forgotten; those before them
 * are for records on the move, without which no room could be made. -EDQUOT: over the limit; -ENOSPC: the
 * disk is full; -EAGAIN: a segment is being closed, and may turn out to make room, or the spare is not ready.
 */
static int find_room(struct engine *e, uint64_t len_bytes, unsigned n_reserved, struct segment **out)
{
	struct segment *g = e->open;
	struct segments *t = &e->segments;
	bool fits = g && has_room(g, g->end, g->n_slots, len_bytes);
	uint64_t own = STORE_ALIGN + len_bytes + format_footer_bytes(1);
	uint64_t size = own > e->segment_bytes ? own : e->segment_bytes, new_bytes;
	uint64_t limit_bytes = e->limit_bytes - n_reserved * e->segment_bytes;
	int r;

	/* A spare is not kept behind a larger one: numbers rise with time. */
	if (!fits && e->spare &&
		(e->spare->n_in_flight || (size > e->segment_bytes && !engine_drop_spare(e))))
		return -EAGAIN;
	new_bytes = fits || e->spare ? 0 : size;
	if (new_bytes > limit_bytes)
		return -EDQUOT;
	while (t->used_bytes > limit_bytes - new_bytes)
		if (!segments_reclaim(t))
			return after_closing(e, -EDQUOT);
	if (!fits) {
		g = e->spare;
		r = 0;
		while (!g && (r = segments_create(t, size, &g)) == -ENOSPC && segments_reclaim(t))
			;
		if (r < 0)
			return r == -ENOSPC ? after_closing(e, r) : r;
		g->state = SEGMENT_OPEN;
		g->owner = e;
		/* Only now: had there been no room for a new one, the old one would still take shorter
		 * records. */
		if (e->open)
			engine_close_segment(e, e->open);
		e->open = g;
		e->spare = NULL;
		e->spare_tried = false;
	} else if (!e->spare_tried && g->end > g->len_bytes / 2) {
		make_spare(e);
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
	e->n_full += g->state == SEGMENT_CLOSING && g->n_writing == 0;
	if (status < 0) {
		/* It may be there or not: what it was to keep dead is not safe. */
		g->slots[t->slot].tombstone = 0;
		engine_finish_task(t, status);
		return;
	}
	e->stats.n_writes++;
	e->stats.written_bytes += r->len;
	if (t->header.kind != FORMAT_WRITE) {
		t->serial = 0;
		t->next = e->syncs;
		e->syncs = t;
		return;
	}
	segment_set_live(&e->segments, g, t->slot, true);
	format_record_describe(&t->header, &t->op->record);
	engine_finish_task(t, 0);
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
	int r = find_room(e, len, h->kind != FORMAT_WRITE ? 0 : t->op->moving ? 1 : 2, &g);

	if (r < 0)
		return r;
	h->frame_bytes = frame_bytes;
	h->sequence = e->next_sequence;
	/* Said, so that it can be said again later, of a purge or a removal that is moved. */
	if (h->kind != FORMAT_WRITE && !h->bound)
		h->bound = h->sequence;
	h->segment = g->number;
	h->offset = g->end;
	r = segment_add_slot(
		&e->segments, g, segment_hash(h->name_space, h->fingerprint, h->key), h, &t->slot);
	if (r < 0)
		return r;
	h->body_checksum = t->op->checksum_segment == g->number
				   ? t->op->checksum
				   : format_checksum(data + STORE_HEADER_BYTES, (size_t)frame_bytes, g->salt);
	format_record_seal(h, g->salt);
	memcpy(data, h, sizeof *h);
	memset(data + STORE_HEADER_BYTES + frame_bytes, 0, (size_t)(len - STORE_HEADER_BYTES - frame_bytes));
	/* A bit that rots in a frame costs a frame. Here it would bring back what was removed. */
	if (h->kind != FORMAT_WRITE)
		memcpy(data + FORMAT_AGAIN, h, sizeof *h);
	e->next_sequence++;
	g->end += len;
	g->n_writing++;
	t->serial = ++e->serial;
	t->segment = g;
	engine_start_io(t, IO_WRITE, g->fd, data, len, h->offset, written);
	return 0;
}

static bool can_be_written(const struct store_op *op)
{
	return is_aligned(op->data) && op->record.frame_bytes > 0 &&
	       op->record.frame_bytes < (uint64_t)UINT32_MAX * STORE_ALIGN - STORE_HEADER_BYTES;
}

bool engine_prepare_write(struct engine *e)
{
	const struct segment *g = e->open;
	uint64_t end = g ? g->end : 0;
	uint32_t n_slots = g ? g->n_slots : 0, n = 0;

	/* A place that was guessed wrong costs the checksum again, no more. */
	for (struct store_op *op = e->others.first; g && op && n < e->depth; op = op->next, n++) {
		const bool is_record = op->kind == STORE_WRITE && can_be_written(op);
		const uint64_t len =
			format_pad(STORE_HEADER_BYTES + (is_record ? op->record.frame_bytes : 0));

		if (g == e->open && e->spare && !has_room(g, end, n_slots, len)) {
			g = e->spare;
			end = STORE_ALIGN;
			n_slots = 0;
		}
		end += len;
		n_slots++;
		if (!is_record || op->checksum_segment == g->number)
			continue;
		op->checksum = format_checksum(
			(const char *)op->data + STORE_HEADER_BYTES, (size_t)op->record.frame_bytes, g->salt);
		op->checksum_segment = g->number;
		return true;
	}
	return false;
}

int engine_start_record(struct task *t)
{
	const struct store_op *op = t->op;

	if (!can_be_written(op))
		return -EINVAL;
	t->header = header_of(&op->record);
	return start_write(t, op->data, op->record.frame_bytes);
}

int engine_start_tombstone(struct task *t)
{
	const struct store_record *r = &t->op->record;

	if (!t->page)
		t->page = aligned_alloc(STORE_ALIGN, STORE_ALIGN);
	if (!t->page)
		return -ENOMEM;
	t->header = (struct format_record){
		.kind = t->op->kind == STORE_PURGE ? FORMAT_PURGE : FORMAT_TOMBSTONE, .bound = t->op->bound};
	memcpy(t->header.name_space, r->name_space, sizeof r->name_space);
	if (t->op->kind == STORE_PURGE)
		return start_write(t, t->page, 0);
	memcpy(t->header.fingerprint, r->fingerprint, sizeof r->fingerprint);
	memcpy(t->header.key, r->key, sizeof r->key);
	return start_write(t, t->page, 0);
}
