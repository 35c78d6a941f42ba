#include "runtime/cuda/memory.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/log.h"

enum { DEFAULT_SLAB_BYTES = 64 << 20 };

/* The driver keeps a slab's memory as long as it is mapped, so no handles are kept: slab i is mapped if and
 * only if i < n_slabs. */
struct memory {
	const struct device *device;
	CUdeviceptr range;
	uint64_t room_bytes, slab_bytes, spare_bytes;
	/* Written by who resizes, read by whoever wants the stats. */
	_Atomic uint64_t n_slabs, n_mapped, n_unmapped, n_refused;
};

static CUmemAllocationProp properties(const struct memory *m)
{
	return (CUmemAllocationProp){
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device_ordinal(m->device)},
	};
}

static uint64_t slab_count(const struct memory *m)
{
	return atomic_load_explicit(&m->n_slabs, memory_order_relaxed);
}

static void count(_Atomic uint64_t *counter)
{
	atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static int choose_sizes(struct memory *m, const struct memory_options *o)
{
	const CUmemAllocationProp prop = properties(m);
	const uint64_t wanted = o->slab_bytes ? o->slab_bytes : DEFAULT_SLAB_BYTES;
	size_t granularity = 0;
	int status = device_status(device_driver(m->device)->cuMemGetAllocationGranularity(
		&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED));

	if (status)
		return status;
	if (granularity == 0 || wanted > UINT64_MAX / 2 || o->room_bytes > UINT64_MAX / 2 ||
		o->room_bytes == 0)
		return -EINVAL;
	m->slab_bytes = (wanted + granularity - 1) / granularity * granularity;
	m->room_bytes = o->room_bytes / m->slab_bytes * m->slab_bytes;
	if (m->room_bytes == 0)
		m->room_bytes = m->slab_bytes;
	m->spare_bytes = o->spare_bytes;
	return 0;
}

int memory_new(const struct device *d, const struct memory_options *o, struct memory **out)
{
	struct memory *m = calloc(1, sizeof *m);
	int status;

	if (!m)
		return -ENOMEM;
	m->device = d;
	status = choose_sizes(m, o);
	if (!status)
		status = device_status(
			device_driver(d)->cuMemAddressReserve(&m->range, m->room_bytes, 0, 0, 0));
	if (status) {
		free(m);
		return status;
	}
	*out = m;
	return 0;
}

struct memory *memory_free(struct memory *m)
{
	uint64_t left;

	if (!m)
		return NULL;
	/* What cannot be unmapped has been logged, and goes with the process. */
	if (memory_resize(m, 0, &left) == 0)
		device_status(device_driver(m->device)->cuMemAddressFree(m->range, m->room_bytes));
	free(m);
	return NULL;
}

CUdeviceptr memory_range(const struct memory *m)
{
	return m->range;
}

/* Whether the device has so much that a slab leaves enough to others. Whoever else takes memory meanwhile is
 * not held up: this is courtesy, the driver's refusal is the limit. */
static int check_spare(const struct memory *m)
{
	size_t free_bytes = 0, total_bytes = 0;
	int status;

	if (!m->spare_bytes)
		return 0;
	status = device_status(device_driver(m->device)->cuMemGetInfo(&free_bytes, &total_bytes));
	if (status)
		return status;
	return free_bytes >= m->slab_bytes && free_bytes - m->slab_bytes >= m->spare_bytes ? 0 : -ENOMEM;
}

static int map_slab(struct memory *m)
{
	const struct cuda_driver *driver = device_driver(m->device);
	const CUmemAllocationProp prop = properties(m);
	const CUmemAccessDesc access = {
		.location = prop.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	const CUdeviceptr at = m->range + slab_count(m) * m->slab_bytes;
	CUmemGenericAllocationHandle handle;
	CUresult result;
	int status = check_spare(m);

	if (status)
		return status;
	result = driver->cuMemCreate(&handle, m->slab_bytes, &prop, 0);
	if (result == CUDA_ERROR_OUT_OF_MEMORY)
		return -ENOMEM;
	if (result != CUDA_SUCCESS)
		return device_status(result);
	status = device_status(driver->cuMemMap(at, m->slab_bytes, 0, handle, 0));
	/* From here on the mapping holds the memory, or nothing does. */
	device_status(driver->cuMemRelease(handle));
	if (status)
		return status;
	status = device_status(driver->cuMemSetAccess(at, m->slab_bytes, &access, 1));
	if (status) {
		device_status(driver->cuMemUnmap(at, m->slab_bytes));
		return status;
	}
	count(&m->n_slabs);
	count(&m->n_mapped);
	return 0;
}

static int unmap_slab(struct memory *m)
{
	const CUdeviceptr at = m->range + (slab_count(m) - 1) * m->slab_bytes;
	int status = device_status(device_driver(m->device)->cuMemUnmap(at, m->slab_bytes));

	if (status)
		return status;
	atomic_fetch_sub_explicit(&m->n_slabs, 1, memory_order_relaxed);
	count(&m->n_unmapped);
	return 0;
}

int memory_resize(struct memory *m, uint64_t size_bytes, uint64_t *mapped_bytes)
{
	const uint64_t wanted = size_bytes / m->slab_bytes + (size_bytes % m->slab_bytes != 0);
	int status = wanted > m->room_bytes / m->slab_bytes ? -EINVAL : 0;

	while (!status && slab_count(m) < wanted)
		status = map_slab(m);
	while (!status && slab_count(m) > wanted)
		status = unmap_slab(m);
	*mapped_bytes = slab_count(m) * m->slab_bytes;
	if (status == -ENOMEM) {
		count(&m->n_refused);
		log_warning("GPU memory: %llu MiB of the %llu MiB that were wanted: the device has no more "
			    "to give",
			(unsigned long long)(*mapped_bytes >> 20), (unsigned long long)(size_bytes >> 20));
	}
	return status;
}

void memory_get_stats(const struct memory *m, struct memory_stats *out)
{
	*out = (struct memory_stats){
		.room_bytes = m->room_bytes,
		.mapped_bytes = slab_count(m) * m->slab_bytes,
		.slab_bytes = m->slab_bytes,
		.n_mapped = atomic_load_explicit(&m->n_mapped, memory_order_relaxed),
		.n_unmapped = atomic_load_explicit(&m->n_unmapped, memory_order_relaxed),
		.n_refused = atomic_load_explicit(&m->n_refused, memory_order_relaxed),
	};
}
