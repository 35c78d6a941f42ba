#include "runtime/store/segment.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

/* Segments may be many and descriptors few: a process has 1024 by default. */
enum { FDS_MAX = 128, SLOT_PAGES_MAX = (1 << 29) - 1 };

int segments_init(struct segments *t, int dir_fd, bool direct)
{
	*t = (struct segments){.dir_fd = dir_fd, .direct = direct, .next_number = 1};
	t->page = aligned_alloc(STORE_ALIGN, STORE_ALIGN);
	return t->page ? 0 : -ENOMEM;
}

static void close_fd(struct segments *t, struct segment *g)
{
	if (g->fd < 0)
		return;
	if (t->io)
		io_forget_file(t->io, g->fd);
	close(g->fd);
	g->fd = -1;
	t->n_fds--;
}

static void segment_free(struct segments *t, struct segment *g)
{
	close_fd(t, g);
	free(g->slots);
	free(g->headers);
	free(g->footer);
	free(g);
}

void segments_fini(struct segments *t)
{
	for (size_t i = 0; i < t->n; i++)
		segment_free(t, t->list[i]);
	free(t->list);
	free(t->page);
}

void segment_name(uint32_t number, char out[SEGMENT_NAME_MAX])
{
	snprintf(out, SEGMENT_NAME_MAX, "segment-%08x", number);
}

bool segment_parse_name(const char *name, uint32_t *number)
{
	char again[SEGMENT_NAME_MAX];
	unsigned n;

	if (sscanf(name, "segment-%8x", &n) != 1)
		return false;
	/* What sscanf lets pass besides (signs, blanks, capitals, more behind) does not come out the same. */
	segment_name(n, again);
	if (strcmp(name, again) != 0)
		return false;
	*number = n;
	return true;
}

uint32_t segment_hash(const uint8_t name_space[16], const uint8_t fingerprint[16], const uint8_t key[32])
{
	uint8_t all[64];

	memcpy(all, name_space, 16);
	memcpy(all + 16, fingerprint, 16);
	memcpy(all + 32, key, 32);
	return (uint32_t)format_checksum(all, sizeof all, 0);
}

uint32_t segments_place(const struct segments *t, uint32_t number)
{
	size_t low = 0, high = t->n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (t->list[middle]->number < number)
			low = middle + 1;
		else
			high = middle;
	}
	return (uint32_t)low;
}

struct segment *segments_find(const struct segments *t, uint32_t number)
{
	size_t i = segments_place(t, number);

	return i < t->n && t->list[i]->number == number ? t->list[i] : NULL;
}

/* Makes room for one more element behind n, or returns false. */
static bool reserve(void **array, size_t n, size_t *capacity, size_t element_bytes)
{
	size_t more = *capacity ? *capacity * 2 : 16;
	void *grown;

	if (n < *capacity)
		return true;
	grown = reallocarray(*array, more, element_bytes);
	if (!grown)
		return false;
	*array = grown;
	*capacity = more;
	return true;
}

int segments_adopt(
	struct segments *t, uint32_t number, uint64_t salt, uint64_t len_bytes, struct segment **out)
{
	void *list = t->list;
	bool room = reserve(&list, t->n, &t->capacity, sizeof(struct segment *));
	struct segment *g = room ? calloc(1, sizeof *g) : NULL;
	size_t at;

	t->list = list;
	if (!g)
		return -ENOMEM;
	at = segments_place(t, number);
	g->number = number;
	g->state = SEGMENT_CLOSED;
	g->salt = salt;
	g->len_bytes = len_bytes;
	g->end = STORE_ALIGN;
	g->fd = -1;
	memmove(t->list + at + 1, t->list + at, (t->n - at) * sizeof(struct segment *));
	t->list[at] = g;
	t->n++;
	t->used_bytes += len_bytes;
	if (number >= t->next_number)
		t->next_number = number < UINT32_MAX ? number + 1 : UINT32_MAX;
	*out = g;
	return 0;
}

/* Closes the idle descriptor that was not used for longest. False: all are busy. */
static bool drop_one_fd(struct segments *t)
{
	struct segment *oldest = NULL;

	for (size_t i = 0; i < t->n; i++) {
		struct segment *g = t->list[i];

		if (g->fd >= 0 && g->n_in_flight == 0 && g->state == SEGMENT_CLOSED &&
			(!oldest || g->used_at < oldest->used_at))
			oldest = g;
	}
	if (!oldest)
		return false;
	close_fd(t, oldest);
	return true;
}

