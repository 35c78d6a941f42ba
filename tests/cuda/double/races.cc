/*
 * Looks for races in emulated kernels: two threads at one place of memory, one of them writing, not both
 * atomically, with nothing between them that orders the two. Kernels are compiled with -fsanitize=thread,
 * which has the compiler call a function before each access; here are these functions, in place of
 * ThreadSanitizer's, which knows threads of the system and not of a GPU. (compute-sanitizer's racecheck does
 * this on a GPU, for shared memory.)
 *
 * What orders two accesses: __syncthreads, for the block; __syncwarp, for the warp (with any mask: what a
 * part of a warp orders for itself is taken for more than it is); the end of the launch. Blocks are run one
 * after the other by one OS thread, in a launch that is looked at, so each access can be compared with those
 * of blocks before; nothing orders blocks, but once a thread has called __threadfence, reading what other
 * blocks wrote is believed to be guarded by a counter. Shuffles, votes and matrix instructions order nothing,
 * as in CUDA.
 *
 * Each byte has the last write, and the last reads of two threads. More is forgotten, so a race may be
 * missed. The first race of a kernel ends the process with a message.
 */
#include "tests/cuda/double/races.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <unordered_map>

#include "kernels/cuda/simt/simt-emulated.h"
#include "tests/cuda/double/memory.h"

namespace
{

struct access {
	uint32_t launch; /* 0: none */
	uint32_t block;
	uint32_t barriers, warp_barriers; /* that came before */
	uint16_t thread;
	uint8_t bytes; /* of the word: bits 0 to 3 */
	bool atomic;
	const void *where; /* in the code */
};

/* Four bytes of memory. */
struct word {
	struct access write, reads[2];
};

enum { PAGE_WORDS = 256 };

struct page {
	struct word words[PAGE_WORDS];
};

struct checker {
	std::unordered_map<uintptr_t, std::unique_ptr<struct page>> pages;
	struct {
		uintptr_t number;
		struct page *page; /* NULL: none */
	} recent[64] = {};
	const char *kernel = nullptr;
	uint32_t launch = 0, block = 0, barriers = 0;
	uint32_t warp_barriers[32] = {0};
	unsigned thread = 0;
	bool fenced = false;
	struct race_memory shared[2] = {};
};

/* One for each OS thread, kept where kernels' shared memory does not overwrite it. */
struct checker *checker_here()
{
	static pthread_key_t key;
	static const int made = pthread_key_create(&key, nullptr);
	(void)made;
	struct checker *c = static_cast<struct checker *>(pthread_getspecific(key));
	if (!c) {
		c = new struct checker;
		pthread_setspecific(key, c);
	}
	return c;
}

bool is_in(const struct race_memory &m, uintptr_t addr)
{
	return addr - reinterpret_cast<uintptr_t>(m.start) < m.len;
}

struct word *find(struct checker *c, uintptr_t number)
{
	const uintptr_t page = number / PAGE_WORDS;
	auto &recent = c->recent[page % 64];

	if (page != recent.number || !recent.page) {
		std::unique_ptr<struct page> &p = c->pages[page];
		if (!p)
			p.reset(new struct page());
		recent = {page, p.get()};
	}
	return &recent.page->words[number % PAGE_WORDS];
}

[[noreturn]] void report(const struct checker *c, const struct access &before, const struct access &now,
	bool wrote, bool writes, uintptr_t addr, bool shared)
{
	Dl_info library = {};

	dladdr(reinterpret_cast<const void *>(&report), &library);
	const uintptr_t base = reinterpret_cast<uintptr_t>(library.dli_fbase);
	fprintf(stderr,
		"emulated kernel %s: a race at %p, in %s memory: block %u, thread %u %s it, then block %u, "
		"thread %u %s it, "
		"and nothing orders the two\n  addr2line -ie %s %#zx %#zx\n",
		c->kernel, reinterpret_cast<void *>(addr), shared ? "shared" : "the device's", before.block,
		before.thread, wrote ? "wrote" : "read", now.block, now.thread, writes ? "writes" : "reads",
		library.dli_fname, reinterpret_cast<uintptr_t>(before.where) - base - 1,
		reinterpret_cast<uintptr_t>(now.where) - base - 1);
	abort();
}

/* Whether the two, of one launch, may happen at once. */
bool concurrent(const struct checker *c, const struct access &before, const struct access &now, bool shared,
	bool now_reads)
{
	if (before.launch != now.launch || !(before.bytes & now.bytes) || (before.atomic && now.atomic))
		return false;
	if (before.block != now.block)
		return !shared && !(c->fenced && now_reads);
	if (before.thread == now.thread || before.barriers != now.barriers)
		return false;
	return before.thread / 32 != now.thread / 32 || before.warp_barriers == now.warp_barriers;
}

void check_word(struct checker *c, uintptr_t number, const struct access &now, bool writes, bool shared)
{
	struct word *w = find(c, number);

	if (concurrent(c, w->write, now, shared, !writes))
		report(c, w->write, now, true, writes, 4 * number, shared);
	for (const struct access &read : w->reads)
		if (writes && concurrent(c, read, now, shared, false))
			report(c, read, now, false, true, 4 * number, shared);
	if (writes) {
		w->write = now;
	} else {
		if (w->reads[0].thread != now.thread || w->reads[0].block != now.block)
			w->reads[1] = w->reads[0];
		w->reads[0] = now;
	}
}

void check(const void *at, size_t len, bool writes, bool atomic, const void *where)
{
	struct checker *c = static_cast<struct checker *>(simt_self.races);
	uintptr_t addr = reinterpret_cast<uintptr_t>(at);
	const uintptr_t end = addr + len;

	if (!c)
		return;
	const bool shared = is_in(c->shared[0], addr) || is_in(c->shared[1], addr);
	if (!shared && !memory_is_device(at))
		return;
	struct access now = {c->launch, c->block, c->barriers, c->warp_barriers[c->thread / 32],
		static_cast<uint16_t>(c->thread), 0, atomic, where};
	while (addr < end) {
		const uintptr_t next = addr / 4 * 4 + 4 < end ? addr / 4 * 4 + 4 : end;

		now.bytes = static_cast<uint8_t>(((1u << (next - addr)) - 1) << (addr % 4));
		check_word(c, addr / 4, now, writes, shared);
		addr = next;
	}
}

const struct races hooks = {
	[](const char *kernel, uint64_t launch, uint64_t block, const struct race_memory shared[2]) {
		struct checker *c = checker_here();
		if (c->launch != static_cast<uint32_t>(launch)) {
			c->fenced = false;
			/* Old places are of no use any more. */
			c->pages.clear();
			memset(c->recent, 0, sizeof c->recent);
		}
		simt_self.races = c;
		c->kernel = kernel;
		c->launch = static_cast<uint32_t>(launch);
		c->block = static_cast<uint32_t>(block);
		c->barriers = 0;
		memset(c->warp_barriers, 0, sizeof c->warp_barriers);
		memcpy(c->shared, shared, sizeof c->shared);
	},
	[] { simt_self.races = nullptr; },
	[](unsigned thread) { checker_here()->thread = thread; },
	[] { checker_here()->barriers++; },
	[](unsigned warp) { checker_here()->warp_barriers[warp]++; },
	[](const void *to, const void *from, size_t len) {
		check(from, len, false, false, nullptr);
		check(to, len, true, false, nullptr);
	},
};

__attribute__((constructor)) void begin()
{
	simt_races = &hooks;
}

} // namespace

