/*
 * Writing and reading records through the store, beside the same reads and writes through a bare ring on one
 * preallocated file: from the same memory (huge pages, registered), of the same length, as many in flight,
 * reads in the same random order. The ring's mode is the store's, and its file is registered. The store,
 * which is as a daemon has it that is told nothing, is given twice as much as it may have in flight, as the
 * daemon gives it whatever is to be written, up to 64 MiB; the floor, too, has its next request always at
 * hand. Rounds of both are interleaved, the one first and then the other, since what a round deletes is given
 * back to the disk while the next one runs. Figures are medians over rounds. fio, where it is installed, does
 * once what the floor does, from memory of its own (small pages, unless it is told otherwise).
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <jansson.h>
#include <liburing.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "runtime/pool.h"
#include "runtime/store.h"
#include "tools/bench.h"
#include "tools/cistern.h"

enum { ROUNDS_MAX = 101, DEPTH = 32, HANDED_OVER = 2 * DEPTH, MEMORY_BYTES = 256 << 20, SETTLE_MS = 200 };
static const uint64_t LIMIT_BYTES = 16ull << 30; /* the daemon's, if nothing is said */

static const char usage[] =
	"Usage: cistern bench store [--json] [--dir DIR] [--record BYTES] [--size BYTES] [--rounds N]\n"
	"\n"
	"GB/s of records written to a new store and read back in random order, beside the floor: a\n"
	"bare io_uring on one file; and the share of it that is reached. Uses twice --size on disk, and "
	"cleans up.\n"
	"\n"
	"  --json            one JSON object\n"
	"  --dir DIR         where (default /var/tmp)\n"
	"  --record BYTES    of one record, a multiple of 4096, at most 64 MiB (default 262144)\n"
	"  --size BYTES      written in each round (default 536870912)\n"
	"  --rounds N        interleaved rounds, 1 to 101 (default 5)\n";

enum { FLOOR_WRITE, STORE_WRITES, WRITE_SHARE, FLOOR_READ, STORE_READS, READ_SHARE, N_SERIES };

static const char *const names[N_SERIES] = {
	"floor: write", "write", "write share", "floor: read", "read", "read share"};

struct bench {
	const char *dir;
	size_t record_bytes;
	uint32_t n; /* records */
	char *memory;
	uint32_t n_slots;                  /* records that memory holds */
	uint32_t *order;                   /* [n], of reading */
	double gb_s[N_SERIES][ROUNDS_MAX]; /* shares: of the floor in the same round */
	double fio_gb_s[2];                /* write, read; 0: none */
};

static double rate(const struct bench *b, uint64_t start_ns)
{
	return (double)b->record_bytes * b->n / (double)(bench_now_ns() - start_ns);
}

static void *slot(const struct bench *b, uint32_t i)
{
	return b->memory + (size_t)(i % b->n_slots) * b->record_bytes;
}

/* Lets the disk come to rest: what was deleted is committed, and given back after that. */
static void settle(const struct bench *b)
{
	int fd = open(b->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd >= 0) {
		syncfs(fd);
		close(fd);
	}
	nanosleep(&(struct timespec){.tv_nsec = SETTLE_MS * 1000000l}, NULL);
}

/* ---- the floor ---- */

/* As the store makes it, or as this kernel lets it be. The memory need not be registered: *fixed. */
static int make_ring(const struct bench *b, int fd, struct io_uring *ring, bool *fixed)
{
	const struct iovec memory = {b->memory, MEMORY_BYTES};
	int r = io_uring_queue_init(DEPTH, ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);

	if (r == -EINVAL)
		r = io_uring_queue_init(DEPTH, ring, 0);
	if (r < 0)
		return r;
	*fixed = io_uring_register_buffers(ring, &memory, 1) == 0;
	r = io_uring_register_files(ring, &fd, 1);
	if (r < 0)
		io_uring_queue_exit(ring);
	return r;
}

