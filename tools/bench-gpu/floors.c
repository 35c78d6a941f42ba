#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

#include "runtime/cuda/codec-internal.h"
#include "tools/bench-gpu/bench-gpu.h"
#include "tools/bench.h"

enum { GEMM_BLOCKS_MAX = 128 };

int bench_gpu_time(const struct cuda_driver *d, CUstream stream, uint32_t rounds, int (*run)(void *arg),
	void *arg, double *ms)
{
	double samples[BENCH_GPU_ROUNDS_MAX];
	CUevent start = NULL, end = NULL;
	int r = device_status(d->cuEventCreate(&start, CU_EVENT_DEFAULT));

	if (!r)
		r = device_status(d->cuEventCreate(&end, CU_EVENT_DEFAULT));
	for (uint32_t i = 0; !r && i <= rounds; i++) {
		float took = 0;

		r = device_status(d->cuEventRecord(start, stream));
		r = r ? r : run(arg);
		r = r ? r : device_status(d->cuEventRecord(end, stream));
		r = r ? r : device_status(d->cuEventSynchronize(end));
		r = r ? r : device_status(d->cuEventElapsedTime(&took, start, end));
		if (i)
			samples[i - 1] = (double)took;
	}
	if (start)
		d->cuEventDestroy(start);
	if (end)
		d->cuEventDestroy(end);
	if (!r)
		*ms = bench_quantile(samples, rounds, 0.5);
	return r;
}

/* ---- copies */

struct copy {
	struct device_codec *codec;
	CUdeviceptr from, to;
	void *host;
	size_t len;
};

static int copy_on_device(void *arg)
{
	const struct copy *x = arg;

	return device_status(x->codec->driver->cuMemcpyDtoDAsync(x->to, x->from, x->len, x->codec->stream));
}

static int copy_to_host(void *arg)
{
	const struct copy *x = arg;

	return device_status(x->codec->driver->cuMemcpyDtoHAsync(x->host, x->from, x->len, x->codec->stream));
}

static int measure_copies(
	const struct setting *s, struct device_codec *c, uint32_t rounds, struct floors *out)
{
	struct copy x = {.codec = c, .from = s->memory, .len = s->bytes};
	double ms = 0;
	int r = device_status(c->driver->cuMemAlloc(&x.to, x.len));

	if (r)
		return r;
	r = bench_gpu_time(c->driver, c->stream, rounds, copy_on_device, &x, &ms);
	out->copy_ms = ms;
	out->copy_gbps = (double)x.len / ms / 1e6;
	device_status(c->driver->cuMemFree(x.to));
	x.len = x.len < 64 << 20 ? x.len : 64 << 20;
	if (!r)
		r = device_status(c->driver->cuMemHostAlloc(&x.host, x.len, 0));
	if (!r)
		r = bench_gpu_time(c->driver, c->stream, rounds, copy_to_host, &x, &ms);
	out->host_gbps = (double)x.len / ms / 1e6;
	if (x.host)
		c->driver->cuMemFreeHost(x.host);
	return r;
}

/* ---- products */

struct products {
	struct device_codec *codec;
	struct codec_project_args args;
	uint32_t n_blocks, k;
	double flops; /* of one run over the blocks */
	/* cuBLAS: the same matrices, of each part all blocks as one, which lie together; its sums too. */
	const struct codec_device_block *blocks;
	const struct codec_device_part *parts;
	uint32_t n_parts, n_together;
	float *sums;
	void *handle;
	int (*gemm)(void *handle, int transa, int transb, int m, int n, int k, const void *alpha,
		const void *a, int a_type, int lda, const void *b, int b_type, int ldb, const void *beta,
		void *c, int c_type, int ldc, int compute, int algo);
};

static int own_product(void *arg)
{
	const struct products *p = arg;

	return device_codec_launch(p->codec, DEVICE_KERNEL_codec_project, SETTING_CHUNK / CODEC_TILE,
		round_up(p->k, CODEC_TILE) / CODEC_TILE, p->n_blocks, CODEC_THREADS, CODEC_PRODUCT_SHARED,
		&p->args);
}

