/* Tokens gathered from paged memory and scattered into it, against the host's kernels, byte for byte: shapes,
 * dtypes, layouts and offsets at random. What is not written must stay as it was. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cuda/pages.h"
#include "kernels/kernels.h"
#include "tests/cuda/gpu.h"

enum { PLANES_MAX = 6, TOKENS_MAX = 200, CASES = 60, GUARD = 256 };

static struct device *device;

/* One case: planes of random shape in one piece of memory. */
struct world {
	struct plane shapes[PLANES_MAX];
	struct pages_plane planes[PLANES_MAX];
	uint32_t n_planes, n_blocks, block_tokens, n_tokens, offset;
	uint32_t blocks[TOKENS_MAX + 2];
	size_t memory_bytes, token_bytes; /* of all planes */
	uint8_t *memory;
};

static uint32_t pick(const uint32_t *from, size_t n)
{
	return from[(size_t)rand() % n];
}
#define PICK(...)                                                                                            \
	pick((const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

/* Tokens of a head together, heads of a token together, with gaps, or all at odd places. */
static void lay_out(struct world *w, uint32_t i)
{
	const struct plane *s = &w->shapes[i];
	struct pages_plane *p = &w->planes[i];
	const uint32_t element = (uint32_t)dtype_bytes(s->dtype), row = s->dim * element;
	const uint32_t gap = PICK(0, 0, 16, 2 * element);

	p->n_heads = s->n_heads;
	p->head_bytes = row;
	if (rand() % 2) { /* [block][token][head] */
		p->head_stride = row + gap;
		p->token_stride = p->head_stride * s->n_heads + PICK(0, 16, element);
		p->block_stride = p->token_stride * w->block_tokens + PICK(0, 64, element);
	} else { /* [block][head][token] */
		p->token_stride = row + gap;
		p->head_stride = p->token_stride * w->block_tokens;
		p->block_stride = p->head_stride * s->n_heads + PICK(0, 32, element);
	}
	w->memory_bytes = (w->memory_bytes + 15) / 16 * 16 + PICK(0, 0, element);
	p->base = w->memory_bytes;
	w->memory_bytes += p->block_stride * w->n_blocks;
	p->packed_bytes = w->token_bytes;
	w->token_bytes += (size_t)row * s->n_heads;
}

static void world_make(struct world *w)
{
	const uint32_t dtype = PICK(DTYPE_F16, DTYPE_BF16, DTYPE_F32);

	*w = (struct world){.n_planes = 1 + (uint32_t)rand() % PLANES_MAX,
		.block_tokens = PICK(1, 5, 16, 64),
		.n_tokens = 1 + (uint32_t)rand() % TOKENS_MAX};
	w->offset = (uint32_t)rand() % w->block_tokens;
	w->n_blocks = (w->offset + w->n_tokens) / w->block_tokens + 2 + (uint32_t)rand() % 5;
	/* Different blocks, or a scatter's result would depend on the order. */
	while (w->n_blocks % 7 == 0)
		w->n_blocks++;
	for (uint32_t i = 0; i < (w->offset + w->n_tokens) / w->block_tokens + 1; i++)
		w->blocks[i] = (i * 7 + 3) % w->n_blocks;
	for (uint32_t i = 0; i < w->n_planes; i++) {
		w->shapes[i] = (struct plane){
			.n_heads = PICK(1, 2, 3, 8), .dim = PICK(1, 7, 24, 64, 128), .dtype = dtype};
		lay_out(w, i);
	}
	w->memory = malloc(w->memory_bytes);
	assert_non_null(w->memory);
	for (size_t i = 0; i < w->memory_bytes; i++)
		w->memory[i] = (uint8_t)(rand() >> 5);
}

static struct kv_pages on_host(const struct world *w, uint32_t i, uint8_t *memory)
{
	return (struct kv_pages){.base = memory + w->planes[i].base,
		.block_stride = w->planes[i].block_stride,
		.token_stride = w->planes[i].token_stride,
		.head_stride = w->planes[i].head_stride};
}

static void run(const struct world *w, const void *memory, const void *packed, uint32_t first, uint32_t end,
	bool gathers)
{
	const uint32_t grid[3] = {(w->n_tokens + PAGES_TILE - 1) / PAGES_TILE, end - first, 1};
	struct pages_plane planes[PLANES_MAX];
	void *table, *blocks;
	struct pages_args args;

	memcpy(planes, w->planes, sizeof planes);
	for (uint32_t i = 0; i < w->n_planes; i++) {
		planes[i].base += (uintptr_t)memory;
		planes[i].unit_bytes = pages_unit(&planes[i]);
	}
	table = gpu_copy_in(device, planes, sizeof planes);
	blocks = gpu_copy_in(device, w->blocks, sizeof w->blocks);
	args = (struct pages_args){.planes = (uintptr_t)table + first * sizeof *planes,
		.blocks = (uintptr_t)blocks,
		.packed = (uintptr_t)packed,
		.n_tokens = w->n_tokens,
		.block_tokens = w->block_tokens,
		.offset = w->offset};
	assert_int_equal(
		device_launch(device, gathers ? DEVICE_KERNEL_pages_gather : DEVICE_KERNEL_pages_scatter,
			grid, PAGES_THREADS, 0, NULL, &args),
		0);
	assert_int_equal(device_driver(device)->cuStreamSynchronize(NULL), 0);
	gpu_free(device, table);
	gpu_free(device, blocks);
}

static void one_case(void)
{
	const struct kernels *k = kernels_cpu();
	struct world w;
	uint16_t tokens[TOKENS_MAX];
	uint8_t *want, *got, *memory;
	void *there, *packed;
	size_t len;

	world_make(&w);
	len = w.token_bytes * w.n_tokens;
	const struct kv_run r = {w.blocks, w.block_tokens, w.offset};
	want = malloc(len);
	got = malloc(len + GUARD);
	memory = malloc(w.memory_bytes);
	assert_true(want && got && memory);
	for (uint32_t t = 0; t < w.n_tokens; t++)
		tokens[t] = (uint16_t)t;

	there = gpu_copy_in(device, w.memory, w.memory_bytes);
	packed = gpu_alloc(device, len + GUARD);
	for (uint32_t i = 0; i < w.n_planes; i++) {
		const struct kv_pages pages = on_host(&w, i, w.memory);

		k->gather_raw(&w.shapes[i], &pages, &r, tokens, w.n_tokens,
			want + w.planes[i].packed_bytes * w.n_tokens);
	}
	run(&w, there, packed, 0, w.n_planes, true);
	gpu_copy_out(device, got, packed, len + GUARD);
	assert_memory_equal(got, want, len);
	for (size_t i = len + 1; i < len + GUARD; i++)
		assert_int_equal(got[i], got[len]); /* the pattern still */

	/* Others, into some of the planes. */
	const uint32_t first = (uint32_t)rand() % w.n_planes,
		       end = first + 1 + (uint32_t)rand() % (w.n_planes - first);

	for (size_t i = 0; i < len; i++)
		want[i] = (uint8_t)(rand() >> 5);
	gpu_free(device, packed);
	packed = gpu_copy_in(device, want, len);
	run(&w, there, packed, first, end, false);
	gpu_copy_out(device, memory, there, w.memory_bytes);
	for (uint32_t i = first; i < end; i++) {
		const struct kv_pages pages = on_host(&w, i, w.memory);

		k->scatter_raw(&w.shapes[i], &pages, &r, tokens, w.n_tokens,
			want + w.planes[i].packed_bytes * w.n_tokens);
	}
	assert_memory_equal(memory, w.memory, w.memory_bytes);
	gpu_free(device, packed);
	gpu_free(device, there);
	free(want);
	free(got);
	free(memory);
	free(w.memory);
}

static void as_the_host_does(void **state)
{
	const unsigned seed = (unsigned)time(NULL);

	(void)state;
	printf("seed %u\n", seed);
	srand(seed);
	for (int i = 0; i < CASES; i++)
		one_case();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(as_the_host_does),
	};
	int status = gpu_begin(&device);

	if (status)
		return status;
	status = cmocka_run_group_tests(tests, NULL, NULL);
	device_free(device);
	return status;
}
