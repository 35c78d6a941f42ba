/*
 * The index at a million chunks: a store whose files are made up (headers, footers and holes where frames
 * would be), a daemon that starts with it, and a client that looks up chains. The start is measured from the
 * daemon's exec to its first answer, with the files' pages dropped from the cache as far as the system does
 * that; the memory is what the daemon's index says it takes, with the store's own 12 bytes a record. The
 * floor beside LOOKUP is a NOP.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/geometry.h"
#include "runtime/store/format.h"
#include "runtime/store/segment.h"
#include "shm/cistern.h"
#include "tools/bench.h"
#include "tools/cistern.h"
#include "tools/private-daemon.h"

static const char usage[] = "Usage: cistern bench index [--json] [--chunks N] [--lookups N]\n"
			    "\n"
			    "A daemon's start with so many chunks in its store, LOOKUP of chains of 512 of "
			    "them, and the memory they take.\n"
			    "\n"
			    "      --chunks N    chunks in the store (default 1000000)\n"
			    "      --lookups N   chains looked up (default 2000)\n"
			    "      --json        one JSON object\n";

enum { CHAIN = 512, PER_SEGMENT = 4096, FRAME_BYTES = 3 * 4096 - STORE_HEADER_BYTES, LOOKUPS_MAX = 1000000 };

/* Key i of the chain that chunk i is in. The same in every process. */
static void make_key(uint64_t chunk, uint8_t out[32])
{
	const uint64_t word = (chunk + 1) * 0x9e3779b97f4a7c15u;

	for (int i = 0; i < 4; i++)
		memcpy(out + 8 * i, &(uint64_t){word ^ (uint64_t)i * 0xbf58476d1ce4e5b9u}, 8);
}

static const float inv_freq[1] = {1};

static void describe(struct cistern_model *m, struct cistern_plane *p)
{
	*p = (struct cistern_plane){.n_heads = 1, .dim = 2, .dtype = CISTERN_F16, .inv_freq = inv_freq};
	*m = (struct cistern_model){.name = "made up", .n_layers = 1, .n_planes = 1, .planes = p};
}

static void fingerprint_of(uint8_t out[16])
{
	struct geometry g = {.name = "made up", .n_layers = 1, .n_planes = 1, .tp_size = 1};

	g.planes[0] = (struct plane){.n_heads = 1, .dim = 2, .dtype = CISTERN_F16, .rope_scale = 1};
	geometry_fingerprint(&g, out);
}

static int write_segment(
	const char *dir, uint32_t number, uint64_t first, uint32_t n, const uint8_t name_space[16])
{
	const uint64_t record = format_pad(STORE_HEADER_BYTES + FRAME_BYTES), end = STORE_ALIGN + n * record;
	const size_t footer_bytes = (size_t)format_footer_bytes(n);
	struct format_record *headers = calloc(n, sizeof *headers);
	char path[400], name[SEGMENT_NAME_MAX], page[STORE_ALIGN], *footer = malloc(footer_bytes);
	uint8_t fingerprint[16];
	int fd = -1, r = -ENOMEM;

	if (!headers || !footer)
		goto out;
	fingerprint_of(fingerprint);
	for (uint32_t i = 0; i < n; i++) {
		const uint64_t chunk = first + i;
		struct format_record *h = &headers[i];

		*h = (struct format_record){.kind = FORMAT_WRITE,
			.sequence = chunk + 1,
			.frame_bytes = FRAME_BYTES,
			.raw_bytes = 1024,
			.position = chunk % CHAIN * 256,
			.n_tokens = 256,
			.segment = number,
			.offset = STORE_ALIGN + i * record};
		memcpy(h->name_space, name_space, 16);
		memcpy(h->fingerprint, fingerprint, 16);
		make_key(chunk, h->key);
		if (chunk % CHAIN)
			make_key(chunk - 1, h->parent);
		format_record_seal(h, number);
	}
	format_segment_encode(page, number, number);
	format_footer_encode(footer, headers, n, number, number, end);
	segment_name(number, name);
	snprintf(path, sizeof path, "%s/%s", dir, name);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	r = 0;
	if (fd < 0 || pwrite(fd, page, sizeof page, 0) != (ssize_t)sizeof page ||
		pwrite(fd, footer, footer_bytes, (off_t)end) != (ssize_t)footer_bytes || fsync(fd) < 0)
		r = -errno;
	if (r == 0)
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
out:
	if (fd >= 0)
		close(fd);
	free(headers);
	free(footer);
	return r;
}

static int make_store(const char *dir, uint64_t n_chunks)
{
	static const char name[] = "default";
	XXH128_canonical_t id;
	int r = 0;

	/* As the daemon makes it. */
	XXH128_canonicalFromHash(&id, XXH3_128bits(name, strlen(name)));
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return -errno;
	for (uint64_t at = 0; r == 0 && at < n_chunks; at += PER_SEGMENT)
		r = write_segment(dir, (uint32_t)(at / PER_SEGMENT) + 1, at,
			(uint32_t)(n_chunks - at < PER_SEGMENT ? n_chunks - at : PER_SEGMENT), id.digest);
	return r;
}

struct figures {
	double start_s;
	double index_bytes, slot_bytes, chunks;
	double lookup_us[LOOKUPS_MAX], nop_us[LOOKUPS_MAX];
	size_t n_lookups;
};

static double elapsed_us(uint64_t since_ns)
{
	return (double)(bench_now_ns() - since_ns) / 1000;
}