/* sums [k, tokens] row-major is its transpose column-major: x basis^T. Values are those of cublas_api.h and
 * library_types.h: CUBLAS_OP_T, CUDA_R_16F, CUDA_R_32F, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT. */
static int cublas_product(void *arg)
{
	enum { OP_N = 0, OP_T = 1, R_16F = 2, R_32F = 0, COMPUTE_32F = 68, ALGO_DEFAULT = -1 };
	const struct products *p = arg;
	const float one = 1, zero = 0;

	for (uint32_t i = 0; i < p->n_parts; i++) {
		const struct codec_device_part *part = &p->parts[i];
		const int n_tokens = (int)(p->n_together * SETTING_CHUNK);

		if (p->gemm(p->handle, OP_T, OP_N, n_tokens, (int)p->k, (int)part->n_columns, &one,
			    p->blocks[i * p->n_together].x, R_16F, (int)part->n_columns, part->basis, R_16F,
			    (int)part->n_columns, &zero, p->sums, R_32F, n_tokens, COMPUTE_32F, ALGO_DEFAULT))
			return -EIO;
	}
	return 0;
}

/* cuBLAS, where there is one: the vendor's rate at these shapes. */
static void measure_cublas(
	struct device_codec *c, struct products *p, uint32_t rounds, double flops, double *tflops)
{
	static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so"};
	int (*create)(void **handle), (*destroy)(void *handle), (*set_stream)(void *handle, CUstream stream);
	void *library = NULL;
	double ms;

	for (size_t i = 0; !library && !c->driver->emulated && i < sizeof names / sizeof *names; i++)
		library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
	if (!library)
		return;
	*(void **)&create = dlsym(library, "cublasCreate_v2");
	*(void **)&destroy = dlsym(library, "cublasDestroy_v2");
	*(void **)&set_stream = dlsym(library, "cublasSetStream_v2");
	*(void **)&p->gemm = dlsym(library, "cublasGemmEx");
	if (create && destroy && set_stream && p->gemm && !create(&p->handle)) {
		if (!set_stream(p->handle, c->stream) &&
			!bench_gpu_time(c->driver, c->stream, rounds, cublas_product, p, &ms))
			*tflops = flops / ms / 1e9;
		destroy(p->handle);
	}
	dlclose(library);
}

/* One block's features: f16 between 1/4 and 1 of either sign, at random. Numbers that are all the same
 * multiply faster than any that are of use. */
static int fill_features(struct device_codec *c, const struct codec_device_block *b, uint32_t n_columns)
{
	const size_t n = (size_t)SETTING_CHUNK * n_columns;
	uint16_t *x = malloc(n * sizeof *x);
	uint32_t random = 1 + b->part;
	int r;

	if (!x)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		random = random * 1664525 + 1013904223;
		x[i] = (uint16_t)((random >> 16 & 0x87ff) + (13 << 10));
	}
	r = device_status(c->driver->cuMemcpyHtoDAsync((CUdeviceptr)b->x, x, n * sizeof *x, c->stream));
	r = r ? r : device_codec_wait(c);
	free(x);
	return r;
}

