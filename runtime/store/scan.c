#include "runtime/store/scan.h"

#include "base/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

/* One segment file, before it is taken in. */
struct file {
	uint32_t number;
	uint64_t len_bytes;
	uint64_t salt;
	bool has_salt; /* its first page was sound */
	bool is_blank; /* its first page was never written */
	bool scanned;  /* no footer: its segment's headers are in memory */
};

/* A key, and the record or tombstone with the highest number of those found. Keys are told apart by 128 bits
 * of XXH3 with a random seed. */
struct winner {
	uint64_t key[2];
	uint64_t sequence; /* 0: the place is empty */
	uint32_t segment;  /* its place in the table */
	uint32_t slot;     /* NO_SLOT: a tombstone */
};

static const uint32_t NO_SLOT = UINT32_MAX;

struct purge {
	uint8_t name_space[16];
	uint64_t bound;
};

struct scan {
	struct segments *table;
	struct scan_result *result;
	struct file *files;
	size_t n_files;
	struct winner *winners; /* [n_places], a hash table */
	size_t n_places, n_winners;
	struct purge *purges;
	size_t n_purges;
	uint64_t seed;
	char *buffer; /* of the record or footer being read */
	size_t buffer_bytes;
	store_found_fn found;
	void *arg;
};

/* ---- files ---- */

