#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "kernels/cuda/bytes/inflate.h"
#include "tools/bench-gpu/bench-gpu.h"

/* Streams of symbols as the codec's other entropy stage has them: levels of a few classes, two to a byte. */
struct streams {
	const struct device *device;
	const struct cuda_driver *driver;
	uint32_t n, bytes_each, room;
	uint8_t *symbols, *packed;                      /* host */
	CUdeviceptr symbols_at, packed_at, inflated_at; /* [n, ...] */
	CUdeviceptr streams_at, results_at;
	struct deflate_stream *streams;
	struct deflate_result *results;
};

static void make_symbols(struct streams *x)
{
	uint64_t random = 99;

	for (size_t i = 0; i < (size_t)x->n * x->bytes_each; i++) {
		/* Deviations that fall along a stream, as a part's components do. */
		const double spread = 3.0 * (1.0 - (double)(i % x->bytes_each) / x->bytes_each);
		int digits[2];

		for (int k = 0; k < 2; k++) {
			double sum = 0;

			for (int j = 0; j < 4; j++) {
				random = random * 6364136223846793005u + 1442695040888963407u;
				sum += (double)(random >> 40) / 16777216.0;
			}
			digits[k] = (int)((sum - 2) * 1.73 * spread + 7.5);
			digits[k] = digits[k] < 0 ? 0 : digits[k] > 14 ? 14 : digits[k];
		}
		x->symbols[i] = (uint8_t)(digits[0] + 15 * digits[1]);
	}
}

/* Both ways: from in to out, one kernel. */
struct launch {
	const struct streams *x;
	enum device_kernel kernel;
	const uint32_t *grid;
	uint32_t threads;
};

static int run(void *arg)
{
	const struct launch *l = arg;
	const struct deflate_streams_args a = {(const struct deflate_stream *)l->x->streams_at,
		(struct deflate_result *)l->x->results_at, l->x->n};

	return device_launch(l->x->device, l->kernel, l->grid, l->threads, 0, NULL, &a);
}

static int send_streams(struct streams *x)
{
	int r = device_status(
		x->driver->cuMemcpyHtoDAsync(x->streams_at, x->streams, x->n * sizeof *x->streams, NULL));

	return r ? r : device_status(x->driver->cuStreamSynchronize(NULL));
}

static int fetch_results(struct streams *x)
{
	int r = device_status(
		x->driver->cuMemcpyDtoHAsync(x->results, x->results_at, x->n * sizeof *x->results, NULL));

	return r ? r : device_status(x->driver->cuStreamSynchronize(NULL));
}

static int time_kernel(struct streams *x, enum device_kernel k, const uint32_t grid[3], uint32_t threads,
	uint32_t rounds, double *gbps)
{
	struct launch launch = {x, k, grid, threads};
	double ms;
	const int r = bench_gpu_time(x->driver, NULL, rounds, run, &launch, &ms);

	if (!r)
		*gbps = (double)x->n * x->bytes_each / ms / 1e6;
	return r;
}

/* zlib makes the same of every stream as went in. */
static int check_with_zlib(struct streams *x, struct stream_figures *out)
{
	uint8_t *back = malloc(x->bytes_each);
	int r = back ? 0 : -ENOMEM;

	for (uint32_t i = 0; !r && i < x->n; i++) {
		z_stream z = {.next_in = x->packed + (size_t)i * x->room,
			.avail_in = x->results[i].out_bytes,
			.next_out = back,
			.avail_out = x->bytes_each};

		if (x->results[i].status != DEFLATE_DONE || inflateInit2(&z, -15) != Z_OK) {
			r = -EIO;
			break;
		}
		if (inflate(&z, Z_FINISH) != Z_STREAM_END || z.total_out != x->bytes_each ||
			memcmp(back, x->symbols + (size_t)i * x->bytes_each, x->bytes_each) != 0)
			r = -EIO;
		else
			out->n_checked++;
		inflateEnd(&z);
	}
	free(back);
	return r;
}

