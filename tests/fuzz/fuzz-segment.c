/*
 * Recovery of segments: two files of sound records, tombstones and purges, closed or not, and then anything
 * done to their bytes, some of it with the checksums made right again. Opening never fails for what is in the
 * files (but for another version), what is found lies in its file, and what is found once is found the second
 * time.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "runtime/store/scan.h"
#include "tests/fuzz/fuzz.h"

enum { FILE_MAX = 24 * STORE_ALIGN, RECORDS_MAX = 8 };

struct image {
	uint8_t data[FILE_MAX];
	size_t len;
};

static char folder[64];

static void make_image(struct image *m, struct input *in, uint32_t number)
{
	struct format_record headers[RECORDS_MAX];
	uint32_t n = 0, n_wanted = take_u8(in) % (RECORDS_MAX + 1);
	const bool closed = take_u8(in) & 1;
	uint64_t end = STORE_ALIGN;

	memset(m->data, 0, sizeof m->data);
	format_segment_encode(m->data, number, number);
	for (; n < n_wanted; n++) {
		struct format_record *h = &headers[n];
		const uint8_t kind = take_u8(in);

		*h = (struct format_record){.kind = (uint16_t)(kind % 8 < 6 ? FORMAT_WRITE : kind % 8 - 4),
			.sequence = (uint64_t)take_u8(in) + 1,
			.segment = number,
			.offset = end,
			.n_tokens = 256};
		h->frame_bytes = h->kind == FORMAT_WRITE ? take_u16(in) % 6000 + 1 : 0;
		h->raw_bytes = h->kind == FORMAT_WRITE ? 1 : take_u8(in);
		h->key[0] = take_u8(in) & 3;
		h->name_space[0] = take_u8(in) & 1;
		if (end + format_record_bytes(h) + format_footer_bytes(RECORDS_MAX) > FILE_MAX)
			break;
		memset(m->data + end + STORE_HEADER_BYTES, h->key[0] + 1, h->frame_bytes);
		h->body_checksum =
			format_checksum(m->data + end + STORE_HEADER_BYTES, (size_t)h->frame_bytes, number);
		format_record_seal(h, number);
		memcpy(m->data + end, h, sizeof *h);
		end += format_record_bytes(h);
	}
	m->len = FILE_MAX;
	if (closed) {
		format_footer_encode(m->data + end, headers, n, number, number, end);
		m->len = (size_t)(end + format_footer_bytes(n));
	}
}

/* Makes the header that stands at a page right again, or the trailer. */
static void reseal(struct image *m, size_t page, uint32_t number)
{
	uint8_t *at = m->data + page;
	struct format_trailer t;
	struct format_record h;

	memcpy(&h, at, sizeof h);
	memcpy(&t, at, sizeof t);
	if (h.magic == FORMAT_RECORD_MAGIC) {
		const uint16_t version = h.version;

		format_record_seal(&h, number);
		h.version = version;
		h.checksum = format_checksum(&h, offsetof(struct format_record, checksum), number);
		memcpy(at, &h, sizeof h);
	} else if (t.magic == FORMAT_TRAILER_MAGIC) {
		const uint64_t bytes = (uint64_t)t.n_records * STORE_HEADER_BYTES;

		if (t.footer_offset < m->len && bytes < m->len - t.footer_offset)
			t.footer_checksum = format_checksum(m->data + t.footer_offset, (size_t)bytes, t.salt);
		t.checksum = format_checksum(&t, offsetof(struct format_trailer, checksum), 0);
		memcpy(at, &t, sizeof t);
	}
}

static void spoil(struct image *m, struct input *in, uint32_t number)
{
	uint8_t n = take_u8(in) % 16;

	while (n-- && in->left && m->len) {
		const uint8_t what = take_u8(in);
		const uint32_t where = take_u32(in);
		const size_t at = where % m->len, page = at / STORE_ALIGN * STORE_ALIGN;

		switch (what % 6) {
		case 0: m->data[at] ^= take_u8(in) | 1; break;
		case 1: /* a field of a header */
			m->data[page + where % 192] = take_u8(in);
			if (page + STORE_ALIGN <= m->len)
				reseal(m, page, number);
			break;
		case 2:
			memset(m->data + page, 0, m->len - page < STORE_ALIGN ? m->len - page : STORE_ALIGN);
			break;
		case 3: m->len = at; break;
		case 4:
			if (page + STORE_ALIGN <= m->len)
				reseal(m, page, number);
			break;
		case 5: /* a page that strayed */
			if (page + STORE_ALIGN <= m->len)
				memcpy(m->data + page, m->data + STORE_ALIGN, STORE_ALIGN);
			break;
		}
	}
}

static void write_image(const struct image *m, uint32_t number)
{
	char name[SEGMENT_NAME_MAX], path[128];
	int fd;

	segment_name(number, name);
	snprintf(path, sizeof path, "%s/%s", folder, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	REQUIRE(fd >= 0 && write(fd, m->data, m->len) == (ssize_t)m->len);
	close(fd);
}

static void clear_folder(void)
{
	for (uint32_t number = 1; number <= 2; number++) {
		char name[SEGMENT_NAME_MAX], path[128];

		segment_name(number, name);
		snprintf(path, sizeof path, "%s/%s", folder, name);
		unlink(path);
	}
}

struct found {
	struct segments *table;
	uint32_t n;
	uint64_t sum;
};

static void note(void *arg, const struct store_record *r)
{
	struct found *f = arg;
	const struct segment *g = segments_find(f->table, r->location.segment);

	REQUIRE(g && r->frame_bytes && r->location.len_pages);
	REQUIRE(r->location.offset >= STORE_ALIGN);
	REQUIRE(r->location.offset + (uint64_t)r->location.len_pages * STORE_ALIGN <=
		g->len_bytes + STORE_ALIGN);
	f->n++;
	f->sum += format_checksum(r->key, sizeof r->key, r->location.segment) ^
		  r->frame_bytes * r->location.offset;
}

static int scan(struct found *f)
{
	struct scan_result result;
	struct segments table;
	const int dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r;

	REQUIRE(dir >= 0 && segments_init(&table, dir, false) == 0);
	*f = (struct found){.table = &table};
	r = scan_directory(&table, note, f, &result);
	REQUIRE(r == 0 || r == -ENOTSUP);
	REQUIRE(r || table.n_live == f->n);
	for (size_t i = 0; r == 0 && i < table.n; i++)
		REQUIRE(table.list[i]->live_bytes <= table.live_bytes);
	segments_fini(&table);
	close(dir);
	return r;
}

static void remove_folder(void)
{
	clear_folder();
	rmdir(folder);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct input in = {data, len};
	static struct image m;
	struct found first, second;

	if (!folder[0]) {
		log_set_level(LOG_LEVEL_ERROR);
		strcpy(folder, access("/dev/shm", W_OK) ? "/tmp/fuzz-segment-XXXXXX"
							: "/dev/shm/fuzz-segment-XXXXXX");
		REQUIRE(mkdtemp(folder));
		atexit(remove_folder);
	}
	for (uint32_t number = 1; number <= 2; number++) {
		make_image(&m, &in, number);
		spoil(&m, &in, number);
		write_image(&m, number);
	}
	if (scan(&first) == 0) {
		REQUIRE(scan(&second) == 0);
		REQUIRE(first.n == second.n && first.sum == second.sum);
	}
	clear_folder();
	return 0;
}
