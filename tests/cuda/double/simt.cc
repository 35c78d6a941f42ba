/*
 * The engine of the SIMT emulation. An OS thread runs one block at a time: every thread of the block is a
 * fibre, a context with a stack of its own, that runs until it has to wait for others. Then the next one that
 * is ready runs; when none is, and not all have ended, they wait for each other for ever, and the process
 * ends with a message that says who waits where.
 *
 * In what order fibres run is nobody's business, so it can be varied: CISTERN_SIMT_SEED=n for n > 0 picks the
 * next one at random, the same for each n. A kernel that lacks a barrier gives another result then.
 */
#include "tests/cuda/double/simt.h"

#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "kernels/cuda/simt/simt.h"
#include "tests/cuda/double/races.h"
#include "tests/cuda/double/switch.h"

__thread struct simt_self simt_self;
const struct races *simt_races;

namespace
{

#ifdef __SANITIZE_ADDRESS__
const size_t stack_bytes = 256 << 10;
const size_t end_frames_bytes = 2048; /* more than what lies on a stack when its fibre has ended */
#else
const size_t stack_bytes = 64 << 10;
#endif
const size_t guard_bytes = 4096;
/* A NaN as f32; its halves are no small numbers as f16, bf16 and integers either. */
const uint32_t poison = 0x7fbadbadu;

enum class state { ready, barrier, collective, ended };

struct copy {
	void *to;
	const void *from;
	unsigned group;
};

struct fibre {
	struct stack_context context;
	enum state state;
	int line;
	std::vector<struct copy> copies;
	unsigned n_groups; /* closed */
	struct simt_products products;
	uint3 thread;
};

/* A collective under way in a warp. */
struct group {
	const char *what;
	simt_combine *combine;
	unsigned mask;
	int line;
	unsigned arrived; /* lanes; never 0 */
};

struct warp {
	struct group groups[32]; /* any two have no lane in common that has arrived */
	unsigned n_groups;
	unsigned ended;      /* lanes, those beyond the block's end too */
	void *handed_in[32]; /* by lanes that have arrived in a group */
};

struct launch {
	const struct simt_kernel *kernel;
	uint3 grid, block;
	size_t shared_bytes;
	const void *args;
	uint64_t n_blocks, number;
	std::atomic<uint64_t> next{0};
	uint64_t n_done = 0; /* under the pool's lock */
	unsigned n_helpers = 0;
};

void fill_with_poison(void *at, size_t len)
{
	char *to = static_cast<char *>(at);
	for (size_t i = 0; i < len; i += sizeof poison)
		memcpy(to + i, &poison, len - i < sizeof poison ? len - i : sizeof poison);
}

/* Static shared memory is thread-local: all that this library has of that, but for simt_self. */
struct tls {
	char *start = nullptr;
	size_t len = 0;
};

int find_tls(struct dl_phdr_info *info, size_t, void *arg)
{
	const uintptr_t here = reinterpret_cast<uintptr_t>(&poison);
	const ElfW(Phdr) *tls_header = nullptr;
	bool ours = false;

	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		if (p->p_type == PT_LOAD && here - info->dlpi_addr - p->p_vaddr < p->p_memsz)
			ours = true;
		if (p->p_type == PT_TLS)
			tls_header = p;
	}
	if (!ours || !tls_header)
		return 0;
	struct tls *out = static_cast<struct tls *>(arg);
	out->start = static_cast<char *>(info->dlpi_tls_data);
	out->len = tls_header->p_memsz;
	return 1;
}

} // namespace

/* All that runs on one OS thread. */
struct simt_run {
	struct launch *launch = nullptr;
	struct stack_context scheduler;
	struct fibre fibres[SIMT_BLOCK_THREADS_MAX];
	struct warp warps[SIMT_BLOCK_THREADS_MAX / 32];
	unsigned n = 0, n_live = 0, n_at_barrier = 0, current = 0;
	int barrier_line = 0;
	std::vector<unsigned> ready; /* from first on */
	size_t first = 0;
	uint64_t random = 0; /* 0: in turn */
	char *stacks = nullptr;
	char *shared_end = nullptr; /* a guard page follows */
	struct tls statics;
#ifdef __SANITIZE_ADDRESS__
	void *scheduler_fake = nullptr;
	const void *scheduler_bottom = nullptr;
	size_t scheduler_bytes = 0;
#endif

