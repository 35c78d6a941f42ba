/* Entry points for memory of the device: allocations, virtual memory management, and IPC of allocations. */
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <thread>

#include "tests/cuda/double/entry.h"
#include "tests/cuda/double/handle.h"
#include "tests/cuda/double/memory.h"
#include "tests/cuda/double/state.h"
#include "tests/cuda/double/stream.h"

namespace
{

const size_t page_bytes = 4096, allocation_alignment = 256;

/* Handles of cuMemCreate, and imports by the memory they are of. Never destroyed. */
struct tables {
	std::mutex lock;
	std::map<CUmemGenericAllocationHandle, struct object *> handles;
	CUmemGenericAllocationHandle next = 0x1000;
	struct import {
		CUdeviceptr base;
		unsigned n_opens;
	};
	std::map<uint64_t, struct import> imports;
};

struct tables *table()
{
	static struct tables *t = new struct tables;
	return t;
}

/* What the owner's death leaves is to be let go soon: who uses it long after faults. */
void watch_owner(pid_t pid, uint64_t start, CUdeviceptr base, uint64_t id)
{
	const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
	struct pollfd p = {fd, POLLIN, 0};

	if (fd >= 0 && process_start(pid) == start)
		while (poll(&p, 1, -1) < 0)
			;
	if (fd >= 0)
		close(fd);
	const unsigned patience_ms = state_orphan_ms();
	if (!patience_ms)
		return;
	usleep(patience_ms * 1000);
	std::lock_guard<std::mutex> guard(table()->lock);
	auto it = table()->imports.find(id);
	if (it != table()->imports.end() && it->second.base == base)
		region_revoke(base);
}

bool valid_prop(const CUmemAllocationProp *prop)
{
	return prop && prop->type == CU_MEM_ALLOCATION_TYPE_PINNED &&
	       prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE && prop->location.id == 0;
}

} // namespace

CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t len)
{
	ENTRY("cuMemAlloc", NEEDS_CONTEXT);
	if (!out || len == 0)
		return CUDA_ERROR_INVALID_VALUE;
	if (len > (1ull << 40))
		return CUDA_ERROR_OUT_OF_MEMORY;
	const size_t room = (len + page_bytes - 1) / page_bytes * page_bytes;
	const size_t tail = (len + allocation_alignment - 1) / allocation_alignment * allocation_alignment;
	struct object *o = object_new(room);
	if (!o)
		return CUDA_ERROR_OUT_OF_MEMORY;
	const CUdeviceptr addr = region_map(o, REGION_ALLOCATION, room - tail, len);
	if (!addr) {
		object_unref(o);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*out = addr;
	return CUDA_SUCCESS;
}

/* The real one waits for the device, too. */
CUresult cuMemFree_v2(CUdeviceptr addr)
{
	ENTRY("cuMemFree", NEEDS_CONTEXT);
	if (!addr)
		return CUDA_SUCCESS;
	stream_wait_all();
	return region_free(addr, REGION_ALLOCATION) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *len, CUdeviceptr addr)
{
	ENTRY("cuMemGetAddressRange", NEEDS_CONTEXT);
	struct region_info r;
	if (!region_find(addr, &r) || r.kind == REGION_RESERVED)
		return CUDA_ERROR_INVALID_VALUE;
	if (base)
		*base = r.base;
	if (len)
		*len = r.len;
	return CUDA_SUCCESS;
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
	ENTRY("cuMemGetInfo", NEEDS_CONTEXT);
	const struct state_memory m = state_get_memory();
	if (free_bytes)
		*free_bytes = m.total_bytes > m.taken_bytes ? m.total_bytes - m.taken_bytes : 0;
	if (total_bytes)
		*total_bytes = m.total_bytes;
	return CUDA_SUCCESS;
}

/* ---- Virtual memory management. */

CUresult cuMemGetAllocationGranularity(
	size_t *out, const CUmemAllocationProp *prop, CUmemAllocationGranularity_flags option)
{
	ENTRY("cuMemGetAllocationGranularity", NEEDS_CONTEXT);
	if (!out || !valid_prop(prop) || static_cast<unsigned>(option) > CU_MEM_ALLOC_GRANULARITY_RECOMMENDED)
		return CUDA_ERROR_INVALID_VALUE;
	*out = MEMORY_GRANULARITY;
	return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(
	CUdeviceptr *out, size_t len, size_t alignment, CUdeviceptr, unsigned long long flags)
{
	ENTRY("cuMemAddressReserve", NEEDS_CONTEXT);
	if (!out || !len || len % MEMORY_GRANULARITY || (alignment & (alignment - 1)) || flags)
		return CUDA_ERROR_INVALID_VALUE;
	const CUdeviceptr addr = region_reserve(len, alignment);
	if (!addr)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*out = addr;
	return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr addr, size_t len)
{
	ENTRY("cuMemAddressFree", NEEDS_CONTEXT);
	struct region_info r;
	if (!region_find(addr, &r) || r.base != addr || r.len != len)
		return CUDA_ERROR_INVALID_VALUE;
	return region_free(addr, REGION_RESERVED) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *out, size_t len, const CUmemAllocationProp *prop,
	unsigned long long flags)
{
	ENTRY("cuMemCreate", NEEDS_CONTEXT);
	if (!out || !len || len % MEMORY_GRANULARITY || !valid_prop(prop) || flags)
		return CUDA_ERROR_INVALID_VALUE;
	struct object *o = object_new(len);
	if (!o)
		return CUDA_ERROR_OUT_OF_MEMORY;
	std::lock_guard<std::mutex> guard(table()->lock);
	*out = table()->next++;
	table()->handles[*out] = o;
	return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
	ENTRY("cuMemRelease", NEEDS_CONTEXT);
	std::lock_guard<std::mutex> guard(table()->lock);
	auto it = table()->handles.find(handle);
	if (it == table()->handles.end())
		return CUDA_ERROR_INVALID_VALUE;
	object_unref(it->second);
	table()->handles.erase(it);
	return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr addr, size_t len, size_t offset, CUmemGenericAllocationHandle handle,
	unsigned long long flags)
{
	ENTRY("cuMemMap", NEEDS_CONTEXT);
	std::lock_guard<std::mutex> guard(table()->lock);
	auto it = table()->handles.find(handle);
	/* The real one takes no other offset than 0, too. */
	if (it == table()->handles.end() || flags || offset)
		return CUDA_ERROR_INVALID_VALUE;
	return region_map_piece(addr, len, it->second, offset);
}

CUresult cuMemUnmap(CUdeviceptr addr, size_t len)
{
	ENTRY("cuMemUnmap", NEEDS_CONTEXT);
	return region_unmap_pieces(addr, len);
}

CUresult cuMemSetAccess(CUdeviceptr addr, size_t len, const CUmemAccessDesc *desc, size_t n)
{
	ENTRY("cuMemSetAccess", NEEDS_CONTEXT);
	if (!desc || n != 1 || desc->location.type != CU_MEM_LOCATION_TYPE_DEVICE || desc->location.id != 0)
		return CUDA_ERROR_INVALID_VALUE;
	return region_set_access(addr, len, desc->flags);
}

CUresult cuMemExportToShareableHandle(void *out, CUmemGenericAllocationHandle handle,
	CUmemAllocationHandleType type, unsigned long long flags)
{
	ENTRY("cuMemExportToShareableHandle", NEEDS_CONTEXT);
	std::lock_guard<std::mutex> guard(table()->lock);
	auto it = table()->handles.find(handle);
	if (!out || it == table()->handles.end() || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags)
		return CUDA_ERROR_INVALID_VALUE;
	const int fd = fcntl(it->second->fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return CUDA_ERROR_OPERATING_SYSTEM;
	memcpy(out, &fd, sizeof fd);
	return CUDA_SUCCESS;
}

/* The descriptor stays the caller's. */
CUresult cuMemImportFromShareableHandle(
	CUmemGenericAllocationHandle *out, void *os_handle, CUmemAllocationHandleType type)
{
	ENTRY("cuMemImportFromShareableHandle", NEEDS_CONTEXT);
	if (!out || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_INVALID_VALUE;
	const int fd = fcntl(static_cast<int>(reinterpret_cast<intptr_t>(os_handle)), F_DUPFD_CLOEXEC, 3);
	struct object *o = fd < 0 ? nullptr : object_adopt(fd);
	if (!o) {
		if (fd >= 0)
			close(fd);
		return CUDA_ERROR_INVALID_VALUE;
	}
	std::lock_guard<std::mutex> guard(table()->lock);
	*out = table()->next++;
	table()->handles[*out] = o;
	return CUDA_SUCCESS;
}

/* ---- IPC. */

CUresult cuIpcGetMemHandle(CUipcMemHandle *out, CUdeviceptr addr)
{
	ENTRY("cuIpcGetMemHandle", NEEDS_CONTEXT);
	struct region_info r;
	if (!out || !region_find(addr, &r) || r.kind != REGION_ALLOCATION)
		return CUDA_ERROR_INVALID_VALUE;
	handle_make(out->reserved, HANDLE_MEMORY, r.object->fd, r.base % page_bytes, r.len);
	return CUDA_SUCCESS;
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *out, CUipcMemHandle given, unsigned flags)
{
	ENTRY("cuIpcOpenMemHandle", NEEDS_CONTEXT);
	struct handle h;
	if (!out || flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS ||
		!handle_read(given.reserved, HANDLE_MEMORY, &h))
		return CUDA_ERROR_INVALID_VALUE;
	if (h.pid == getpid())
		return CUDA_ERROR_INVALID_CONTEXT;

	std::lock_guard<std::mutex> guard(table()->lock);
	auto known = table()->imports.find(h.inode);
	if (known != table()->imports.end()) {
		known->second.n_opens++;
		*out = known->second.base;
		return CUDA_SUCCESS;
	}
	const int fd = handle_open(&h);
	if (fd < 0)
		return CUDA_ERROR_INVALID_HANDLE;
	struct object *o = object_adopt(fd);
	if (!o) {
		close(fd);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	if (h.offset > o->len || h.len > o->len - h.offset) {
		object_unref(o);
		return CUDA_ERROR_INVALID_VALUE;
	}
	const CUdeviceptr base = region_map(o, REGION_IMPORT, h.offset, h.len);
	if (!base) {
		object_unref(o);
		return CUDA_ERROR_MAP_FAILED;
	}
	table()->imports[h.inode] = {base, 1};
	std::thread(watch_owner, h.pid, h.start, base, h.inode).detach();
	*out = base;
	return CUDA_SUCCESS;
}

/* Work in streams that still uses it is not waited for. */
CUresult cuIpcCloseMemHandle(CUdeviceptr addr)
{
	ENTRY("cuIpcCloseMemHandle", NEEDS_CONTEXT);
	std::lock_guard<std::mutex> guard(table()->lock);
	for (auto it = table()->imports.begin(); it != table()->imports.end(); ++it)
		if (it->second.base == addr) {
			if (--it->second.n_opens == 0) {
				table()->imports.erase(it);
				region_free(addr, REGION_IMPORT);
			}
			return CUDA_SUCCESS;
		}
	return CUDA_ERROR_INVALID_VALUE;
}