/* At the cost of others that are not in use. flags: O_CREAT and the like. -errno. */
static int open_file(struct segments *t, uint32_t number, int flags)
{
	char name[SEGMENT_NAME_MAX];
	int fd;

	if (t->n_fds >= FDS_MAX)
		drop_one_fd(t);
	flags |= O_RDWR | O_CLOEXEC | (t->direct ? O_DIRECT : 0);
	segment_name(number, name);
	do
		fd = openat(t->dir_fd, name, flags, 0600);
	while (fd < 0 && (errno == EINTR || ((errno == EMFILE || errno == ENFILE) && drop_one_fd(t))));
	return fd < 0 ? -errno : fd;
}

/* Gives the file its length. Room is taken at once: records then never grow the file, which file systems do
 * one at a time, and a full disk shows here. */
static int take_room(int fd, uint64_t len_bytes)
{
	if (fallocate(fd, 0, 0, (off_t)len_bytes) == 0)
		return 0;
	if (errno != EOPNOTSUPP)
		return -errno;
	return ftruncate(fd, (off_t)len_bytes) < 0 ? -errno : 0;
}

int segments_make(struct segments *t, uint64_t len_bytes, struct segment **out)
{
	char name[SEGMENT_NAME_MAX];
	uint32_t number = t->next_number;
	struct segment *g;
	uint64_t salt;
	int fd, r;

	if (number == UINT32_MAX)
		return -ENOSPC;
	if (getrandom(&salt, sizeof salt, 0) != (ssize_t)sizeof salt)
		return -EIO;
	fd = open_file(t, number, O_CREAT | O_EXCL);
	if (fd < 0)
		return fd;
	r = take_room(fd, len_bytes);
	if (r == 0)
		r = segments_adopt(t, number, salt, len_bytes, &g);
	if (r < 0) {
		close(fd);
		segment_name(number, name);
		unlinkat(t->dir_fd, name, 0);
		return r;
	}
	g->state = SEGMENT_SPARE;
	g->fd = fd;
	g->used_at = ++t->clock;
	t->n_fds++;
	t->dir_dirty = true;
	*out = g;
	return 0;
}

static int write_header(struct segments *t, const struct segment *g)
{
	ssize_t n;

	format_segment_encode(t->page, g->number, g->salt);
	do
		n = pwrite(g->fd, t->page, STORE_ALIGN, 0);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return n == STORE_ALIGN ? 0 : -EIO;
}

int segments_create(struct segments *t, uint64_t len_bytes, struct segment **out)
{
	struct segment *g;
	int r = segments_make(t, len_bytes, &g);

	if (r < 0)
		return r;
	r = write_header(t, g);
	if (r < 0) {
		segments_discard(t, g);
		return r;
	}
	g->state = SEGMENT_OPEN;
	g->dirty = true;
	*out = g;
	return 0;
}

int segments_remove(struct segments *t, struct segment *g)
{
	char name[SEGMENT_NAME_MAX];
	size_t at = segments_place(t, g->number);

	assert(g->n_in_flight == 0);
	segment_name(g->number, name);
	if (unlinkat(t->dir_fd, name, 0) < 0 && errno != ENOENT) {
		int r = -errno;

		log_warning("store: cannot delete %s: %s", name, strerror(-r));
		return r;
	}
	t->used_bytes -= g->len_bytes;
	t->live_bytes -= g->live_bytes;
	t->n_live -= g->n_live;
	t->slot_bytes -= g->slots_capacity * sizeof *g->slots;
	segment_free(t, g);
	t->n--;
	memmove(t->list + at, t->list + at + 1, (t->n - at) * sizeof(struct segment *));
	return 0;
}

void segments_discard(struct segments *t, struct segment *g)
{
	assert(g->n_slots == 0);
	if (segments_remove(t, g) < 0) {
		g->state = SEGMENT_CLOSED;
		t->nothing_to_reclaim = false;
	}
}

void segments_shrink(struct segments *t, struct segment *g, uint64_t len_bytes)
{
	t->used_bytes -= g->len_bytes - len_bytes;
	g->len_bytes = len_bytes;
}

int segment_fd(struct segments *t, struct segment *g)
{
	int fd;

	g->used_at = ++t->clock;
	if (g->fd >= 0)
		return g->fd;
	fd = open_file(t, g->number, 0);
	if (fd < 0)
		return fd;
	g->fd = fd;
	t->n_fds++;
	return fd;
}