	simt_run();
	~simt_run();
	simt_run(const simt_run &) = delete;
	simt_run &operator=(const simt_run &) = delete;
	char *stack(unsigned i) const
	{
		return stacks + i * (stack_bytes + guard_bytes) + guard_bytes;
	}
};

namespace
{

const size_t shared_align = 128;
const size_t shared_room = (SIMT_SHARED_BYTES_MAX + 4095) / 4096 * 4096;

char *map(size_t len)
{
	void *at = mmap(
		nullptr, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		simt_fault("no memory for stacks");
	return static_cast<char *>(at);
}

} // namespace

simt_run::simt_run()
{
	stacks = map(SIMT_BLOCK_THREADS_MAX * (stack_bytes + guard_bytes));
	for (unsigned i = 0; i < SIMT_BLOCK_THREADS_MAX; i++)
		mprotect(stack(i) - guard_bytes, guard_bytes, PROT_NONE);
	shared_end = map(shared_room + guard_bytes) + shared_room;
	mprotect(shared_end, guard_bytes, PROT_NONE);
	simt_self.run = this;
	dl_iterate_phdr(find_tls, &statics);
}

simt_run::~simt_run()
{
#ifdef __SANITIZE_ADDRESS__
	/* What comes to lie there next has no frames. */
	__asan_unpoison_memory_region(stacks, SIMT_BLOCK_THREADS_MAX * (stack_bytes + guard_bytes));
#endif
	munmap(stacks, SIMT_BLOCK_THREADS_MAX * (stack_bytes + guard_bytes));
	munmap(shared_end - shared_room, shared_room + guard_bytes);
	simt_self.run = nullptr;
}

namespace
{

/* ---- Between the scheduler and the fibres. */

void fibre_leave(struct simt_run *r)
{
	struct fibre *f = &r->fibres[r->current];
#ifdef __SANITIZE_ADDRESS__
	void *fake = nullptr;
	__sanitizer_start_switch_fiber(
		f->state == state::ended ? nullptr : &fake, r->scheduler_bottom, r->scheduler_bytes);
#endif
	stack_context_swap(&f->context, &r->scheduler);
#ifdef __SANITIZE_ADDRESS__
	__sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void wake(struct simt_run *r, unsigned i)
{
	r->fibres[i].state = state::ready;
	r->ready.push_back(i);
}

void release_barrier(struct simt_run *r)
{
	if (r->n_at_barrier == 0 || r->n_at_barrier < r->n_live)
		return;
	r->n_at_barrier = 0;
	if (simt_races)
		simt_races->barrier();
	for (unsigned i = 0; i < r->n; i++)
		if (r->fibres[i].state == state::barrier)
			wake(r, i);
}

/* Completes the warp's i-th collective if all have come. */
bool try_group(struct simt_run *r, unsigned warp, unsigned i)
{
	struct warp *w = &r->warps[warp];
	const struct group g = w->groups[i];
	void *of[32];

	if (g.arrived != (g.mask & ~w->ended))
		return false;
	w->groups[i] = w->groups[--w->n_groups];
	if (simt_races && strcmp(g.what, "__syncwarp") == 0)
		simt_races->warp_barrier(warp);
	for (unsigned lane = 0; lane < 32; lane++)
		of[lane] = g.arrived >> lane & 1 ? w->handed_in[lane] : nullptr;
	g.combine(of, g.what);
	for (unsigned lane = 0; lane < 32; lane++)
		if (of[lane])
			wake(r, 32 * warp + lane);
	return true;
}

/* What thread i waits for, in words. */
void describe_wait(const struct simt_run *r, unsigned i)
{
	const struct warp *w = &r->warps[i / 32];

	if (r->fibres[i].state == state::ended)
		fprintf(stderr, "ended\n");
	if (r->fibres[i].state == state::barrier)
		fprintf(stderr, "in __syncthreads, line %d\n", r->fibres[i].line);
	for (unsigned g = 0; r->fibres[i].state == state::collective && g < w->n_groups; g++)
		if (w->groups[g].arrived >> (i % 32) & 1)
			fprintf(stderr, "in %s of lanes 0x%08x, line %d\n", w->groups[g].what,
				w->groups[g].mask, w->groups[g].line);
}

[[noreturn]] void report_deadlock(const struct simt_run *r)
{
	const struct fibre *f = r->fibres;

	fprintf(stderr, "emulated kernel %s, block %u %u %u: the threads wait for each other for ever\n",
		r->launch->kernel->name, simt_self.block.x, simt_self.block.y, simt_self.block.z);
	for (unsigned i = 0, end; i < r->n; i = end) {
		for (end = i + 1; end < r->n && f[end].state == f[i].state && f[end].line == f[i].line; end++)
			;
		fprintf(stderr, "  threads %u to %u: ", i, end - 1);
		describe_wait(r, i);
	}
	abort();
}

void fibre_main()
{
	struct simt_run *r = simt_self.run;
#ifdef __SANITIZE_ADDRESS__
	__sanitizer_finish_switch_fiber(nullptr, &r->scheduler_bottom, &r->scheduler_bytes);
#endif
	r->launch->kernel->call(r->launch->args);

	struct fibre *f = &r->fibres[r->current];
	struct warp *w = &r->warps[r->current / 32];
	f->state = state::ended;
	w->ended |= 1u << (r->current % 32);
	r->n_live--;
	release_barrier(r);
	/* The others of the warp may have waited for nobody else. */
	for (unsigned i = 0; i < w->n_groups;)
		i += !try_group(r, r->current / 32, i);
	fibre_leave(r);
	abort();
}

unsigned pick(struct simt_run *r)
{
	if (r->random) {
		r->random ^= r->random << 13;
		r->random ^= r->random >> 7;
		r->random ^= r->random << 17;
		std::swap(r->ready[r->first], r->ready[r->first + r->random % (r->ready.size() - r->first)]);
	}
	const unsigned i = r->ready[r->first++];
	if (r->first == r->ready.size()) {
		r->ready.clear();
		r->first = 0;
	}
	return i;
}

/* ---- A block. */

uint32_t seed()
{
	static const uint32_t value = [] {
		const char *text = getenv("CISTERN_SIMT_SEED");
		return text ? static_cast<uint32_t>(strtoul(text, nullptr, 0)) : 0;
	}();
	return value;
}

/* Its dynamic shared memory ends at the guard page but for what its alignment leaves over, which holds
 * poison. */
void begin_block(struct simt_run *r, uint64_t number)
{
	const struct launch *l = r->launch;
	const struct simt_self self = {
		{},
		{static_cast<unsigned>(number % l->grid.x),
			static_cast<unsigned>(number / l->grid.x % l->grid.y),
			static_cast<unsigned>(number / l->grid.x / l->grid.y)},
		l->block,
		l->grid,
		r->shared_end - (l->shared_bytes + shared_align - 1) / shared_align * shared_align,
		r,
		nullptr,
	};

	fill_with_poison(r->statics.start, r->statics.len);
	fill_with_poison(self.shared, static_cast<size_t>(r->shared_end - static_cast<char *>(self.shared)));
	simt_self = self;
	r->n = l->block.x * l->block.y * l->block.z;
	r->n_live = r->n;
	r->n_at_barrier = 0;
	r->random = seed() ? (seed() * 0x9e3779b97f4a7c15u) ^ (number + 1) * 0xbf58476d1ce4e5b9u : 0;
	r->first = 0;
	r->ready.clear();
	for (unsigned i = 0; i < r->n; i++) {
		struct fibre *f = &r->fibres[i];
		f->line = 0;
		f->n_groups = 0;
		f->copies.clear();
		f->products.n = 0;
		f->products.begun = false;
		f->thread = {i % l->block.x, i / l->block.x % l->block.y, i / l->block.x / l->block.y};
		/* Tops at different places of their pages, or all would fall in the same sets of the caches.
		 */
		const size_t top = stack_bytes - i * 7 % 64 * 64;
#ifdef __SANITIZE_ADDRESS__
		/* A fibre ends by switching away: the frames it did that from never took their marks back. */
		__asan_unpoison_memory_region(r->stack(i) + top - end_frames_bytes, end_frames_bytes);
#endif
		stack_context_make(&f->context, r->stack(i), top, fibre_main);
		wake(r, i);
	}
	for (unsigned i = 0; i < (r->n + 31) / 32; i++) {
		r->warps[i].n_groups = 0;
		r->warps[i].ended = r->n - 32 * i < 32 ? ~0u << (r->n - 32 * i) : 0;
	}
}

void end_block(const struct simt_run *r)
{
	const char *end = static_cast<char *>(simt_self.shared) + r->launch->shared_bytes;
	const size_t left = static_cast<size_t>(r->shared_end - end);
	char clean[shared_align + sizeof poison];

	/* Poison is periodic, counted from a start that is aligned. */
	fill_with_poison(clean, sizeof clean);
	if (memcmp(end, clean + r->launch->shared_bytes % sizeof poison, left) != 0)
		simt_fault("writes past its %zu bytes of dynamic shared memory", r->launch->shared_bytes);
}

void run_block(struct simt_run *r, uint64_t number)
{
	begin_block(r, number);
	const char *shared = static_cast<char *>(simt_self.shared);
	const struct race_memory memory[2] = {
		{r->statics.start, r->statics.len}, {shared, static_cast<size_t>(r->shared_end - shared)}};
	if (simt_races)
		simt_races->begin_block(r->launch->kernel->name, r->launch->number, number, memory);
	while (r->n_live) {
		if (r->ready.empty())
			report_deadlock(r);
		r->current = pick(r);
		simt_self.thread = r->fibres[r->current].thread;
		if (simt_races)
			simt_races->run_thread(r->current);
#ifdef __SANITIZE_ADDRESS__
		__sanitizer_start_switch_fiber(&r->scheduler_fake, r->stack(r->current), stack_bytes);
#endif
		stack_context_swap(&r->scheduler, &r->fibres[r->current].context);
#ifdef __SANITIZE_ADDRESS__
		__sanitizer_finish_switch_fiber(r->scheduler_fake, nullptr, nullptr);
#endif
	}
	if (simt_races)
		simt_races->end_block();
	end_block(r);
}

/* ---- Launches, and the threads that help with them. */

struct pool {
	std::mutex lock;
	std::condition_variable work, done;
	std::vector<struct launch *> launches;
	unsigned n_threads = 0;
};

/* Never freed: its threads run until the process ends. */
struct pool *the_pool()
{
	static struct pool *p = new struct pool;
	return p;
}

/* Stacks are big: an OS thread keeps its own until it ends. Not as a thread_local, which would lie among
 * kernels' shared variables. */
struct simt_run *own_run()
{
	static const pthread_key_t key = [] {
		pthread_key_t made;

		if (pthread_key_create(&made, [](void *run) { delete static_cast<struct simt_run *>(run); }))
			simt_fault("no key for a thread's stacks");
		return made;
	}();

	if (!simt_self.run)
		pthread_setspecific(key, new struct simt_run);
	return simt_self.run;
}

void run_blocks(struct launch *l)
{
	struct simt_run *r = own_run();
	uint64_t n = 0;

	r->launch = l;
	for (uint64_t i; (i = l->next.fetch_add(1)) < l->n_blocks; n++)
		run_block(r, i);
	r->launch = nullptr;

	std::lock_guard<std::mutex> guard(the_pool()->lock);
	l->n_done += n;
	the_pool()->done.notify_all();
}

void help(struct pool *p)
{
	std::unique_lock<std::mutex> guard(p->lock);

	for (;;) {
		struct launch *l = nullptr;
		for (struct launch *candidate : p->launches)
			if (candidate->next.load() < candidate->n_blocks)
				l = candidate;
		if (!l) {
			p->work.wait(guard);
			continue;
		}
		l->n_helpers++;
		guard.unlock();
		run_blocks(l);
		guard.lock();
		l->n_helpers--;
		p->done.notify_all();
	}
}

void begin_help(struct pool *p)
{
	const unsigned n = std::thread::hardware_concurrency();

	for (; p->n_threads + 1 < n && p->n_threads < 7; p->n_threads++)
		std::thread(help, p).detach();
}

} // namespace

void simt_launch(const struct simt_kernel *kernel, const uint32_t grid[3], const uint32_t block[3],
	size_t shared_bytes, const void *args)
{
	struct pool *p = the_pool();
	struct launch l;

	l.kernel = kernel;
	l.grid = {grid[0], grid[1], grid[2]};
	l.block = {block[0], block[1], block[2]};
	l.shared_bytes = shared_bytes;
	l.args = args;
	static std::atomic<uint64_t> n_launches;
	l.number = ++n_launches;
	l.n_blocks = static_cast<uint64_t>(grid[0]) * grid[1] * grid[2];

	std::unique_lock<std::mutex> guard(p->lock);
	begin_help(p);
	/* Races are looked for between blocks of one OS thread. */
	if (l.n_blocks > 1 && !simt_races) {
		p->launches.push_back(&l);
		p->work.notify_all();
	}
	guard.unlock();
	run_blocks(&l);
	guard.lock();
	p->done.wait(guard, [&l] { return l.n_done == l.n_blocks && l.n_helpers == 0; });
	for (size_t i = 0; i < p->launches.size(); i++)
		if (p->launches[i] == &l)
			p->launches.erase(p->launches.begin() + static_cast<ptrdiff_t>(i--));
}

const char *simt_where(uint32_t block[3], uint32_t thread[3])
{
	if (!simt_self.run || !simt_self.run->launch)
		return nullptr;
	memcpy(block, &simt_self.block, sizeof simt_self.block);
	memcpy(thread, &simt_self.thread, sizeof simt_self.thread);
	return simt_self.run->launch->kernel->name;
}

/* ---- What kernels call. */

void simt_fault(const char *format, ...)
{
	va_list args;

	if (simt_self.run && simt_self.run->launch)
		fprintf(stderr, "emulated kernel %s, block %u %u %u, thread %u %u %u: ",
			simt_self.run->launch->kernel->name, simt_self.block.x, simt_self.block.y,
			simt_self.block.z, simt_self.thread.x, simt_self.thread.y, simt_self.thread.z);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	abort();
}

void simt_barrier(int line)
{
	struct simt_run *r = simt_self.run;
	struct fibre *f = &r->fibres[r->current];

	if (r->n_at_barrier && r->barrier_line != line)
		simt_fault("__syncthreads in line %d, while others are in that of line %d", line,
			r->barrier_line);
	r->barrier_line = line;
	f->state = state::barrier;
	f->line = line;
	r->n_at_barrier++;
	release_barrier(r);
	fibre_leave(r);
}

void simt_collective(const char *what, unsigned mask, int line, void *mine, simt_combine *combine)
{
	struct simt_run *r = simt_self.run;
	const unsigned lane = r->current % 32;
	struct warp *w = &r->warps[r->current / 32];
	unsigned i = 0, joined = w->n_groups;

	if (!(mask >> lane & 1))
		simt_fault("%s: lane %u is not in its mask 0x%08x", what, lane, mask);
	for (; i < w->n_groups; i++) {
		const struct group *g = &w->groups[i];

		if (g->mask == mask && g->line == line && (g->what == what || strcmp(g->what, what) == 0))
			joined = i;
		else if (g->mask >> lane & 1 && g->arrived & mask)
			simt_fault("%s of lanes 0x%08x in line %d, while lanes 0x%08x are in %s of lanes "
				   "0x%08x in line %d",
				what, mask, line, g->arrived, g->what, g->mask, g->line);
	}
	if (joined == w->n_groups)
		w->groups[w->n_groups++] = {what, combine, mask, line, 0};
	w->groups[joined].arrived |= 1u << lane;
	w->handed_in[lane] = mine;
	r->fibres[r->current].state = state::collective;
	r->fibres[r->current].line = line;
	try_group(r, r->current / 32, joined);
	fibre_leave(r);
}

void simt_yield(void)
{
	struct simt_run *r = simt_self.run;

	if (r->ready.empty())
		sched_yield();
	wake(r, r->current);
	fibre_leave(r);
}

void simt_copy_add(void *shared, const void *global)
{
	struct fibre *f = &simt_self.run->fibres[simt_self.run->current];

	f->copies.push_back({shared, global, f->n_groups});
}

void simt_copy_close(void)
{
	simt_self.run->fibres[simt_self.run->current].n_groups++;
}

struct simt_products *simt_products_here(void)
{
	return &simt_self.run->fibres[simt_self.run->current].products;
}

bool simt_warpgroups(void)
{
	static const bool has = []() {
		const char *text = getenv("CISTERN_SIMT_WARPGROUPS");
		return !text || strcmp(text, "0") != 0;
	}();
	return has;
}

void simt_copy_finish(unsigned n_left)
{
	struct fibre *f = &simt_self.run->fibres[simt_self.run->current];
	size_t i = 0;

	for (; i < f->copies.size() && f->copies[i].group + n_left < f->n_groups; i++) {
		if (simt_races)
			simt_races->copy(f->copies[i].to, f->copies[i].from, 16);
		memcpy(f->copies[i].to, f->copies[i].from, 16);
	}
	f->copies.erase(f->copies.begin(), f->copies.begin() + static_cast<ptrdiff_t>(i));
}