/* ---- What the compiler calls. Names and arguments are those of gcc's and clang's instrumentation. */

#define HERE __builtin_return_address(0)

#define RACES_ACCESS(size)                                                                                   \
	void __tsan_read##size(void *at)                                                                     \
	{                                                                                                    \
		check(at, size, false, false, HERE);                                                         \
	}                                                                                                    \
	void __tsan_write##size(void *at)                                                                    \
	{                                                                                                    \
		check(at, size, true, false, HERE);                                                          \
	}                                                                                                    \
	void __tsan_unaligned_read##size(void *at)                                                           \
	{                                                                                                    \
		check(at, size, false, false, HERE);                                                         \
	}                                                                                                    \
	void __tsan_unaligned_write##size(void *at)                                                          \
	{                                                                                                    \
		check(at, size, true, false, HERE);                                                          \
	}

#define RACES_FETCH(type, bits, operation)                                                                   \
	type __tsan_atomic##bits##_fetch_##operation(volatile type *at, type value, int)                     \
	{                                                                                                    \
		check(const_cast<type *>(at), sizeof(type), true, true, HERE);                               \
		return __atomic_fetch_##operation(at, value, __ATOMIC_SEQ_CST);                              \
	}

#define RACES_ATOMIC(type, bits)                                                                             \
	type __tsan_atomic##bits##_load(const volatile type *at, int)                                        \
	{                                                                                                    \
		check(const_cast<type *>(at), sizeof(type), false, true, HERE);                              \
		return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                                \
	}                                                                                                    \
	void __tsan_atomic##bits##_store(volatile type *at, type value, int)                                 \
	{                                                                                                    \
		check(const_cast<type *>(at), sizeof(type), true, true, HERE);                               \
		__atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                               \
	}                                                                                                    \
	type __tsan_atomic##bits##_exchange(volatile type *at, type value, int)                              \
	{                                                                                                    \
		check(const_cast<type *>(at), sizeof(type), true, true, HERE);                               \
		return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                                     \
	}                                                                                                    \
	int __tsan_atomic##bits##_compare_exchange_strong(                                                   \
		volatile type *at, type *expected, type wanted, int, int)                                    \
	{                                                                                                    \
		check(const_cast<type *>(at), sizeof(type), true, true, HERE);                               \
		return __atomic_compare_exchange_n(                                                          \
			at, expected, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                    \
	}                                                                                                    \
	int __tsan_atomic##bits##_compare_exchange_weak(                                                     \
		volatile type *at, type *expected, type wanted, int success, int failure)                    \
	{                                                                                                    \
		return __tsan_atomic##bits##_compare_exchange_strong(                                        \
			at, expected, wanted, success, failure);                                             \
	}                                                                                                    \
	RACES_FETCH(type, bits, add)                                                                         \
	RACES_FETCH(type, bits, sub)                                                                         \
	RACES_FETCH(type, bits, and)                                                                         \
	RACES_FETCH(type, bits, or)                                                                          \
	RACES_FETCH(type, bits, xor)

extern "C" {
void __tsan_init()
{
}
void __tsan_func_entry(void *)
{
}
void __tsan_func_exit()
{
}
void __tsan_vptr_update(void **, void *)
{
}
RACES_ACCESS(1)
RACES_ACCESS(2)
RACES_ACCESS(4)
RACES_ACCESS(8)
RACES_ACCESS(16)
void __tsan_read_range(void *at, size_t len)
{
	check(at, len, false, false, HERE);
}
void __tsan_write_range(void *at, size_t len)
{
	check(at, len, true, false, HERE);
}
RACES_ATOMIC(uint8_t, 8)
RACES_ATOMIC(uint16_t, 16)
RACES_ATOMIC(uint32_t, 32)
RACES_ATOMIC(uint64_t, 64)
void __tsan_atomic_thread_fence(int)
{
	checker_here()->fenced = true;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}
void __tsan_atomic_signal_fence(int)
{
}
}
