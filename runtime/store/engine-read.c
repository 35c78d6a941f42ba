#include "runtime/store/engine-internal.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
	engine_finish_task(t, status);
}

int engine_start_read(struct task *t)
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
	engine_start_io(t, IO_READ, fd, t->op->data, len, l->offset, read_done);
	return 0;
}

/* ---- listing a segment, to empty it ---- */

static int make_list(struct task *t)
{
	struct segment *g = t->segment;
	const struct segments *table = &t->engine->segments;
	struct store_list *list = NULL;
	struct format_trailer trailer;
	bool *wanted = NULL;
	int r = -EBADMSG;

	if (t->io.n_done < t->io.len)
		return r;
	r = format_trailer_decode(
		(const char *)t->list_data + t->io.len - STORE_ALIGN, g->number, g->len_bytes, &trailer);
	if (r < 0)
		return r;
	if (format_checksum(t->list_data, (size_t)trailer.n_records * STORE_HEADER_BYTES, g->salt) !=
		trailer.footer_checksum)
		return -EBADMSG;
	list = calloc(1, sizeof *list + trailer.n_records * sizeof list->records[0]);
	wanted = calloc(g->n_slots + 1u, sizeof *wanted);
	if (!list || !wanted) {
		free(list);
		free(wanted);
		return -ENOMEM;
	}
	list->segment = g->number;
	segment_find_wanted(table, g, wanted);
	for (uint32_t i = 0; i < trailer.n_records; i++) {
		const char *at = (const char *)t->list_data + (size_t)i * STORE_HEADER_BYTES;
		struct format_record h;
		int64_t slot;

		memcpy(&h, at, sizeof h);
		if (format_record_decode(at, g->salt, g->number, h.offset, trailer.footer_offset, &h) < 0)
			continue;
		slot = segment_slot_at(g, h.offset);
		if (slot < 0 || !wanted[slot])
			continue;
		format_record_describe(&h, &list->records[list->n]);
		list->records[list->n++].kind = (enum store_record_kind)h.kind;
	}
	free(wanted);
	t->op->list = list;
	return 0;
}

static void list_read(struct io_request *r, int status)
{
	struct task *t = r->user;

	t->segment->n_in_flight--;
	if (status == 0)
		status = make_list(t);
	/* One that cannot be listed now is not asked again before the next start. */
	free(t->list_data);
	t->list_data = NULL;
	engine_finish_task(t, status);
}

int engine_start_list(struct task *t)
{
	struct engine *e = t->engine;
	struct segment *g;
	size_t len;
	int fd;

	if (segments_reclaim(&e->segments))
		return -EALREADY;
	g = segments_cheapest(&e->segments, t->op->max_share);
	/* Those that were given before were not emptied for some reason, which may have passed. */
	for (size_t i = 0; !g && i < e->segments.n; i++)
		e->segments.list[i]->listed = false;
	if (!g)
		g = segments_cheapest(&e->segments, t->op->max_share);
	if (!g)
		return -ENOENT;
	g->listed = true;
	len = (size_t)(g->len_bytes - g->end);
	t->list_data = aligned_alloc(STORE_ALIGN, len);
	if (!t->list_data)
		return -ENOMEM;
	fd = segment_fd(&e->segments, g);
	if (fd < 0) {
		free(t->list_data);
		t->list_data = NULL;
		return fd;
	}
	t->segment = g;
	engine_start_io(t, IO_READ, fd, t->list_data, len, g->end, list_read);
	return 0;
}