/* Reads up to len bytes; what lies past the end of the file is zero. -errno. */
static int read_at(int fd, void *data, size_t len, uint64_t offset)
{
	size_t at = 0;

	while (at < len) {
		ssize_t n = pread(fd, (char *)data + at, len - at, (off_t)(offset + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		at += (size_t)n;
	}
	memset((char *)data + at, 0, len - at);
	return 0;
}

static int write_at(int fd, const void *data, size_t len, uint64_t offset)
{
	size_t at = 0;

	while (at < len) {
		ssize_t n = pwrite(fd, (const char *)data + at, len - at, (off_t)(offset + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		at += (size_t)n;
	}
	return 0;
}

static bool is_zero(const void *page)
{
	static const char zero[STORE_ALIGN];

	return memcmp(page, zero, STORE_ALIGN) == 0;
}

static int compare_files(const void *a, const void *b)
{
	uint32_t x = ((const struct file *)a)->number, y = ((const struct file *)b)->number;

	return x < y ? -1 : x > y;
}

/* Opened without O_DIRECT: footers are of any length, and reading ahead helps a scan. */
static int open_file(const struct segments *t, uint32_t number, int flags)
{
	char name[SEGMENT_NAME_MAX];
	int fd;

	segment_name(number, name);
	fd = openat(t->dir_fd, name, flags | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0) {
		int r = -errno;

		log_error("store: %s: %s", name, strerror(-r));
		return r;
	}
	return fd;
}

/* Looks at a file's first page and changes nothing. */
static int probe_file(struct segments *t, struct file *f)
{
	struct format_segment header;
	struct stat st;
	int fd = open_file(t, f->number, O_RDONLY);
	int r = 0;

	if (fd < 0)
		return fd;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		log_error("store: segment-%08x is not a regular file", f->number);
		r = -EINVAL;
		goto out;
	}
	f->len_bytes = (uint64_t)st.st_size;
	/* One that cannot be read here is met again when its records are. */
	if (read_at(fd, t->page, STORE_ALIGN, 0) < 0)
		goto out;
	f->is_blank = is_zero(t->page);
	if (format_segment_decode(t->page, &header) == 0 && header.number == f->number) {
		f->salt = header.salt;
		f->has_salt = true;
	} else if (format_segment_decode(t->page, &header) == -ENOTSUP) {
		log_error("store: segment-%08x is of another version than %d, the one known here", f->number,
			FORMAT_VERSION);
		r = -ENOTSUP;
	}
out:
	close(fd);
	return r;
}

static int list_files(struct scan *s)
{
	int fd = openat(s->table->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	size_t capacity = 0;
	struct dirent *entry;
	int r = 0;

	if (!dir) {
		r = -errno;
		if (fd >= 0)
			close(fd);
		return r;
	}
	for (errno = 0; r == 0 && (entry = readdir(dir)); errno = 0) {
		uint32_t number;

		if (!segment_parse_name(entry->d_name, &number))
			continue;
		if (s->n_files == capacity) {
			struct file *files = reallocarray(s->files, capacity * 2 + 64, sizeof *files);

			if (!files) {
				r = -ENOMEM;
				break;
			}
			s->files = files;
			capacity = capacity * 2 + 64;
		}
		s->files[s->n_files++] = (struct file){.number = number};
	}
	if (r == 0 && errno)
		r = -errno;
	closedir(dir);
	if (s->n_files)
		qsort(s->files, s->n_files, sizeof *s->files, compare_files);
	for (size_t i = 0; r == 0 && i < s->n_files; i++)
		r = probe_file(s->table, &s->files[i]);
	return r;
}

/* ---- records ---- */

static bool grow_winners(struct scan *s, size_t n_places)
{
	struct winner *places = calloc(n_places, sizeof *places);

	if (!places)
		return false;
	for (size_t i = 0; i < s->n_places; i++) {
		size_t at = (size_t)s->winners[i].key[0] & (n_places - 1);

		if (!s->winners[i].sequence)
			continue;
		while (places[at].sequence)
			at = (at + 1) & (n_places - 1);
		places[at] = s->winners[i];
	}
	free(s->winners);
	s->winners = places;
	s->n_places = n_places;
	return true;
}

/* sequence: from when on what else there is of the key does not hold. */
static int note_winner(
	struct scan *s, const struct format_record *h, uint64_t sequence, uint32_t segment, uint32_t slot)
{
	struct winner *w;
	XXH128_hash_t hash;
	uint8_t all[64];
	size_t at;

	if (s->n_winners >= s->n_places / 4 * 3 && !grow_winners(s, s->n_places ? s->n_places * 2 : 1024))
		return -ENOMEM;
	memcpy(all, h->name_space, 16);
	memcpy(all + 16, h->fingerprint, 16);
	memcpy(all + 32, h->key, 32);
	hash = XXH3_128bits_withSeed(all, sizeof all, s->seed);
	at = (size_t)hash.low64 & (s->n_places - 1);
	while (s->winners[at].sequence &&
		(s->winners[at].key[0] != hash.low64 || s->winners[at].key[1] != hash.high64))
		at = (at + 1) & (s->n_places - 1);
	w = &s->winners[at];
	s->n_winners += !w->sequence;
	if (w->sequence <= sequence)
		*w = (struct winner){.key = {hash.low64, hash.high64},
			.sequence = sequence,
			.segment = segment,
			.slot = slot};
	return 0;
}

static int note_purge(struct scan *s, const struct format_record *h, uint64_t bound)
{
	struct purge *more;

	for (size_t i = 0; i < s->n_purges; i++)
		if (memcmp(s->purges[i].name_space, h->name_space, 16) == 0) {
			if (s->purges[i].bound < bound)
				s->purges[i].bound = bound;
			return 0;
		}
	more = reallocarray(s->purges, s->n_purges + 1, sizeof *more);
	if (!more)
		return -ENOMEM;
	s->purges = more;
	s->purges[s->n_purges] = (struct purge){.bound = bound};
	memcpy(s->purges[s->n_purges++].name_space, h->name_space, 16);
	return 0;
}

static int note_record(struct scan *s, struct segment *g, const struct format_record *h)
{
	const uint32_t hash = segment_hash(h->name_space, h->fingerprint, h->key);
	const uint64_t bound = h->bound ? h->bound : h->sequence;
	uint32_t slot;

	if (segment_add_slot(s->table, g, hash, h, &slot) < 0)
		return -ENOMEM;
	if (h->sequence >= s->result->next_sequence)
		s->result->next_sequence = h->sequence + 1;
	switch ((enum format_kind)h->kind) {
	case FORMAT_WRITE: return note_winner(s, h, h->sequence, segments_place(s->table, g->number), slot);
	case FORMAT_TOMBSTONE: return note_winner(s, h, bound, 0, NO_SLOT);
	case FORMAT_PURGE: return note_purge(s, h, bound);
	}
	return 0;
}

static bool reserve_buffer(struct scan *s, size_t len)
{
	char *larger;

	if (len <= s->buffer_bytes)
		return true;
	larger = realloc(s->buffer, len);
	if (!larger)
		return false;
	s->buffer = larger;
	s->buffer_bytes = len;
	return true;
}

/* What is done with each sound header of a footer, in order. */
typedef int (*header_fn)(struct scan *s, struct segment *g, const struct format_record *h);

/* Goes through a closed segment's footer. -EBADMSG: it has none that is sound. */
static int read_footer(struct scan *s, struct segment *g, int fd, header_fn fn)
{
	struct format_trailer trailer;
	uint64_t end_offset;
	size_t len;
	int r;

	if (g->len_bytes < 2 * STORE_ALIGN || g->len_bytes % STORE_ALIGN)
		return -EBADMSG;
	r = read_at(fd, s->table->page, STORE_ALIGN, g->len_bytes - STORE_ALIGN);
	if (r == 0)
		r = format_trailer_decode(s->table->page, g->number, g->len_bytes, &trailer);
	if (r < 0)
		return r;
	/* Known from here on, should the first page have rotted and the footer as well. */
	g->salt = trailer.salt;
	len = (size_t)trailer.n_records * STORE_HEADER_BYTES;
	if (!reserve_buffer(s, len + STORE_ALIGN)) /* also for no records: it is never NULL */
		return -ENOMEM;
	r = read_at(fd, s->buffer, len, trailer.footer_offset);
	if (r < 0)
		return r;
	if (format_checksum(s->buffer, len, g->salt) != trailer.footer_checksum)
		return -EBADMSG;
	g->end = trailer.footer_offset;
	end_offset = STORE_ALIGN;
	for (uint32_t i = 0; i < trailer.n_records; i++) {
		const char *at = s->buffer + (size_t)i * STORE_HEADER_BYTES;
		struct format_record h;

		memcpy(&h, at, sizeof h);
		/* The checksum was right, so these would be faults of the writer's. */
		if (h.offset < end_offset || format_record_decode(at, g->salt, g->number, h.offset,
						     trailer.footer_offset, &h) < 0) {
			s->result->n_dropped++;
			continue;
		}
		r = fn(s, g, &h);
		if (r < 0)
			return r;
		end_offset = h.offset + format_record_bytes(&h);
	}
	return 0;
}

/* Whether a page is the beginning of a footer: the copy of a header that belongs elsewhere, and behind it
 * another or nothing. (Behind the header of a record that strayed here stands its frame.) */
static bool begins_footer(const char *page, const struct segment *g, uint64_t offset)
{
	static const char zero[STORE_HEADER_BYTES];
	struct format_record h;

	for (int i = 0; i < 2; i++, page += STORE_HEADER_BYTES) {
		memcpy(&h, page, sizeof h);
		if (h.offset >= offset ||
			format_record_decode(page, g->salt, g->number, h.offset, offset, &h) < 0)
			return i == 1 && memcmp(page, zero, sizeof zero) == 0;
	}
	return true;
}

/* The header of the record at a page, from where it stands again if need be. */
static int decode_page(const char *page, const struct segment *g, uint64_t offset, struct format_record *h)
{
	const uint64_t end = format_pad(g->len_bytes);

	if (format_record_decode(page, g->salt, g->number, offset, end, h) == 0)
		return 0;
	if (format_record_decode(page + FORMAT_AGAIN, g->salt, g->number, offset, end, h) == 0 &&
		h->kind != FORMAT_WRITE)
		return 0;
	return -EBADMSG;
}

/* Reads every record of a segment whose salt is known. What is no sound record is passed over page by page; a
 * run of such pages counts as one record dropped, unless they were never written. On return g->end is behind
 * the last page that was. -ENOMEM; -errno: unreadable from g->end on. */
static int scan_records(struct scan *s, struct segment *g, int fd)
{
	uint64_t offset = STORE_ALIGN;
	bool in_rot = false;

	while (offset < g->len_bytes) {
		struct format_record h;
		int r = reserve_buffer(s, STORE_ALIGN) ? read_at(fd, s->buffer, STORE_ALIGN, offset)
						       : -ENOMEM;

		if (r < 0)
			return r;
		if (decode_page(s->buffer, g, offset, &h) < 0) {
			bool rot = !is_zero(s->buffer);

			/* Half a footer, from a crash while it was written; its place is taken by the next.
			 */
			if (rot && begins_footer(s->buffer, g, offset))
				break;
			s->result->n_dropped += rot && !in_rot;
			in_rot = rot;
			offset += STORE_ALIGN;
			if (rot)
				g->end = offset;
			continue;
		}
		in_rot = false;
		r = reserve_buffer(s, (size_t)format_record_bytes(&h)) ? 0 : -ENOMEM;
		if (r == 0)
			r = read_at(fd, s->buffer, (size_t)format_record_bytes(&h), offset);
		if (r < 0)
			return r;
		if (h.kind == FORMAT_WRITE && format_checksum(s->buffer + STORE_HEADER_BYTES,
						      (size_t)h.frame_bytes, g->salt) != h.body_checksum) {
			s->result->n_dropped++;
		} else {
			r = note_record(s, g, &h);
			if (r == 0)
				r = segment_add_header(g, &h);
			if (r < 0)
				return r;
		}
		offset += format_record_bytes(&h);
		g->end = offset;
	}
	return 0;
}

/* Gives a segment that was scanned its footer, so that the next start need not scan it again. If that fails
 * nothing is lost but time. */
static void close_segment(struct scan *s, struct segment *g)
{
	size_t len = (size_t)format_footer_bytes(g->n_headers);
	char *footer = malloc(len);
	int fd = open_file(s->table, g->number, O_RDWR);
	int r = 0;

	if (footer && fd >= 0) {
		format_footer_encode(footer, g->headers, g->n_headers, g->number, g->salt, g->end);
		/* The records first: of a footer it is believed that what it names is there. */
		r = fdatasync(fd) < 0 ? -errno : write_at(fd, footer, len, g->end);
		if (r == 0 && (ftruncate(fd, (off_t)(g->end + len)) < 0 || fdatasync(fd) < 0))
			r = -errno;
		if (r == 0) {
			s->table->used_bytes += g->end + len - g->len_bytes;
			g->len_bytes = g->end + len;
			g->has_footer = true;
		} else {
			log_warning(
				"store: segment-%08x: cannot write its footer: %s", g->number, strerror(-r));
		}
	}
	free(footer);
	if (fd >= 0)
		close(fd);
}

/* To whole pages, as records are read. */
static void pad_file(struct scan *s, struct segment *g)
{
	const uint64_t len = format_pad(g->len_bytes);
	int fd = len != g->len_bytes ? open_file(s->table, g->number, O_RDWR) : -1;

	if (fd < 0)
		return;
	if (ftruncate(fd, (off_t)len) == 0) {
		s->table->used_bytes += len - g->len_bytes;
		g->len_bytes = len;
	}
	close(fd);
}

static int take_file(struct scan *s, struct file *f)
{
	struct segment *g;
	uint64_t n_dropped;
	int fd, r = segments_adopt(s->table, f->number, f->salt, f->len_bytes, &g);

	if (r < 0)
		return r;
	fd = open_file(s->table, f->number, O_RDONLY);
	if (fd < 0)
		return fd;
	posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	/* Before anything is read: a file must say the same at this start and at the next. */
	pad_file(s, g);
	r = read_footer(s, g, fd, note_record);
	g->has_footer = r == 0;
	if (r == -ENOMEM || r == 0)
		goto out;
	/* What a footer that ended badly has left behind is found again. */
	g->end = STORE_ALIGN;
	if (!f->has_salt && g->salt == 0) {
		/* Made, and never written to, or its two salts lost and every record with them. */
		if (!f->is_blank) {
			log_warning("store: segment-%08x is damaged beyond reading", f->number);
			s->result->n_dropped++;
		}
		r = 0;
		goto out;
	}
	s->result->n_scanned++;
	f->scanned = true;
	n_dropped = s->result->n_dropped;
	r = scan_records(s, g, fd);
	if (r < 0 && r != -ENOMEM) {
		log_warning("store: segment-%08x: %s at %llu", f->number, strerror(-r),
			(unsigned long long)g->end);
		s->result->n_dropped++;
		g->doubtful = true;
		r = 0;
	} else if (r == 0 && s->result->n_dropped != n_dropped) {
		/* What was misread once may be read well the next time: no footer is to forget it for good.
		 */
		g->doubtful = true;
	} else if (r == 0 && g->n_slots) {
		close_segment(s, g);
	}
out:
	close(fd);
	return r;
}

/* ---- which records hold ---- */

static bool is_purged(const struct scan *s, const struct format_record *h)
{
	for (size_t i = 0; i < s->n_purges; i++)
		if (memcmp(s->purges[i].name_space, h->name_space, 16) == 0)
			return h->sequence < s->purges[i].bound;
	return false;
}

/* The slots of what holds are marked already, as live but not counted: now they are, and said. */
static int tell_found(struct scan *s, struct segment *g, const struct format_record *h)
{
	const int64_t slot = segment_slot_at(g, h->offset);
	struct store_record record;

	if (slot < 0 || !g->slots[slot].live || h->kind != FORMAT_WRITE)
		return 0;
	g->slots[slot].live = 0;
	if (is_purged(s, h))
		return 0;
	segment_set_live(s->table, g, (uint32_t)slot, true);
	if (s->found) {
		format_record_describe(h, &record);
		s->found(s->arg, &record);
	}
	return 0;
}

/* Footers are read a second time, which takes less than keeping all of them would. */
static int tell_file(struct scan *s, const struct file *f)
{
	struct segment *g = segments_find(s->table, f->number);
	int fd, r = 0;

	segment_trim(s->table, g);
	if (f->scanned) {
		for (uint32_t i = 0; i < g->n_headers; i++)
			tell_found(s, g, &g->headers[i]);
		free(g->headers);
		g->headers = NULL;
		g->n_headers = g->headers_capacity = 0;
		return 0;
	}
	if (!g->n_slots)
		return 0;
	fd = open_file(s->table, f->number, O_RDONLY);
	if (fd < 0)
		return fd;
	r = read_footer(s, g, fd, tell_found);
	if (r < 0 && r != -ENOMEM) {
		log_warning(
			"store: segment-%08x: its footer was there and is not: %s", f->number, strerror(-r));
		for (uint32_t i = 0; i < g->n_slots; i++)
			if (g->slots[i].live && g->n_live == 0)
				g->slots[i].live = 0;
		s->result->n_dropped++;
		r = 0;
	}
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(fd);
	return r;
}

int scan_directory(struct segments *t, store_found_fn found, void *arg, struct scan_result *out)
{
	struct scan s = {.table = t, .result = out, .found = found, .arg = arg};
	int r;

	*out = (struct scan_result){.next_sequence = 1};
	if (getrandom(&s.seed, sizeof s.seed, GRND_NONBLOCK) != (ssize_t)sizeof s.seed)
		s.seed = (uint64_t)(uintptr_t)&s;
	/* Files that an earlier store deleted must not come back after a crash beside those that are made
	 * now, for they would bring their numbers back with them. */
	r = fsync(t->dir_fd) < 0 ? -errno : 0;
	if (r == 0)
		r = list_files(&s);
	for (size_t i = 0; r == 0 && i < s.n_files; i++)
		r = take_file(&s, &s.files[i]);
	for (size_t i = 0; r == 0 && i < s.n_places; i++)
		if (s.winners[i].sequence && s.winners[i].slot != NO_SLOT)
			t->list[s.winners[i].segment]->slots[s.winners[i].slot].live = 1;
	for (size_t i = 0; r == 0 && i < s.n_files; i++)
		r = tell_file(&s, &s.files[i]);
	for (size_t i = 0; r == 0 && i < s.n_files; i++) {
		struct segment *g = segments_find(t, s.files[i].number);

		if (!g->n_slots && !g->doubtful && (s.files[i].has_salt || s.files[i].is_blank))
			(void)segments_remove(t, g);
	}
	free(s.files);
	free(s.winners);
	free(s.purges);
	free(s.buffer);
	return r;
}
