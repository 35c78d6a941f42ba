#include <errno.h>
#include <stdlib.h>

#include "kernels/cuda/pages.h"
#include "runtime/cuda/codec-internal.h"
#include "tools/bench-gpu/bench-gpu.h"

/* As the daemon gathers a put: a chunk after the other from the pages into a packed copy, behind which the
 * source is free. */
struct gather {
	const struct setting *s;
	const struct cuda_driver *driver;
	CUdeviceptr planes, blocks, packed;
	uint64_t token_bytes;
};

static int send(const struct gather *x, CUdeviceptr *to, const void *from, size_t len)
{
	int r = device_status(x->driver->cuMemAlloc(to, len));

	r = r ? r : device_status(x->driver->cuMemcpyHtoDAsync(*to, from, len, NULL));
	return r ? r : device_status(x->driver->cuStreamSynchronize(NULL));
}

static int describe(struct gather *x)
{
	const struct setting *s = x->s;
	const uint32_t n_planes = 2 * s->g.n_layers;
	struct pages_plane *planes = calloc(n_planes, sizeof *planes);
	int r = planes ? 0 : -ENOMEM;

	for (uint32_t i = 0; !r && i < n_planes; i++) {
		planes[i] = (struct pages_plane){.base = (uint64_t)(uintptr_t)s->pages[i].base,
			.block_stride = s->pages[i].block_stride,
			.token_stride = s->pages[i].token_stride,
			.head_stride = s->pages[i].head_stride,
			.packed_bytes = x->token_bytes,
			.n_heads = s->g.planes[0].n_heads,
			.head_bytes = s->g.planes[0].dim * 2,
			.unit_bytes = 16};
		x->token_bytes += plane_width(&s->g.planes[0]) * 2;
	}
	r = r ? r : send(x, &x->planes, planes, n_planes * sizeof *planes);
	r = r ? r : send(x, &x->blocks, s->blocks, s->n_blocks * sizeof *s->blocks);
	r = r ? r : device_status(x->driver->cuMemAlloc(&x->packed, s->bytes));
	free(planes);
	return r;
}

static int gather_all(void *arg)
{
	const struct gather *x = arg;
	const uint32_t grid[3] = {SETTING_CHUNK / PAGES_TILE, 2 * x->s->g.n_layers, 1};
	int r = 0;

	for (uint32_t i = 0; !r && i < x->s->n_chunks; i++) {
		const struct pages_args a = {.planes = x->planes,
			.blocks = x->blocks,
			.packed = x->packed + i * x->token_bytes * SETTING_CHUNK,
			.n_tokens = SETTING_CHUNK,
			.block_tokens = SETTING_BLOCK,
			.offset = i * SETTING_CHUNK};

		r = device_launch(x->s->device, DEVICE_KERNEL_pages_gather, grid, PAGES_THREADS, 0, NULL, &a);
	}
	return r;
}

int gather_measure(const struct setting *s, uint32_t rounds, double *ms)
{
	struct gather x = {.s = s, .driver = device_driver(s->device)};
	int r = describe(&x);

	r = r ? r : bench_gpu_time(x.driver, NULL, rounds, gather_all, &x, ms);
	for (size_t i = 0; i < 3; i++) {
		const CUdeviceptr at = i == 0 ? x.planes : i == 1 ? x.blocks : x.packed;

		if (at)
			device_status(x.driver->cuMemFree(at));
	}
	return r;
}