static void prepare(const struct bench *b, struct io_uring_sqe *sqe, uint32_t i, bool reading, bool fixed)
{
	const uint64_t at = (uint64_t)(reading ? b->order[i] : i) * b->record_bytes;
	const unsigned len = (unsigned)b->record_bytes;

	if (fixed && reading)
		io_uring_prep_read_fixed(sqe, 0, slot(b, i), len, at, 0);
	else if (fixed)
		io_uring_prep_write_fixed(sqe, 0, slot(b, i), len, at, 0);
	else if (reading)
		io_uring_prep_read(sqe, 0, slot(b, i), len, at);
	else
		io_uring_prep_write(sqe, 0, slot(b, i), len, at);
	sqe->flags |= IOSQE_FIXED_FILE;
}

static int floor_pass(const struct bench *b, struct io_uring *ring, bool reading, bool fixed)
{
	uint32_t n_started = 0, n_done = 0;

	while (n_done < b->n) {
		struct io_uring_cqe *cqe;

		for (; n_started < b->n && n_started - n_done < DEPTH; n_started++)
			prepare(b, io_uring_get_sqe(ring), n_started, reading, fixed);
		if (io_uring_submit_and_wait(ring, 1) < 0)
			return -EIO;
		while (io_uring_peek_cqe(ring, &cqe) == 0) {
			bool whole = cqe->res == (int)b->record_bytes;

			io_uring_cqe_seen(ring, cqe);
			if (!whole)
				return -EIO;
			n_done++;
		}
	}
	return 0;
}

static int measure_floor(struct bench *b, uint32_t round)
{
	struct io_uring ring;
	char *path = NULL;
	bool fixed = false;
	uint64_t start;
	int fd, r;

	if (asprintf(&path, "%s/floor", b->dir) < 0)
		return -ENOMEM;
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_DIRECT, 0600);
	r = fd < 0 || fallocate(fd, 0, 0, (off_t)(b->record_bytes * b->n)) < 0 ? -errno : 0;
	if (r == 0)
		r = make_ring(b, fd, &ring, &fixed);
	if (r < 0)
		goto out;
	start = bench_now_ns();
	r = floor_pass(b, &ring, false, fixed);
	b->gb_s[FLOOR_WRITE][round] = rate(b, start);
	start = bench_now_ns();
	if (r == 0)
		r = floor_pass(b, &ring, true, fixed);
	b->gb_s[FLOOR_READ][round] = rate(b, start);
	io_uring_queue_exit(&ring);
out:
	if (fd >= 0)
		close(fd);
	unlink(path);
	free(path);
	return r;
}

/* ---- the store ---- */

static int store_pass(const struct bench *b, struct store *s, struct store_op *ops, bool reading)
{
	struct pollfd ready = {.fd = store_fd(s), .events = POLLIN};
	uint32_t n_started = 0, n_done = 0;
	int r = 0;

	/* After a failure what is in flight is still taken back. */
	while (n_done < (r ? n_started : b->n)) {
		for (; r == 0 && n_started < b->n && n_started - n_done < HANDED_OVER; n_started++) {
			uint32_t i = reading ? b->order[n_started] : n_started;
			struct store_op *op = &ops[i];

			op->kind = reading ? STORE_READ : STORE_WRITE;
			op->data = slot(b, n_started);
			op->record.frame_bytes = b->record_bytes - STORE_HEADER_BYTES;
			memcpy(op->record.key, &i, sizeof i);
			store_submit(s, op);
		}
		if (poll(&ready, 1, -1) < 0 && errno != EINTR)
			return -errno;
		for (struct store_op *op = store_reap(s); op; op = op->next) {
			r = op->status ? op->status : r;
			n_done++;
		}
	}
	return r;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *where)
{
	(void)st;
	(void)kind;
	(void)where;
	return remove(path);
}