int segment_add_slot(
	struct segments *t, struct segment *g, uint32_t hash, const struct format_record *h, uint32_t *index)
{
	void *slots = g->slots;
	size_t capacity = g->slots_capacity;
	bool room = reserve(&slots, g->n_slots, &capacity, sizeof(struct slot));

	t->slot_bytes += (capacity - g->slots_capacity) * sizeof *g->slots;
	g->slots = slots;
	g->slots_capacity = (uint32_t)capacity;
	if (!room)
		return -ENOMEM;
	*index = g->n_slots;
	g->slots[g->n_slots++] = (struct slot){
		.hash = hash,
		.page = (uint32_t)(h->offset / STORE_ALIGN),
		.n_pages = (uint32_t)(format_record_bytes(h) / STORE_ALIGN) & SLOT_PAGES_MAX,
		.tombstone = h->kind != FORMAT_WRITE,
		.purge = h->kind == FORMAT_PURGE,
	};
	g->n_tombstones += h->kind != FORMAT_WRITE;
	g->n_purges += h->kind == FORMAT_PURGE;
	return 0;
}

void segment_trim(struct segments *t, struct segment *g)
{
	struct slot *slots = g->n_slots ? reallocarray(g->slots, g->n_slots, sizeof *slots) : NULL;

	if (!slots)
		return;
	t->slot_bytes -= (g->slots_capacity - g->n_slots) * sizeof *slots;
	g->slots = slots;
	g->slots_capacity = g->n_slots;
}

int segment_add_header(struct segment *g, const struct format_record *h)
{
	void *headers = g->headers;
	size_t capacity = g->headers_capacity;
	bool room = reserve(&headers, g->n_headers, &capacity, sizeof *h);

	g->headers = headers;
	g->headers_capacity = (uint32_t)capacity;
	if (!room)
		return -ENOMEM;
	g->headers[g->n_headers++] = *h;
	return 0;
}

void segment_set_live(struct segments *t, struct segment *g, uint32_t index, bool live)
{
	struct slot *slot = &g->slots[index];
	uint64_t bytes = (uint64_t)slot->n_pages * STORE_ALIGN;

	if (slot->live == live)
		return;
	slot->live = live;
	if (live) {
		g->n_live++;
		g->live_bytes += bytes;
		t->n_live++;
		t->live_bytes += bytes;
	} else {
		g->n_live--;
		g->live_bytes -= bytes;
		t->n_live--;
		t->live_bytes -= bytes;
		t->nothing_to_reclaim = false;
	}
}

static int compare_page(const void *page, const void *slot)
{
	uint64_t a = *(const uint64_t *)page, b = ((const struct slot *)slot)->page;

	return a < b ? -1 : a > b;
}

int64_t segment_slot_at(const struct segment *g, uint64_t offset)
{
	const uint64_t page = offset / STORE_ALIGN;
	const struct slot *slot =
		g->n_slots ? bsearch(&page, g->slots, g->n_slots, sizeof *slot, compare_page) : NULL;

	return slot ? slot - g->slots : -1;
}

void segments_forget(struct segments *t, const struct store_location *location)
{
	struct segment *g = segments_find(t, location->segment);
	const int64_t slot = g ? segment_slot_at(g, location->offset) : -1;

	if (slot >= 0)
		segment_set_live(t, g, (uint32_t)slot, false);
}

/* A tombstone, and what else there is of its key. */
struct cover {
	uint32_t hash;
	uint32_t slot;
	bool needed; /* an older file may hold a record of the key */
	bool spare;  /* a newer one holds a tombstone of it, safely */
};

static int compare_covers(const void *a, const void *b)
{
	uint32_t x = ((const struct cover *)a)->hash, y = ((const struct cover *)b)->hash;

	return x < y ? -1 : x > y;
}