static int measure(struct streams *x, uint32_t rounds, struct stream_figures *out)
{
	const struct cuda_driver *d = x->driver;
	double packed = 0;
	uint32_t grid[3];
	int r;

	for (uint32_t i = 0; i < x->n; i++)
		x->streams[i] = (struct deflate_stream){
			.in = (const uint8_t *)(x->symbols_at + (size_t)i * x->bytes_each),
			.out = (uint8_t *)(x->packed_at + (size_t)i * x->room),
			.in_bytes = x->bytes_each,
			.room = x->room};
	r = device_status(
		d->cuMemcpyHtoDAsync(x->symbols_at, x->symbols, (size_t)x->n * x->bytes_each, NULL));
	r = r ? r : send_streams(x);
	deflate_grid(x->n, grid);
	r = r ? r
	      : time_kernel(
			x, DEVICE_KERNEL_deflate_streams, grid, DEFLATE_THREADS, rounds, &out->deflate_gbps);
	r = r ? r : fetch_results(x);
	r = r ? r
	      : device_status(d->cuMemcpyDtoHAsync(x->packed, x->packed_at, (size_t)x->n * x->room, NULL));
	r = r ? r : device_status(d->cuStreamSynchronize(NULL));
	r = r ? r : check_with_zlib(x, out);
	if (r)
		return r;
	for (uint32_t i = 0; i < x->n; i++) {
		packed += x->results[i].out_bytes;
		x->streams[i] = (struct deflate_stream){.in = x->streams[i].out,
			.out = (uint8_t *)(x->inflated_at + (size_t)i * x->bytes_each),
			.in_bytes = x->results[i].out_bytes,
			.room = x->bytes_each};
	}
	out->ratio = (double)x->n * x->bytes_each / packed;
	r = send_streams(x);
	inflate_grid(x->n, grid);
	r = r ? r
	      : time_kernel(
			x, DEVICE_KERNEL_inflate_streams, grid, INFLATE_THREADS, rounds, &out->inflate_gbps);
	r = r ? r : fetch_results(x);
	r = r ? r
	      : device_status(
			d->cuMemcpyDtoHAsync(x->packed, x->inflated_at, (size_t)x->n * x->bytes_each, NULL));
	r = r ? r : device_status(d->cuStreamSynchronize(NULL));
	for (uint32_t i = 0; !r && i < x->n; i++)
		if (x->results[i].status != DEFLATE_DONE)
			r = -EIO;
	return !r && memcmp(x->packed, x->symbols, (size_t)x->n * x->bytes_each) != 0 ? -EIO : r;
}

int streams_measure(const struct device *d, bool small, uint32_t rounds, struct stream_figures *out)
{
	struct streams x = {.device = d,
		.driver = device_driver(d),
		.n = small ? 8 : 10000,
		.bytes_each = small ? 4096 : 32768};
	CUdeviceptr *const all[] = {
		&x.symbols_at, &x.packed_at, &x.inflated_at, &x.streams_at, &x.results_at};
	int r;

	*out = (struct stream_figures){.n_streams = x.n, .bytes_each = x.bytes_each};
	x.room = (deflate_room(x.bytes_each) + 255) / 256 * 256;
	const size_t sizes[] = {(size_t)x.n * x.bytes_each, (size_t)x.n * x.room, (size_t)x.n * x.bytes_each,
		x.n * sizeof *x.streams, x.n * sizeof *x.results};

	x.symbols = malloc((size_t)x.n * x.bytes_each);
	x.packed = malloc((size_t)x.n * x.room);
	x.streams = calloc(x.n, sizeof *x.streams);
	x.results = calloc(x.n, sizeof *x.results);
	r = x.symbols && x.packed && x.streams && x.results ? 0 : -ENOMEM;
	for (size_t i = 0; !r && i < sizeof all / sizeof *all; i++)
		r = device_status(x.driver->cuMemAlloc(all[i], sizes[i]));
	if (!r) {
		make_symbols(&x);
		r = measure(&x, rounds, out);
	}
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		if (*all[i])
			device_status(x.driver->cuMemFree(*all[i]));
	free(x.symbols);
	free(x.packed);
	free(x.streams);
	free(x.results);
	return r;
}