static void remove_tree(const char *path)
{
	nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static int measure_store(struct bench *b, uint32_t round)
{
	const uint64_t least_bytes = (uint64_t)b->record_bytes * b->n * 2 + (1u << 30);
	struct store_config config = {.limit_bytes = least_bytes > LIMIT_BYTES ? least_bytes : LIMIT_BYTES,
		.depth = DEPTH,
		.pool_addr = b->memory,
		.pool_bytes = MEMORY_BYTES};
	struct store_op *ops = calloc(b->n, sizeof *ops);
	struct store *s = NULL;
	char *dir = NULL;
	uint64_t start;
	int r = -ENOMEM;

	if (!ops || asprintf(&dir, "%s/store", b->dir) < 0)
		goto out;
	config.directory = dir;
	r = store_open(&config, NULL, NULL, &s);
	if (r < 0)
		goto out;
	start = bench_now_ns();
	r = store_pass(b, s, ops, false);
	b->gb_s[STORE_WRITES][round] = rate(b, start);
	start = bench_now_ns();
	if (r == 0)
		r = store_pass(b, s, ops, true);
	b->gb_s[STORE_READS][round] = rate(b, start);
	store_close(s);
	remove_tree(dir);
out:
	free(dir);
	free(ops);
	return r;
}

/* ---- fio ---- */

/* GB/s of one job, or 0: fio is not there, or failed. */
static double run_fio(const struct bench *b, bool reading)
{
	const char *kind = reading ? "randread" : "write", *side = reading ? "read" : "write";
	json_t *answer = NULL;
	char *command = NULL;
	double rate = 0;
	FILE *f;

	if (asprintf(&command,
		    "fio --name=cistern --filename=%s/fio --rw=%s --bs=%zu --size=%llu --iodepth=%d "
		    "--ioengine=io_uring "
		    "--direct=1 --output-format=json 2>/dev/null",
		    b->dir, kind, b->record_bytes, (unsigned long long)b->record_bytes * b->n, DEPTH) < 0)
		return 0;
	f = popen(command, "r");
	if (f) {
		answer = json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL);
		pclose(f);
	}
	if (answer) {
		const json_t *job = json_array_get(json_object_get(answer, "jobs"), 0);

		rate = json_number_value(json_object_get(json_object_get(job, side), "bw_bytes")) / 1e9;
	}
	json_decref(answer);
	free(command);
	return rate;
}

static void measure_fio(struct bench *b)
{
	char *path = NULL;

	b->fio_gb_s[0] = run_fio(b, false);
	b->fio_gb_s[1] = run_fio(b, true);
	if (asprintf(&path, "%s/fio", b->dir) >= 0)
		unlink(path);
	free(path);
}

static int measure(struct bench *b, uint32_t n_rounds)
{
	unsigned seed = 1;
	struct pool *pool;
	void *memory;
	int r = pool_new(MEMORY_BYTES, &pool);

	if (r < 0)
		return r;
	r = pool_alloc(pool, MEMORY_BYTES, &memory);
	b->memory = memory;
	b->n_slots = (uint32_t)(MEMORY_BYTES / b->record_bytes);
	b->order = calloc(b->n, sizeof *b->order);
	if (r == 0 && !b->order)
		r = -ENOMEM;
	if (r == 0) {
		/* The first touch of memory would cost more than the disk does. */
		memset(memory, 0x5a, MEMORY_BYTES);
		for (uint32_t i = 0; i < b->n; i++) {
			uint32_t j = (uint32_t)rand_r(&seed) % (i + 1);

			b->order[i] = b->order[j];
			b->order[j] = i;
		}
	}
	for (uint32_t i = 0; r == 0 && i < n_rounds; i++) {
		settle(b);
		r = i % 2 ? measure_store(b, i) : measure_floor(b, i);
		settle(b);
		if (r == 0)
			r = i % 2 ? measure_floor(b, i) : measure_store(b, i);
	}
	settle(b);
	if (r == 0)
		measure_fio(b);
	free(b->order);
	pool_free(pool);
	return r;
}

