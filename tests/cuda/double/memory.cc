#include "tests/cuda/double/memory.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "tests/cuda/double/state.h"

namespace
{

const size_t space_bytes = 1ull << 40;
const size_t page_bytes = 4096;
const size_t gap_bytes = 2ull << 20;
const size_t fill_limit = 16ull << 20;

/* A piece of an object in a reserved region. */
struct piece {
	size_t len;
	struct object *object;
	CUmemAccess_flags access;
};

struct region {
	size_t room; /* bytes of address space from its key on */
	size_t offset, len;
	struct object *object; /* NULL: reserved */
	enum region_kind kind;
	std::map<CUdeviceptr, struct piece> pieces;
};

struct space {
	std::mutex lock;
	CUdeviceptr start = 0, next = 0;
	bool reuse = false;
	std::map<CUdeviceptr, struct region> regions; /* by address */
	std::map<uint64_t, struct object *> objects;  /* by id */
	std::multimap<size_t, CUdeviceptr> free_rooms;
};

/* Never destroyed: streams may work until the process ends. */
struct space *space;

size_t round_up(size_t n, size_t to)
{
	return (n + to - 1) / to * to;
}

void *pointer(CUdeviceptr addr)
{
	return reinterpret_cast<void *>(static_cast<uintptr_t>(addr));
}

void close_off(CUdeviceptr addr, size_t len)
{
	void *at = mmap(pointer(addr), len, PROT_NONE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	if (at == MAP_FAILED) {
		perror("driver double: mmap");
		abort();
	}
}

/* Address space: fresh for as long as there is some, so that an address that was freed faults; or what was
 * freed last, for tests of what goes wrong when addresses come again. */
CUdeviceptr take_room(size_t len, size_t alignment)
{
	if (space->reuse || space->next + len + alignment + gap_bytes > space->start + space_bytes) {
		for (auto it = space->free_rooms.end(); it != space->free_rooms.begin();) {
			--it;
			if (it->first == len && it->second % alignment == 0) {
				const CUdeviceptr addr = it->second;
				space->free_rooms.erase(it);
				return addr;
			}
		}
	}
	const CUdeviceptr addr = round_up(space->next, alignment);
	if (addr + len + gap_bytes > space->start + space_bytes)
		return 0;
	space->next = addr + len + gap_bytes;
	return addr;
}

std::map<CUdeviceptr, struct region>::iterator find(CUdeviceptr addr)
{
	auto it = space->regions.upper_bound(addr);
	if (it == space->regions.begin())
		return space->regions.end();
	--it;
	return addr - it->first < it->second.room ? it : space->regions.end();
}

void unref(struct object *o)
{
	if (--o->n_refs)
		return;
	space->objects.erase(o->id);
	state_drop(o->id);
	close(o->fd);
	delete o;
}

/* Takes over the descriptor; the lock is held. */
struct object *make_object(int fd)
{
	struct stat st;

	if (fstat(fd, &st) != 0 || st.st_size <= 0)
		return nullptr;
	auto known = space->objects.find(st.st_ino);
	if (known != space->objects.end()) {
		known->second->n_refs++;
		close(fd);
		return known->second;
	}
	if (!state_hold(st.st_ino, static_cast<uint64_t>(st.st_size)))
		return nullptr;
	struct object *o = new object{fd, st.st_ino, static_cast<size_t>(st.st_size), 1};
	space->objects[o->id] = o;
	return o;
}

void fill(int fd, size_t len)
{
	void *at;

	if (len > fill_limit)
		return;
	at = mmap(nullptr, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		return;
	memset(at, MEMORY_PATTERN, len);
	munmap(at, len);
}

int protection(CUmemAccess_flags flags)
{
	return flags == CU_MEM_ACCESS_FLAGS_PROT_NONE   ? PROT_NONE
	       : flags == CU_MEM_ACCESS_FLAGS_PROT_READ ? PROT_READ
							: PROT_READ | PROT_WRITE;
}

/* What lies between an allocation's end and its last page's, which nobody may have touched. */
void check_slack(CUdeviceptr addr, const struct region &r)
{
	const unsigned char *at = static_cast<unsigned char *>(pointer(addr + r.offset + r.len));
	const size_t n = r.room - r.offset - r.len;

	for (size_t i = 0; r.room <= fill_limit && i < n; i++)
		if (at[i] != MEMORY_PATTERN) {
			fprintf(stderr,
				"driver double: an allocation of %zu bytes was written past its end\n",
				r.len);
			abort();
		}
}

} // namespace

void memory_open()
{
	const char *reuse = getenv("CISTERN_DOUBLE_REUSE");
	void *at = mmap(nullptr, space_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED) {
		perror("driver double: address space");
		abort();
	}
	space = new struct space;
	space->start = static_cast<CUdeviceptr>(reinterpret_cast<uintptr_t>(at));
	space->next = space->start + gap_bytes;
	space->reuse = reuse && *reuse == '1';
}

struct object *object_new(size_t len)
{
	std::lock_guard<std::mutex> guard(space->lock);
	const int fd = memfd_create("cistern-emulated-device", MFD_CLOEXEC);
	struct object *o = nullptr;

	if (fd >= 0 && ftruncate(fd, static_cast<off_t>(len)) == 0)
		o = make_object(fd);
	if (o)
		fill(fd, len);
	else if (fd >= 0)
		close(fd);
	return o;
}

struct object *object_adopt(int fd)
{
	std::lock_guard<std::mutex> guard(space->lock);
	static const char ours[] = "/memfd:cistern-emulated-device";
	char link[64], path[32];

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	const ssize_t n = readlink(path, link, sizeof link);
	if (n < static_cast<ssize_t>(sizeof ours) - 1 || memcmp(link, ours, sizeof ours - 1) != 0)
		return nullptr;
	return make_object(fd);
}

void object_ref(struct object *o)
{
	std::lock_guard<std::mutex> guard(space->lock);
	o->n_refs++;
}

void object_unref(struct object *o)
{
	std::lock_guard<std::mutex> guard(space->lock);
	unref(o);
}

CUdeviceptr region_map(struct object *o, enum region_kind kind, size_t offset, size_t len)
{
	std::lock_guard<std::mutex> guard(space->lock);
	const CUdeviceptr addr = take_room(o->len, page_bytes);

	if (!addr || mmap(pointer(addr), o->len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, o->fd, 0) ==
			     MAP_FAILED)
		return 0;
	space->regions[addr] = {o->len, offset, len, o, kind, {}};
	return addr + offset;
}

CUdeviceptr region_reserve(size_t len, size_t alignment)
{
	std::lock_guard<std::mutex> guard(space->lock);
	const CUdeviceptr addr = take_room(len, std::max<size_t>(alignment, MEMORY_GRANULARITY));

	if (addr)
		space->regions[addr] = {len, 0, len, nullptr, REGION_RESERVED, {}};
	return addr;
}

bool region_find(CUdeviceptr addr, struct region_info *out)
{
	std::lock_guard<std::mutex> guard(space->lock);
	auto it = find(addr);

	if (it == space->regions.end() || addr < it->first + it->second.offset ||
		addr - it->first - it->second.offset >= it->second.len)
		return false;
	*out = {it->first + it->second.offset, it->second.len, it->second.object, it->second.kind};
	return true;
}

bool region_free(CUdeviceptr base, enum region_kind kind)
{
	std::lock_guard<std::mutex> guard(space->lock);
	auto it = find(base);

	if (it == space->regions.end() || it->first + it->second.offset != base || it->second.kind != kind ||
		!it->second.pieces.empty())
		return false;
	struct region r = std::move(it->second);
	const CUdeviceptr addr = it->first;
	space->regions.erase(it);
	if (kind == REGION_ALLOCATION)
		check_slack(addr, r);
	close_off(addr, r.room);
	space->free_rooms.emplace(r.room, addr);
	if (r.object)
		unref(r.object);
	return true;
}

void region_revoke(CUdeviceptr base)
{
	std::lock_guard<std::mutex> guard(space->lock);
	auto it = find(base);

	if (it != space->regions.end())
		close_off(it->first, it->second.room);
}

CUresult region_map_piece(CUdeviceptr addr, size_t len, struct object *o, size_t offset)
{
	std::lock_guard<std::mutex> guard(space->lock);
	auto it = find(addr);

	if (len == 0 || addr % MEMORY_GRANULARITY || len % MEMORY_GRANULARITY ||
		offset % MEMORY_GRANULARITY || offset > o->len || len > o->len - offset ||
		it == space->regions.end() || it->second.kind != REGION_RESERVED ||
		len > it->first + it->second.room - addr)
		return CUDA_ERROR_INVALID_VALUE;
	auto &pieces = it->second.pieces;
	auto after = pieces.lower_bound(addr);
	if (after != pieces.end() && after->first < addr + len)
		return CUDA_ERROR_ALREADY_MAPPED;
	if (after != pieces.begin() && std::prev(after)->first + std::prev(after)->second.len > addr)
		return CUDA_ERROR_ALREADY_MAPPED;
	if (mmap(pointer(addr), len, PROT_NONE, MAP_SHARED | MAP_FIXED, o->fd, static_cast<off_t>(offset)) ==
		MAP_FAILED)
		return CUDA_ERROR_MAP_FAILED;
	o->n_refs++;
	pieces[addr] = {len, o, CU_MEM_ACCESS_FLAGS_PROT_NONE};
	return CUDA_SUCCESS;
}

namespace
{

/* Calls fn for the pieces of [addr, addr + len) if they fill it with neither a hole nor a cut piece. */
template <class F> CUresult each_piece(CUdeviceptr addr, size_t len, F fn)
{
	auto it = find(addr);

	if (len == 0 || it == space->regions.end() || it->second.kind != REGION_RESERVED)
		return CUDA_ERROR_INVALID_VALUE;
	auto &pieces = it->second.pieces;
	auto first = pieces.find(addr), last = first;
	CUdeviceptr at = addr;
	for (; last != pieces.end() && last->first == at && at < addr + len; ++last)
		at += last->second.len;
	if (at != addr + len)
		return CUDA_ERROR_INVALID_VALUE;
	fn(pieces, first, last);
	return CUDA_SUCCESS;
}

} // namespace

CUresult region_unmap_pieces(CUdeviceptr addr, size_t len)
{
	std::lock_guard<std::mutex> guard(space->lock);

	return each_piece(addr, len, [&](auto &pieces, auto first, auto last) {
		close_off(addr, len);
		for (auto it = first; it != last; ++it)
			unref(it->second.object);
		pieces.erase(first, last);
	});
}

CUresult region_set_access(CUdeviceptr addr, size_t len, CUmemAccess_flags flags)
{
	std::lock_guard<std::mutex> guard(space->lock);

	return each_piece(addr, len, [&](auto &, auto first, auto last) {
		mprotect(pointer(addr), len, protection(flags));
		for (auto it = first; it != last; ++it)
			it->second.access = flags;
	});
}

bool memory_valid(CUdeviceptr addr, size_t len, bool written)
{
	std::lock_guard<std::mutex> guard(space->lock);
	auto it = find(addr);

	if (it == space->regions.end())
		return false;
	const struct region &r = it->second;
	if (r.kind != REGION_RESERVED)
		return addr >= it->first + r.offset && len <= r.len &&
		       addr - it->first - r.offset <= r.len - len;
	while (len) {
		auto piece = r.pieces.upper_bound(addr);
		if (piece == r.pieces.begin())
			return false;
		--piece;
		const size_t in = addr - piece->first;
		if (in >= piece->second.len || piece->second.access == CU_MEM_ACCESS_FLAGS_PROT_NONE ||
			(written && piece->second.access != CU_MEM_ACCESS_FLAGS_PROT_READWRITE))
			return false;
		const size_t n = std::min(len, piece->second.len - in);
		addr += n;
		len -= n;
	}
	return true;
}

bool memory_is_device(const void *addr)
{
	return space && reinterpret_cast<uintptr_t>(addr) - space->start < space_bytes;
}

struct memory_counts memory_get_counts()
{
	std::lock_guard<std::mutex> guard(space->lock);
	struct memory_counts c = {};

	for (const auto &entry : space->regions) {
		const struct region &r = entry.second;
		c.n_allocations += r.kind == REGION_ALLOCATION;
		c.n_mappings += r.kind == REGION_IMPORT;
		c.imported_bytes += r.kind == REGION_IMPORT ? r.object->len : 0;
		c.n_mappings += r.pieces.size();
	}
	return c;
}