static int wait_one(struct cistern *c, struct cistern_completion *done)
{
	int r = cistern_wait(c, done, 1, 10000);

	return r == 1 ? done->status : r < 0 ? r : -ETIMEDOUT;
}

static int look_up(const char *socket, uint64_t n_chunks, struct figures *f)
{
	const struct cistern_options options = {.socket_path = socket, .spin_us = 1000};
	const uint64_t n_chains = n_chunks / CHAIN;
	struct cistern_key keys[CHAIN];
	struct cistern_completion done;
	struct cistern_model model;
	struct cistern_plane plane;
	struct cistern *c;
	unsigned seed = 1;
	uint32_t id;
	int r = cistern_connect(&options, &c);

	if (r < 0)
		return r;
	describe(&model, &plane);
	r = cistern_register_model(c, &model, &id);
	for (size_t i = 0; r == 0 && i < f->n_lookups; i++) {
		const uint64_t chain = ((uint64_t)rand_r(&seed) << 16 ^ (uint64_t)rand_r(&seed)) % n_chains;
		uint64_t start;

		for (int k = 0; k < CHAIN; k++)
			make_key(chain * CHAIN + (uint64_t)k, keys[k].bytes);
		start = bench_now_ns();
		r = cistern_lookup(c, id, keys, CHAIN, 1);
		if (r == 0)
			r = wait_one(c, &done);
		f->lookup_us[i] = elapsed_us(start);
		if (r == 0 && done.n_chunks != CHAIN) {
			fprintf(stderr, "cistern bench index: %u chunks of %d were found\n", done.n_chunks,
				CHAIN);
			r = -ENOENT;
		}
		start = bench_now_ns();
		if (r == 0)
			r = cistern_nop(c, 2);
		if (r == 0)
			r = wait_one(c, &done);
		f->nop_us[i] = elapsed_us(start);
	}
	cistern_close(c);
	return r;
}

static int ask_status(const char *socket, struct figures *f)
{
	json_t *object, *cache, *store;
	char *answer;
	int r = cistern_control(socket, "{\"command\":\"status\"}", &answer, 5000);

	if (r < 0)
		return r;
	object = json_loads(answer, 0, NULL);
	free(answer);
	cache = json_object_get(object, "cache");
	store = json_object_get(object, "store");
	f->index_bytes = json_number_value(json_object_get(cache, "index_bytes"));
	f->chunks = json_number_value(json_object_get(cache, "chunks"));
	f->slot_bytes = json_number_value(json_object_get(store, "slot_bytes"));
	json_decref(object);
	return 0;
}

static int measure(uint64_t n_chunks, struct figures *f)
{
	const struct private_daemon_options options = {
		.spin_us = 1000, .pool_bytes = 16 << 20, .store_lines = "size = 8T\nsegment_size = 64M"};
	struct private_daemon d;
	uint64_t start;
	int r = private_daemon_start(&d, &options);

	if (r < 0)
		return r;
	private_daemon_end(&d, SIGTERM);
	r = make_store(d.store, n_chunks);
	start = bench_now_ns();
	if (r == 0)
		r = private_daemon_restart(&d);
	f->start_s = elapsed_us(start) / 1e6;
	if (r == 0)
		r = look_up(d.socket, n_chunks, f);
	if (r == 0)
		r = ask_status(d.socket, f);
	private_daemon_stop(&d);
	return r;
}

static void report(struct figures *f, bool json)
{
	const double p50 = bench_quantile(f->lookup_us, f->n_lookups, 0.5),
		     p99 = bench_quantile(f->lookup_us, f->n_lookups, 0.99),
		     nop = bench_quantile(f->nop_us, f->n_lookups, 0.5),
		     per_chunk = (f->index_bytes + f->slot_bytes) / f->chunks;

	if (json) {
		print_json(json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:i, s:i}", "chunks", f->chunks,
			"start_seconds", f->start_s, "bytes_per_chunk", per_chunk, "index_bytes",
			f->index_bytes, "lookup_p50_us", p50, "lookup_p99_us", p99, "nop_p50_us", nop,
			"chain", CHAIN, "lookups", (int)f->n_lookups));
		return;
	}
	printf("%.0f chunks: started in %.2f s, %.1f bytes a chunk (%.1f of them in the store's tables)\n",
		f->chunks, f->start_s, per_chunk, f->slot_bytes / f->chunks);
	printf("LOOKUP of %d chunks: p50 %.1f us, p99 %.1f us; a NOP: p50 %.1f us\n", CHAIN, p50, p99, nop);
}

static bool parse(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
	char *end;

	errno = 0;
	*out = strtoull(text, &end, 10);
	return !errno && end != text && !*end && *out >= min && *out <= max;
}

int bench_index(int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"chunks", required_argument, NULL, 'c'}, {"lookups", required_argument, NULL, 'l'},
		{"help", no_argument, NULL, 'h'}, {0}};
	static struct figures f;
	uint64_t n_chunks = 1000000, n_lookups = 2000;
	bool json = false, good = true;
	int option, r;

	optind = 1;
	while (good && (option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 'j': json = true; break;
		case 'c': good = parse(optarg, CHAIN, 100000000, &n_chunks); break;
		case 'l': good = parse(optarg, 1, LOOKUPS_MAX, &n_lookups); break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: good = false; break;
		}
	if (!good || optind != argc) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	f.n_lookups = (size_t)n_lookups;
	r = measure(n_chunks, &f);
	if (r < 0) {
		fprintf(stderr, "cistern bench index: %s\n", strerror(-r));
		return EXIT_FAILURE;
	}
	report(&f, json);
	return EXIT_SUCCESS;
}
