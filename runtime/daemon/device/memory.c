#include "runtime/daemon/device/memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/driver.h"
#include "runtime/cuda/device.h"
#include "runtime/daemon/device/gpu.h"
#include "runtime/daemon/mapping.h"

static void unref(struct device_memory *m)
{
	/* acq_rel: what either side did to it comes before its end. */
	if (atomic_fetch_sub_explicit(&m->n_refs, 1, memory_order_acq_rel) > 1)
		return;
	for (uint32_t i = 0; m->parts && i < m->n_parts; i++)
		if (m->parts[i].fd >= 0)
			close(m->parts[i].fd);
	free(m->parts);
	free(m->planes);
	free(m);
}

void device_memory_unref(struct device_memory *m)
{
	if (m)
		unref(m);
}

/* ---- on the front thread ---- */

static int take_parts(struct device_memory *m, struct import_owner owner,
	const struct wire_register_memory *head, const uint8_t *at, int *fds, uint32_t n_fds, char *why,
	size_t why_len)
{
	const bool by_fd = head->kind == WIRE_MEMORY_CUDA_VMM;
	uint64_t sum = 0;

	for (uint32_t i = 0; i < m->n_parts; i++, at += sizeof(struct wire_device_part)) {
		struct device_part *part = &m->parts[i];
		struct wire_device_part w;
		uint64_t end;

		memcpy(&w, at, sizeof w);
		memcpy(part->handle, w.handle, sizeof part->handle);
		part->source = (struct import_source){.owner = owner,
			.handle = by_fd ? NULL : part->handle,
			.fd = -1,
			.address = w.address,
			.bytes = w.allocation_bytes};
		part->offset_bytes = w.offset_bytes;
		part->size_bytes = w.size_bytes;
		if (by_fd && i < n_fds) {
			part->fd = part->source.fd = fds[i];
			fds[i] = -1;
		}
		if (!w.size_bytes || __builtin_add_overflow(w.offset_bytes, w.size_bytes, &end) ||
			__builtin_add_overflow(sum, w.size_bytes, &sum) ||
			(by_fd && end > w.allocation_bytes)) {
			snprintf(why, why_len, "the size of part %u is out of range", i);
			return -EINVAL;
		}
	}
	if (sum == head->size_bytes)
		return 0;
	snprintf(why, why_len, "the parts have %llu bytes together, the memory %llu", (unsigned long long)sum,
		(unsigned long long)head->size_bytes);
	return -EINVAL;
}

int device_memory_new(struct gpu *g, struct import_owner owner, const struct wire_register_memory *head,
	const uint8_t *at, size_t len, int *fds, uint32_t n_fds, struct device_memory **out, size_t *used,
	char *why, size_t why_len)
{
	const bool by_fd = head->kind == WIRE_MEMORY_CUDA_VMM;
	static const uint8_t nobody[WIRE_UUID_BYTES];
	struct wire_device_memory w;
	struct device_memory *m;
	int r;

	if (len < sizeof w)
		w = (struct wire_device_memory){0};
	else
		memcpy(&w, at, sizeof w);
	if (!w.n_parts || w.n_parts > (by_fd ? WIRE_PART_FDS_MAX : WIRE_PARTS_MAX) ||
		len < sizeof w + w.n_parts * sizeof(struct wire_device_part) ||
		n_fds != (by_fd ? w.n_parts : 0)) {
		snprintf(why, why_len, "parts, descriptors and length of the message do not go together");
		return -EINVAL;
	}
	if (memcmp(w.uuid, nobody, sizeof nobody) != 0 && memcmp(w.uuid, g->uuid.bytes, sizeof w.uuid) != 0) {
		snprintf(why, why_len, "the memory is on another GPU than the daemon's");
		return -ENODEV;
	}
	m = calloc(1, sizeof *m);
	if (!m)
		return -ENOMEM;
	atomic_init(&m->n_refs, 1);
	m->gpu = g;
	m->n_parts = w.n_parts;
	m->parts = calloc(w.n_parts, sizeof *m->parts);
	for (uint32_t i = 0; m->parts && i < m->n_parts; i++)
		m->parts[i].fd = -1;
	r = m->parts ? take_parts(m, owner, head, at + sizeof w, fds, n_fds, why, why_len) : -ENOMEM;
	if (r) {
		unref(m);
		return r;
	}
	*used = sizeof w + w.n_parts * sizeof(struct wire_device_part);
	*out = m;
	return 0;
}