static void report(struct bench *b, uint32_t n_rounds, bool json)
{
	json_t *object = json ? json_pack("{s:I, s:I, s:I}", "record_bytes", (json_int_t)b->record_bytes,
					"records", (json_int_t)b->n, "rounds", (json_int_t)n_rounds)
			      : NULL;

	if (!json)
		printf("%u records of %zu bytes, %d in flight, %u rounds, GB/s (median, quartiles)\n", b->n,
			b->record_bytes, DEPTH, n_rounds);
	/* Disks change their pace; the two halves of a round are seconds apart. */
	for (uint32_t i = 0; i < n_rounds; i++) {
		b->gb_s[WRITE_SHARE][i] = b->gb_s[STORE_WRITES][i] / b->gb_s[FLOOR_WRITE][i];
		b->gb_s[READ_SHARE][i] = b->gb_s[STORE_READS][i] / b->gb_s[FLOOR_READ][i];
	}
	for (int i = 0; i < N_SERIES; i++) {
		double low = bench_quantile(b->gb_s[i], n_rounds, 0.25);
		double median = bench_quantile(b->gb_s[i], n_rounds, 0.5);
		double high = bench_quantile(b->gb_s[i], n_rounds, 0.75);

		if (json)
			json_object_set_new(object, names[i], json_real(median));
		else
			printf("%-14s %6.2f  (%.2f to %.2f)\n", names[i], median, low, high);
	}
	for (int i = 0; i < 2; i++) {
		static const char *const fio[2] = {"fio: write", "fio: read"};

		if (json)
			json_object_set_new(
				object, fio[i], b->fio_gb_s[i] > 0 ? json_real(b->fio_gb_s[i]) : json_null());
		else if (b->fio_gb_s[i] > 0)
			printf("%-14s %6.2f\n", fio[i], b->fio_gb_s[i]);
	}
	if (json)
		print_json(object);
}

static bool parse(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
	char *end;

	errno = 0;
	*out = strtoull(text, &end, 10);
	return !errno && end != text && !*end && *out >= min && *out <= max;
}

int bench_store(int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"dir", required_argument, NULL, 'd'}, {"record", required_argument, NULL, 'b'},
		{"size", required_argument, NULL, 's'}, {"rounds", required_argument, NULL, 'r'},
		{"help", no_argument, NULL, 'h'}, {0}};
	static struct bench b;
	uint64_t record_bytes = 262144, size_bytes = 512 << 20, n_rounds = 5;
	const char *where = "/var/tmp";
	char *dir = NULL;
	bool json = false, good = true;
	int option, r;

	optind = 1;
	while (good && (option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 'j': json = true; break;
		case 'd': where = optarg; break;
		case 'b':
			good = parse(optarg, 4096, 64 << 20, &record_bytes) && record_bytes % 4096 == 0;
			break;
		case 's': good = parse(optarg, 1 << 20, 1ull << 40, &size_bytes); break;
		case 'r': good = parse(optarg, 1, ROUNDS_MAX, &n_rounds); break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: good = false; break;
		}
	if (!good || optind != argc || size_bytes < record_bytes) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	log_set_level(LOG_LEVEL_WARNING);
	if (asprintf(&dir, "%s/cistern-bench-XXXXXX", where) < 0)
		return EXIT_FAILURE;
	r = mkdtemp(dir) ? 0 : -errno;
	if (r == 0) {
		b.dir = dir;
		b.record_bytes = (size_t)record_bytes;
		b.n = (uint32_t)(size_bytes / record_bytes);
		r = measure(&b, (uint32_t)n_rounds);
		remove_tree(dir);
	}
	free(dir);
	if (r < 0) {
		fprintf(stderr, "cistern bench store: %s: %s\n", where, strerror(-r));
		return EXIT_FAILURE;
	}
	report(&b, (uint32_t)n_rounds, json);
	return EXIT_SUCCESS;
}
