#include "runtime/daemon/mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/daemon/device/memory.h"

enum { BLOCK_TOKENS_MAX = 65536, BLOCKS_MAX = 1 << 24 };

/* One axis of a layout: n elements of stride bytes each, whose inner extent is inner bytes. */
struct axis {
	uint64_t stride, n;
};

/* last = base + sum of stride * (n - 1) + element; false: it overflows or leaves the region. */
static bool inside(uint64_t base, const struct axis axes[3], uint64_t inner, uint64_t size)
{
	uint64_t end;

	if (__builtin_add_overflow(base, inner, &end))
		return false;
	for (int i = 0; i < 3; i++) {
		uint64_t reach;

		if (__builtin_mul_overflow(axes[i].stride, axes[i].n - 1, &reach) ||
			__builtin_add_overflow(end, reach, &end))
			return false;
	}
	return end <= size;
}

/* Two different elements of one layout must not share a byte: sorted by stride, each axis must step over all
 * that lies within one step of the smaller ones. */
static bool overlaps(const struct axis axes[3], uint64_t inner)
{
	struct axis a[3];
	uint64_t extent = inner;

	memcpy(a, axes, sizeof a);
	for (int i = 0; i < 3; i++)
		for (int k = i + 1; k < 3; k++)
			if (a[k].stride < a[i].stride) {
				const struct axis swap = a[i];

				a[i] = a[k];
				a[k] = swap;
			}
	for (int i = 0; i < 3; i++) {
		if (a[i].n == 1)
			continue;
		if (a[i].stride < extent)
			return true;
		extent += a[i].stride * (a[i].n - 1);
	}
	return false;
}

int mapping_check_layout(const struct plane *p, const struct wire_register_memory *m,
	const struct wire_layout *l, uint64_t size, uint32_t layer, uint32_t plane, char *why, size_t why_len)
{
	const uint64_t element = dtype_bytes(p->dtype);
	const struct axis axes[3] = {{l->block_stride, m->n_blocks}, {l->token_stride, m->block_tokens},
		{l->head_stride, p->n_heads}};
	const char *fault = NULL;

	if (!inside(l->base, axes, p->dim * element, size))
		fault = "reaches outside the memory";
	else if (overlaps(axes, p->dim * element))
		fault = "overlaps itself";
	else if ((l->base | l->block_stride | l->token_stride | l->head_stride) % element)
		fault = "is not aligned to its element";
	if (!fault)
		return 0;
	snprintf(why, why_len, "the layout of layer %u plane %u %s", layer, plane, fault);
	return -EINVAL;
}

static int check_memfd(int fd, uint64_t size_bytes, char *why, size_t why_len)
{
	const int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (seals < 0 || !(seals & F_SEAL_SHRINK)) {
		snprintf(why, why_len, "the memory is not a memfd sealed against shrinking (F_SEAL_SHRINK)");
		return -EPERM;
	}
	if (fstat(fd, &st))
		return -errno;
	if (!size_bytes || (uint64_t)st.st_size < size_bytes) {
		snprintf(why, why_len, "the memfd has %lld bytes, not the %llu announced",
			(long long)st.st_size, (unsigned long long)size_bytes);
		return -EINVAL;
	}
	return 0;
}

int mapping_check_blocks(const struct wire_register_memory *m, char *why, size_t why_len)
{
	if (m->block_tokens && m->block_tokens <= BLOCK_TOKENS_MAX && m->n_blocks &&
		m->n_blocks <= BLOCKS_MAX)
		return 0;
	snprintf(why, why_len, "%u blocks of %u tokens are out of range", m->n_blocks, m->block_tokens);
	return -EINVAL;
}

static struct mapping *describe(const struct model *model, const struct wire_register_memory *message)
{
	struct mapping *m = calloc(1, sizeof *m);

	if (m)
		*m = (struct mapping){.n_refs = 1,
			.model = model,
			.block_tokens = message->block_tokens,
			.n_blocks = message->n_blocks,
			.size_bytes = message->size_bytes};
	return m;
}

int mapping_new_device(const struct model *model, const struct wire_register_memory *message,
	struct device_memory *device, struct mapping **out)
{
	struct mapping *m = describe(model, message);

	if (!m)
		return -ENOMEM;
	m->device = device;
	*out = m;
	return 0;
}

int mapping_new(const struct model *model, const struct wire_register_memory *message,
	const struct wire_layout *layouts, int fd, struct mapping **out, char *why, size_t why_len)
{
	const struct geometry *g = &model->geometry;
	struct mapping *m;
	int r;

	r = mapping_check_blocks(message, why, why_len);
	if (!r)
		r = check_memfd(fd, message->size_bytes, why, why_len);
	for (uint32_t i = 0; !r && i < g->n_layers * g->n_planes; i++)
		r = mapping_check_layout(&g->planes[i % g->n_planes], message, &layouts[i],
			message->size_bytes, i / g->n_planes, i % g->n_planes, why, why_len);
	if (r)
		return r;

	m = describe(model, message);
	if (!m)
		return -ENOMEM;
	m->addr = mmap(NULL, m->size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (m->addr == MAP_FAILED) {
		r = -errno;
		snprintf(why, why_len, "mmap: %s", strerror(errno));
		m->addr = NULL;
		mapping_unref(m);
		return r;
	}
	m->pages = calloc((size_t)g->n_layers * g->n_planes, sizeof *m->pages);
	if (!m->pages) {
		mapping_unref(m);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < g->n_layers * g->n_planes; i++)
		m->pages[i] = (struct kv_pages){.base = (uint8_t *)m->addr + layouts[i].base,
			.block_stride = layouts[i].block_stride,
			.token_stride = layouts[i].token_stride,
			.head_stride = layouts[i].head_stride};
	*out = m;
	return 0;
}

struct mapping *mapping_ref(struct mapping *m)
{
	m->n_refs++;
	return m;
}

struct mapping *mapping_unref(struct mapping *m)
{
	if (!m || --m->n_refs)
		return NULL;
	if (m->addr)
		munmap(m->addr, m->size_bytes);
	device_memory_unref(m->device);
	free(m->pages);
	free(m);
	return NULL;
}