/* The first of those with this hash, or n. */
static size_t first_cover(const struct cover *covers, size_t n, uint32_t hash)
{
	size_t low = 0, high = n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (covers[middle].hash < hash)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Compares the tombstones with what one other segment holds. */
static void look_for_keys(const struct segment *other, bool is_newer, struct cover *covers, size_t n)
{
	for (uint32_t j = 0; j < other->n_slots; j++) {
		const struct slot *s = &other->slots[j];

		if ((bool)s->tombstone != is_newer || s->purge)
			continue;
		for (size_t i = first_cover(covers, n, s->hash); i < n && covers[i].hash == s->hash; i++) {
			covers[i].spare = covers[i].spare || is_newer;
			covers[i].needed = covers[i].needed || !is_newer;
		}
	}
}

/* Which of g's tombstones still keep something dead: in wanted[slot], if that is not NULL. Returns how many;
 * all, when there is no memory to find out. What a tombstone covers lies in files with lower numbers;
 * tombstones of such files do not matter, since what they cover is older still. */
static uint32_t find_wanted_tombstones(const struct segments *t, const struct segment *g, bool *wanted)
{
	struct cover *covers = NULL;
	uint32_t n = 0, n_wanted = 0;

	if (!g->n_tombstones || t->list[0]->number >= g->number)
		return 0;
	covers = calloc(g->n_tombstones, sizeof *covers);
	for (uint32_t i = 0; i < g->n_slots; i++) {
		if (!g->slots[i].tombstone)
			continue;
		if (!covers || g->slots[i].purge) {
			n_wanted++;
			if (wanted)
				wanted[i] = true;
		} else {
			covers[n++] = (struct cover){.hash = g->slots[i].hash, .slot = i};
		}
	}
	if (n)
		qsort(covers, n, sizeof *covers, compare_covers);
	for (size_t i = 0; n && i < t->n; i++) {
		const struct segment *other = t->list[i];

		if (other->number < g->number)
			look_for_keys(other, false, covers, n);
		else if (other != g && other->n_tombstones && !other->dirty && !other->in_sync &&
			 !other->n_writing)
			look_for_keys(other, true, covers, n);
		for (uint32_t k = 0; other->doubtful && other->number < g->number && k < n; k++)
			covers[k].needed = true;
	}
	for (uint32_t i = 0; i < n; i++)
		if (covers[i].needed && !covers[i].spare) {
			n_wanted++;
			if (wanted)
				wanted[covers[i].slot] = true;
		}
	free(covers);
	return n_wanted;
}

void segment_find_wanted(const struct segments *t, const struct segment *g, bool *wanted)
{
	for (uint32_t i = 0; i < g->n_slots; i++)
		wanted[i] = g->slots[i].live;
	find_wanted_tombstones(t, g, wanted);
}

struct segment *segments_cheapest(const struct segments *t, double max_share)
{
	struct segment *best = NULL;
	double best_share = max_share;

	for (size_t i = 0; i < t->n; i++) {
		struct segment *g = t->list[i];
		const double share = (double)g->live_bytes / (double)g->len_bytes;

		if (g->state != SEGMENT_CLOSED || !g->has_footer || g->listed || share > best_share)
			continue;
		/* One that nothing is live in goes by itself, unless its tombstones keep it. */
		if (!g->n_live && !find_wanted_tombstones(t, g, NULL))
			continue;
		best = g;
		best_share = share;
	}
	return best;
}

/* Makes everything stable that was written so far: a record in a segment that is to be deleted may have been
 * let go of because it is in another by now. */
static bool settle(struct segments *t)
{
	for (size_t i = 0; i < t->n; i++) {
		struct segment *g = t->list[i];
		int fd;

		if ((!g->dirty && !g->in_sync) || g->state == SEGMENT_SPARE)
			continue;
		fd = segment_fd(t, g);
		if (fd < 0 || fdatasync(fd) < 0) {
			log_warning(
				"store: segment-%08x: sync: %s", g->number, strerror(fd < 0 ? -fd : errno));
			return false;
		}
		/* One that is in flight tells for itself. */
		if (!g->in_sync)
			g->dirty = g->n_writing > 0;
	}
	return !t->dir_dirty || fsync(t->dir_fd) == 0;
}

bool segments_reclaim(struct segments *t)
{
	bool soon = false;

	if (t->nothing_to_reclaim)
		return false;
	for (size_t i = 0; i < t->n; i++) {
		struct segment *g = t->list[i];

		if (g->n_live || g->state == SEGMENT_SPARE)
			continue;
		if (g->state != SEGMENT_CLOSED || g->n_in_flight) {
			soon = true;
			continue;
		}
		if (find_wanted_tombstones(t, g, NULL))
			continue;
		/* The files that its tombstones covered have gone; that must not come undone while the
		 * tombstones stay gone. */
		if (!settle(t) || (g->n_tombstones && fsync(t->dir_fd) < 0))
			return false;
		if (segments_remove(t, g) == 0)
			return true;
	}
	t->nothing_to_reclaim = !soon;
	return false;
}