int products_open(const struct setting *s, struct products **out)
{
	struct products *p = calloc(1, sizeof *p);
	const struct device_transform *t;
	struct codec_device_block *blocks;
	CUdeviceptr blocks_at;
	struct device_codec *c;
	int r = p ? device_codec_new(s->device, (uint64_t)1 << 30, 0, &p->codec) : -ENOMEM;

	if (!r)
		r = device_codec_begin(p->codec);
	if (!r)
		r = device_codec_transform(p->codec, &s->g, s->t, &t);
	if (r) {
		products_close(p);
		return r;
	}
	c = p->codec;
	p->k = t->parts[0].active[0];
	p->n_together = s->n_chunks;
	p->n_parts = GEMM_BLOCKS_MAX / s->n_chunks < t->n_parts ? GEMM_BLOCKS_MAX / s->n_chunks : t->n_parts;
	p->n_blocks = p->n_parts * p->n_together;
	p->blocks = blocks = post_take(&c->post, p->n_blocks * sizeof *blocks, &blocks_at);
	p->parts = t->parts;
	for (uint32_t i = 0; !r && i < p->n_blocks; i++) {
		const struct codec_device_part *part = &t->parts[i / p->n_together];

		blocks[i] = (struct codec_device_block){
			.part = i / p->n_together, .k = p->k, .stride = SETTING_CHUNK};
		blocks[i].x = (uint16_t *)arena_take(
			&c->arena, (uint64_t)SETTING_CHUNK * part->n_columns * sizeof *blocks->x);
		r = blocks[i].x ? fill_features(c, &blocks[i], part->n_columns) : -ENOSPC;
		p->flops += 2.0 * SETTING_CHUNK * p->k * part->n_columns;
	}
	for (uint32_t i = 0; !r && i < p->n_blocks; i++) {
		blocks[i].c = (float *)arena_take(&c->arena, (uint64_t)SETTING_CHUNK * p->k * 4);
		r = blocks[i].c ? 0 : -ENOSPC;
	}
	p->sums = (float *)arena_take(&c->arena, (uint64_t)SETTING_CHUNK * p->n_together * p->k * 4);
	if (!r && !p->sums)
		r = -ENOSPC;
	p->args = (struct codec_project_args){
		(const struct codec_device_part *)t->parts_at, (const struct codec_device_block *)blocks_at};
	if (!r)
		r = post_send(c);
	if (r)
		products_close(p);
	else
		*out = p;
	return r;
}

void products_close(struct products *p)
{
	if (p)
		device_codec_free(p->codec);
	free(p);
}

int products_time(struct products *p, uint32_t rounds, double *tflops)
{
	double ms;
	const int r = bench_gpu_time(p->codec->driver, p->codec->stream, rounds, own_product, p, &ms);

	if (!r)
		*tflops = p->flops / ms / 1e9;
	return r;
}

int products_rate(struct products *p, uint64_t ms, double *tflops)
{
	const struct cuda_driver *d = p->codec->driver;
	const uint64_t start = bench_now_ns(), end = start + ms * 1000000;
	CUevent done[2] = {NULL};
	uint64_t n = 0;
	int r = 0;

	for (int i = 0; !r && i < 2; i++)
		r = device_status(d->cuEventCreate(&done[i], CU_EVENT_DISABLE_TIMING));
	/* Two lots are under way, the older of which is waited for. */
	while (!r && (bench_now_ns() < end || n < 2)) {
		r = own_product(p);
		r = r ? r : own_product(p);
		r = r ? r : device_status(d->cuEventRecord(done[n % 2], p->codec->stream));
		n++;
		if (!r && n > 1)
			r = device_status(d->cuEventSynchronize(done[n % 2]));
	}
	r = r ? r : device_codec_wait(p->codec);
	*tflops = 2 * (double)n * p->flops / (double)(bench_now_ns() - start) / 1e3;
	for (int i = 0; i < 2; i++)
		if (done[i])
			d->cuEventDestroy(done[i]);
	return r;
}

static int measure_products(const struct setting *s, uint32_t rounds, struct floors *out)
{
	struct products *p;
	int r = products_open(s, &p);

	if (r)
		return r;
	r = products_time(p, rounds, &out->own_tflops);
	if (!r)
		measure_cublas(p->codec, p, rounds, p->flops, &out->cublas_tflops);
	for (uint32_t i = 0; i < s->t->n_parts; i++)
		out->flops += 2.0 * s->n_tokens * p->k * s->t->parts[i].n_features;
	out->gemm_ms = out->flops / 1e9 /
		       (out->cublas_tflops > out->own_tflops ? out->cublas_tflops : out->own_tflops);
	products_close(p);
	return r;
}

int floors_measure(const struct setting *s, uint32_t rounds, struct floors *out)
{
	struct device_codec *c;
	int r = device_codec_new(s->device, DEVICE_ALIGN, 0, &c);

	*out = (struct floors){0};
	if (r)
		return r;
	r = measure_copies(s, c, rounds, out);
	device_codec_free(c);
	return r ? r : measure_products(s, rounds, out);
}
