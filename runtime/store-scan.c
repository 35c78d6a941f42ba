#include "runtime/store-scan.h"

#include "base/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One segment file, before it is taken in. */
struct file {
	uint32_t number;
	uint64_t len_bytes;
	uint64_t salt;
	bool has_salt; /* its first page was sound */
	bool is_blank; /* its first page was never written */
};

/* One record found, in the order of files and offsets. */
struct seen {
	struct store_record record;
	uint64_t sequence;
	struct segment *segment;
	uint32_t slot;
	bool tombstone;
	bool outdated; /* a record with a higher sequence number has the same key */
};

struct scan {
	struct segments *table;
	struct scan_result *result;
	struct file *files;
	size_t n_files;
	struct seen *seen;
	size_t n_seen, seen_capacity;
	char *buffer; /* of the record being read */
	size_t buffer_bytes;
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
	int r;

	if (fd < 0)
		return fd;
	r = fstat(fd, &st) < 0 ? -errno : S_ISREG(st.st_mode) ? 0 : -EINVAL;
	if (r == 0) {
		f->len_bytes = (uint64_t)st.st_size;
		/* One that cannot be read here is met again when its records are. */
		if (read_at(fd, t->page, STORE_ALIGN, 0) == 0) {
			f->is_blank = is_zero(t->page);
			r = format_segment_decode(t->page, &header);
		}
		if (r == -ENOTSUP) {
			log_error("store: segment-%08x is of version %u, this program knows only %d",
				f->number, ((const struct format_segment *)t->page)->version, FORMAT_VERSION);
		} else if (r == 0 && !f->is_blank && header.number == f->number) {
			f->salt = header.salt;
			f->has_salt = true;
		}
		r = r == -EBADMSG ? 0 : r;
	}
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