int device_memory_lay_out(struct device_memory *m, const struct geometry *g,
	const struct wire_register_memory *head, const struct wire_layout *layouts, char *why, size_t why_len)
{
	uint64_t packed = 0;

	m->n_planes = g->n_layers * g->n_planes;
	m->planes = calloc(m->n_planes, sizeof *m->planes);
	if (!m->planes)
		return -ENOMEM;
	for (uint32_t i = 0; i < m->n_planes; i++) {
		const struct plane *plane = &g->planes[i % g->n_planes];
		struct wire_layout l = layouts[i];
		uint32_t part = 0;
		int r;

		/* The part that it begins in; behind all of them it reaches outside the last one. */
		while (part + 1 < m->n_parts && l.base >= m->parts[part].size_bytes)
			l.base -= m->parts[part++].size_bytes;
		r = mapping_check_layout(plane, head, &l, m->parts[part].size_bytes, i / g->n_planes,
			i % g->n_planes, why, why_len);
		if (r)
			return r;
		m->planes[i] = (struct pages_plane){.base = l.base,
			.block_stride = l.block_stride,
			.token_stride = l.token_stride,
			.head_stride = l.head_stride,
			.packed_bytes = packed,
			.n_heads = plane->n_heads,
			.head_bytes = plane->dim * (uint32_t)dtype_bytes(plane->dtype),
			.reserved = part};
		packed += plane_width(plane) * dtype_bytes(plane->dtype);
	}
	return 0;
}

/* ---- on the lane ---- */

static void close_parts(struct device_memory *m)
{
	const struct cuda_driver *cu = device_driver(m->gpu->device);

	if (m->table)
		device_status(cu->cuMemFree(m->table));
	m->table = 0;
	for (uint32_t i = 0; i < m->n_parts; i++)
		m->parts[i].import = import_close(m->gpu->imports, m->parts[i].import);
}

static void close_memory(struct lane_keep *k)
{
	struct device_memory *m = (struct device_memory *)k;

	close_parts(m);
	unref(m);
}

static bool is_stale(struct lane_keep *k)
{
	const struct device_memory *m = (const struct device_memory *)k;

	for (uint32_t i = 0; i < m->n_parts; i++)
		if (import_is_stale(m->parts[i].import))
			return true;
	return false;
}

static int upload(struct device_memory *m, struct lane *lane)
{
	const struct cuda_driver *cu = device_driver(m->gpu->device);
	const size_t len = m->n_planes * sizeof *m->planes;

	for (uint32_t i = 0; i < m->n_planes; i++) {
		const struct device_part *part = &m->parts[m->planes[i].reserved];

		m->planes[i].base += import_address(part->import) + part->offset_bytes;
		m->planes[i].unit_bytes = pages_unit(&m->planes[i]);
	}
	if (cu->cuMemAlloc(&m->table, len)) {
		m->table = 0;
		return -ENOMEM;
	}
	/* The stream that kernels run on: they come behind it. */
	return device_status(cu->cuMemcpyHtoDAsync(m->table, m->planes, len, lane_work(lane)));
}

int device_memory_open(struct device_memory *m, struct lane *lane, char *why, size_t why_len)
{
	int r = 0;

	for (uint32_t i = 0; i < m->n_parts && !r; i++) {
		struct device_part *part = &m->parts[i];

		r = import_open(m->gpu->imports, &part->source, &part->import, why, why_len);
		if (r)
			break;
		if (part->offset_bytes > import_bytes(part->import) ||
			part->size_bytes > import_bytes(part->import) - part->offset_bytes) {
			snprintf(why, why_len, "part %u reaches outside its allocation of %llu bytes", i,
				(unsigned long long)import_bytes(part->import));
			r = -EINVAL;
		}
	}
	if (!r)
		r = upload(m, lane);
	if (r) {
		close_parts(m);
		return r;
	}
	/* A descriptor keeps the memory alive as a mapping does, and is not needed any more. */
	for (uint32_t i = 0; i < m->n_parts; i++) {
		if (m->parts[i].fd >= 0)
			close(m->parts[i].fd);
		m->parts[i].fd = -1;
	}
	atomic_fetch_add_explicit(&m->n_refs, 1, memory_order_relaxed);
	m->keep = (struct lane_keep){.close = close_memory, .is_stale = is_stale};
	lane_keep(lane, &m->keep);
	return 0;
}
