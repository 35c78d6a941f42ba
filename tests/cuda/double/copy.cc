/*
 * Entry points for copies, and for memory of the host. A copy from memory that is not pinned takes its bytes
 * when it is called, one to such memory is done when the call returns: the real driver does so. With pinned
 * memory both are as late as the stream is.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "tests/cuda/double/entry.h"
#include "tests/cuda/double/memory.h"
#include "tests/cuda/double/stream.h"

namespace
{

struct pinned {
	size_t len;
	bool own; /* by cuMemHostAlloc */
};

struct host {
	std::mutex lock;
	std::map<uintptr_t, struct pinned> pinned;
};

struct host *pins()
{
	static struct host *h = new struct host;
	return h;
}

/* With the lock held: the range that [addr, addr + len) touches first, or the end. */
std::map<uintptr_t, struct pinned>::iterator overlap(uintptr_t addr, size_t len)
{
	auto it = pins()->pinned.upper_bound(addr);
	if (it != pins()->pinned.begin() && addr - std::prev(it)->first < std::prev(it)->second.len)
		return std::prev(it);
	return it != pins()->pinned.end() && it->first - addr < len ? it : pins()->pinned.end();
}

bool is_pinned(const void *at, size_t len)
{
	const uintptr_t addr = reinterpret_cast<uintptr_t>(at);
	std::lock_guard<std::mutex> guard(pins()->lock);
	auto it = overlap(addr, len);

	return it != pins()->pinned.end() && it->first <= addr && addr + len <= it->first + it->second.len;
}

void *pointer(CUdeviceptr addr)
{
	return reinterpret_cast<void *>(static_cast<uintptr_t>(addr));
}

/* Rows of two sides, in any memory. */
struct rows {
	char *to;
	const char *from;
	size_t to_pitch, from_pitch, width, height;
};

size_t span(size_t pitch, size_t width, size_t height)
{
	return (height - 1) * pitch + width;
}

void copy_rows(const struct rows &r)
{
	for (size_t y = 0; y < r.height; y++)
		memcpy(r.to + y * r.to_pitch, r.from + y * r.from_pitch, r.width);
}

CUresult add_copy(struct rows r, bool to_device, bool from_device, CUstream stream)
{
	if (r.width == 0 || r.height == 0)
		return CUDA_SUCCESS;
	const size_t to_len = span(r.to_pitch, r.width, r.height),
		     from_len = span(r.from_pitch, r.width, r.height);
	if (r.height > 1 && (r.to_pitch < r.width || r.from_pitch < r.width))
		return CUDA_ERROR_INVALID_VALUE;
	if (to_device && !memory_valid(reinterpret_cast<uintptr_t>(r.to), to_len, true))
		return CUDA_ERROR_INVALID_VALUE;
	if (from_device && !memory_valid(reinterpret_cast<uintptr_t>(r.from), from_len, false))
		return CUDA_ERROR_INVALID_VALUE;
	if ((!to_device && (!r.to || memory_is_device(r.to))) ||
		(!from_device && (!r.from || memory_is_device(r.from))))
		return CUDA_ERROR_INVALID_VALUE;

	if (!from_device && !is_pinned(r.from, from_len)) {
		auto bytes = std::make_shared<std::vector<char>>(r.from, r.from + from_len);
		return stream_add(stream, [r, bytes]() mutable {
			r.from = bytes->data();
			copy_rows(r);
		});
	}
	const CUresult result = stream_add(stream, [r] { copy_rows(r); });
	if (result == CUDA_SUCCESS && !to_device && !is_pinned(r.to, to_len))
		return stream_wait(stream);
	return result;
}

struct rows one_row(void *to, const void *from, size_t len)
{
	return {static_cast<char *>(to), static_cast<const char *>(from), len, len, len, 1};
}

} // namespace

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t len, CUstream stream)
{
	ENTRY("cuMemcpyHtoDAsync", NEEDS_CONTEXT);
	return add_copy(one_row(pointer(to), from, len), true, false, stream);
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t len, CUstream stream)
{
	ENTRY("cuMemcpyDtoHAsync", NEEDS_CONTEXT);
	return add_copy(one_row(to, pointer(from), len), false, true, stream);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t len, CUstream stream)
{
	ENTRY("cuMemcpyDtoDAsync", NEEDS_CONTEXT);
	return add_copy(one_row(pointer(to), pointer(from), len), true, true, stream);
}

CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *c, CUstream stream)
{
	ENTRY("cuMemcpy2DAsync", NEEDS_CONTEXT);
	if (!c || (c->srcMemoryType != CU_MEMORYTYPE_HOST && c->srcMemoryType != CU_MEMORYTYPE_DEVICE) ||
		(c->dstMemoryType != CU_MEMORYTYPE_HOST && c->dstMemoryType != CU_MEMORYTYPE_DEVICE))
		return CUDA_ERROR_INVALID_VALUE;
	const bool to_device = c->dstMemoryType == CU_MEMORYTYPE_DEVICE;
	const bool from_device = c->srcMemoryType == CU_MEMORYTYPE_DEVICE;
	struct rows r = {
		static_cast<char *>(to_device ? pointer(c->dstDevice) : c->dstHost),
		static_cast<const char *>(from_device ? pointer(c->srcDevice) : c->srcHost),
		c->dstPitch ? c->dstPitch : c->WidthInBytes,
		c->srcPitch ? c->srcPitch : c->WidthInBytes,
		c->WidthInBytes,
		c->Height,
	};
	r.to += c->dstY * r.to_pitch + c->dstXInBytes;
	r.from += c->srcY * r.from_pitch + c->srcXInBytes;
	return add_copy(r, to_device, from_device, stream);
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t n, CUstream stream)
{
	ENTRY("cuMemsetD8Async", NEEDS_CONTEXT);
	if (!n)
		return CUDA_SUCCESS;
	if (!memory_valid(to, n, true))
		return CUDA_ERROR_INVALID_VALUE;
	return stream_add(stream, [to, value, n] { memset(pointer(to), value, n); });
}

CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t n, CUstream stream)
{
	ENTRY("cuMemsetD32Async", NEEDS_CONTEXT);
	if (!n)
		return CUDA_SUCCESS;
	if (to % 4 || n > SIZE_MAX / 4 || !memory_valid(to, 4 * n, true))
		return CUDA_ERROR_INVALID_VALUE;
	return stream_add(stream, [to, value, n] {
		unsigned *at = static_cast<unsigned *>(pointer(to));
		for (size_t i = 0; i < n; i++)
			at[i] = value;
	});
}

/* ---- Memory of the host. */

CUresult cuMemHostAlloc(void **out, size_t len, unsigned flags)
{
	ENTRY("cuMemHostAlloc", NEEDS_CONTEXT);
	if (!out || !len || flags > 7)
		return CUDA_ERROR_INVALID_VALUE;
	void *at = mmap(nullptr, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		return CUDA_ERROR_OUT_OF_MEMORY;
	std::lock_guard<std::mutex> guard(pins()->lock);
	pins()->pinned[reinterpret_cast<uintptr_t>(at)] = {len, true};
	*out = at;
	return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void *addr)
{
	ENTRY("cuMemFreeHost", NEEDS_CONTEXT);
	stream_wait_all();
	std::lock_guard<std::mutex> guard(pins()->lock);
	auto it = pins()->pinned.find(reinterpret_cast<uintptr_t>(addr));
	if (it == pins()->pinned.end() || !it->second.own)
		return CUDA_ERROR_INVALID_VALUE;
	munmap(addr, it->second.len);
	pins()->pinned.erase(it);
	return CUDA_SUCCESS;
}

CUresult cuMemHostRegister_v2(void *addr, size_t len, unsigned flags)
{
	ENTRY("cuMemHostRegister", NEEDS_CONTEXT);
	if (!addr || !len || flags > 15 || memory_is_device(addr))
		return CUDA_ERROR_INVALID_VALUE;
	std::lock_guard<std::mutex> guard(pins()->lock);
	if (overlap(reinterpret_cast<uintptr_t>(addr), len) != pins()->pinned.end())
		return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
	pins()->pinned[reinterpret_cast<uintptr_t>(addr)] = {len, false};
	return CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void *addr)
{
	ENTRY("cuMemHostUnregister", NEEDS_CONTEXT);
	std::lock_guard<std::mutex> guard(pins()->lock);
	auto it = pins()->pinned.find(reinterpret_cast<uintptr_t>(addr));
	if (it == pins()->pinned.end() || it->second.own)
		return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
	pins()->pinned.erase(it);
	return CUDA_SUCCESS;
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *out, void *addr, unsigned flags)
{
	ENTRY("cuMemHostGetDevicePointer", NEEDS_CONTEXT);
	if (!out || flags || !is_pinned(addr, 1))
		return CUDA_ERROR_INVALID_VALUE;
	*out = reinterpret_cast<uintptr_t>(addr);
	return CUDA_SUCCESS;
}
