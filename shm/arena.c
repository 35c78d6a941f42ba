#include "shm/arena.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint64_t round_up(uint64_t len_bytes)
{
	return (len_bytes + ARENA_ALIGN - 1) & ~(uint64_t)(ARENA_ALIGN - 1);
}

int arena_init(struct arena *a, uint64_t len_bytes, uint32_t n_live_max)
{
	uint32_t n_free_max = n_live_max + 1;
	struct arena_range *ranges = calloc(n_free_max, sizeof(*ranges));

	if (!ranges)
		return -ENOMEM;
	*a = (struct arena){.free = ranges, .n_free_max = n_free_max};
	a->len_bytes = len_bytes & ~(uint64_t)(ARENA_ALIGN - 1);
	if (a->len_bytes)
		a->free[a->n_free++] = (struct arena_range){.offset = 0, .len_bytes = a->len_bytes};
	return 0;
}

void arena_fini(struct arena *a)
{
	free(a->free);
	*a = (struct arena){0};
}

static void drop_range(struct arena *a, uint32_t i)
{
	a->n_free--;
	memmove(&a->free[i], &a->free[i + 1], (a->n_free - i) * sizeof(a->free[0]));
}

/* First fit keeps the used bytes together at the front, where they are in cache. */
int arena_alloc(struct arena *a, uint64_t len_bytes, uint64_t *offset)
{
	uint64_t len;

	if (len_bytes > a->len_bytes)
		return -ENOSPC;
	len = round_up(len_bytes);
	for (uint32_t i = 0; i < a->n_free; i++) {
		struct arena_range *r = &a->free[i];

		if (r->len_bytes < len)
			continue;
		*offset = r->offset;
		r->offset += len;
		r->len_bytes -= len;
		if (r->len_bytes == 0)
			drop_range(a, i);
		return 0;
	}
	return -EAGAIN;
}

/* Index of the first free range behind offset. */
static uint32_t find(const struct arena *a, uint64_t offset)
{
	uint32_t low = 0, high = a->n_free;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (a->free[middle].offset < offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

void arena_release(struct arena *a, uint64_t offset, uint64_t len_bytes)
{
	uint64_t len = round_up(len_bytes);
	uint32_t i = find(a, offset);
	struct arena_range *before = i > 0 ? &a->free[i - 1] : NULL;
	struct arena_range *after = i < a->n_free ? &a->free[i] : NULL;

	assert(len && offset + len <= a->len_bytes);
	assert(!before || before->offset + before->len_bytes <= offset);
	assert(!after || offset + len <= after->offset);
	if (before && before->offset + before->len_bytes == offset) {
		before->len_bytes += len;
		if (after && before->offset + before->len_bytes == after->offset) {
			before->len_bytes += after->len_bytes;
			drop_range(a, i);
		}
	} else if (after && offset + len == after->offset) {
		after->offset = offset;
		after->len_bytes += len;
	} else {
		assert(a->n_free < a->n_free_max);
		memmove(&a->free[i + 1], &a->free[i], (a->n_free - i) * sizeof(a->free[0]));
		a->free[i] = (struct arena_range){.offset = offset, .len_bytes = len};
		a->n_free++;
	}
}
