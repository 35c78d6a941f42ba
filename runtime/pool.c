#include "runtime/pool.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

/*
 * The range is at any time a gapless row of extents, free or used, and no two free ones are neighbours. Each
 * extent is named by its first page, and the book-keeping is one struct per page, of which only those at an
 * extent's first and last page mean anything. It lies in memory of its own that the system hands out page by
 * page, so a pool of few large extents touches little of it.
 *
 * The free extents form a treap: a search tree by (length, first page), whose shape is kept balanced by being
 * a heap by a pseudo-random priority as well. Best fit is then one descent. Source: R. Seidel, C. R. Aragon,
 * "Randomized search trees", Algorithmica 16 (1996).
 */
struct extent {
	uint32_t n_pages;     /* of the extent that begins here */
	uint32_t left, right; /* its children in the tree while it is free */
	uint32_t first;       /* first page of the extent that ends here */
	bool used;
};

enum { HUGE_PAGE_BYTES = 2 << 20 };
static const uint32_t NONE = UINT32_MAX;

struct pool {
	char *range;
	bool borrowed;          /* the range */
	uint32_t room_pages;    /* of the range */
	struct extent *extents; /* [room_pages] */

	pthread_mutex_t lock; /* guards all below, and extents */
	uint32_t n_pages;     /* the limit */
	uint32_t root;
	uint64_t n_used_pages;
	uint64_t n_used_extents;
};

/* The heap order. A page's priority is a mix of its number (the finaliser of MurmurHash3, public domain): no
 * state, and no relation to the order by length. */
static uint32_t priority(uint32_t page)
{
	page ^= page >> 16;
	page *= 0x85ebca6b;
	page ^= page >> 13;
	page *= 0xc2b2ae35;
	return page ^ page >> 16;
}

/* The search order: by length, and the lowest first among equals, which keeps the range's end free. */
static bool less(const struct pool *p, uint32_t a, uint32_t b)
{
	if (p->extents[a].n_pages != p->extents[b].n_pages)
		return p->extents[a].n_pages < p->extents[b].n_pages;
	return a < b;
}

static void tree_insert(struct pool *p, uint32_t x)
{
	struct extent *e = p->extents;
	uint32_t *link = &p->root;
	uint32_t *left = &e[x].left, *right = &e[x].right;
	uint32_t t;

	while (*link != NONE && priority(*link) >= priority(x))
		link = less(p, x, *link) ? &e[*link].left : &e[*link].right;
	t = *link;
	*link = x;
	while (t != NONE) {
		if (less(p, t, x)) {
			*left = t;
			left = &e[t].right;
			t = *left;
		} else {
			*right = t;
			right = &e[t].left;
			t = *right;
		}
	}
	*left = NONE;
	*right = NONE;
}

static void tree_remove(struct pool *p, uint32_t x)
{
	struct extent *e = p->extents;
	uint32_t *link = &p->root;
	uint32_t a = e[x].left, b = e[x].right;

	while (*link != x)
		link = less(p, x, *link) ? &e[*link].left : &e[*link].right;
	while (a != NONE && b != NONE) {
		if (priority(a) >= priority(b)) {
			*link = a;
			link = &e[a].right;
			a = *link;
		} else {
			*link = b;
			link = &e[b].left;
			b = *link;
		}
	}
	*link = a != NONE ? a : b;
}

/* The shortest free extent of at least n_pages, or NONE. */
static uint32_t tree_best_fit(const struct pool *p, uint32_t n_pages)
{
	uint32_t best = NONE;

	for (uint32_t t = p->root; t != NONE;) {
		if (p->extents[t].n_pages >= n_pages) {
			best = t;
			t = p->extents[t].left;
		} else {
			t = p->extents[t].right;
		}
	}
	return best;
}

static void extent_set(struct pool *p, uint32_t first, uint32_t n_pages, bool used)
{
	p->extents[first].n_pages = n_pages;
	p->extents[first].used = used;
	p->extents[first + n_pages - 1].first = first;
}

/* Maps limit_bytes from a huge page's boundary on, so that the whole range can be backed by huge pages. */
static char *map_range(size_t len)
{
	size_t room = len + HUGE_PAGE_BYTES;
	char *base, *start;

	if (room < len)
		return NULL;
	base = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == MAP_FAILED)
		return NULL;
	start = base + (HUGE_PAGE_BYTES - (uintptr_t)base % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
	if (start > base)
		munmap(base, (size_t)(start - base));
	if (start + len < base + room)
		munmap(start + len, (size_t)(base + room - (start + len)));
	/* A kernel without huge pages answers EINVAL, and the pool is merely slower. */
	(void)madvise(start, len, MADV_HUGEPAGE);
	return start;
}

/* No pages are handed out yet. */
static int make(uint64_t room_bytes, struct pool **out)
{
	const uint64_t n_pages = room_bytes / POOL_PAGE_BYTES;
	struct pool *p;
	void *extents;

	if (n_pages == 0 || n_pages >= NONE)
		return -EINVAL;
	p = calloc(1, sizeof *p);
	if (!p)
		return -ENOMEM;
	p->room_pages = (uint32_t)n_pages;
	p->root = NONE;
	pthread_mutex_init(&p->lock, NULL);
	extents = mmap(NULL, (size_t)n_pages * sizeof *p->extents, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (extents == MAP_FAILED) {
		pool_free(p);
		return -ENOMEM;
	}
	p->extents = extents;
	*out = p;
	return 0;
}

/* Free pages [p->n_pages, n_pages) are had, and joined to what is free before them. */
static void extend(struct pool *p, uint32_t n_pages)
{
	uint32_t x = p->n_pages;

	if (x > 0 && !p->extents[p->extents[x - 1].first].used) {
		x = p->extents[x - 1].first;
		tree_remove(p, x);
	}
	extent_set(p, x, n_pages - x, false);
	tree_insert(p, x);
	p->n_pages = n_pages;
}

int pool_new(uint64_t limit_bytes, struct pool **out)
{
	struct pool *p;
	int r = make(limit_bytes, &p);

	if (r)
		return r;
	p->range = map_range((size_t)p->room_pages * POOL_PAGE_BYTES);
	if (!p->range) {
		pool_free(p);
		return -ENOMEM;
	}
	extend(p, p->room_pages);
	*out = p;
	return 0;
}

int pool_over(void *range, uint64_t room_bytes, uint64_t limit_bytes, struct pool **out)
{
	struct pool *p;
	int r = make(room_bytes, &p);

	if (r)
		return r;
	p->range = range;
	p->borrowed = true;
	r = pool_set_limit(p, limit_bytes);
	if (r)
		pool_free(p);
	else
		*out = p;
	return r;
}

int pool_set_limit(struct pool *p, uint64_t limit_bytes)
{
	const uint64_t n_pages = limit_bytes / POOL_PAGE_BYTES;
	uint32_t last;
	int r = 0;

	if (!p->borrowed || n_pages > p->room_pages)
		return -EINVAL;
	pthread_mutex_lock(&p->lock);
	if (n_pages > p->n_pages) {
		extend(p, (uint32_t)n_pages);
	} else if (n_pages < p->n_pages) {
		last = p->extents[p->n_pages - 1].first;
		if (p->extents[last].used || last > n_pages) {
			r = -EBUSY;
		} else {
			tree_remove(p, last);
			p->n_pages = (uint32_t)n_pages;
			if (last < n_pages) {
				extent_set(p, last, (uint32_t)n_pages - last, false);
				tree_insert(p, last);
			}
		}
	}
	pthread_mutex_unlock(&p->lock);
	return r;
}

struct pool *pool_free(struct pool *p)
{
	if (!p)
		return NULL;
	if (p->range && !p->borrowed)
		munmap(p->range, (size_t)p->room_pages * POOL_PAGE_BYTES);
	if (p->extents)
		munmap(p->extents, (size_t)p->room_pages * sizeof *p->extents);
	pthread_mutex_destroy(&p->lock);
	free(p);
	return NULL;
}

/* Whole pages of a length; the length may be anything. */
static uint64_t pages_of(size_t len_bytes)
{
	return (uint64_t)len_bytes / POOL_PAGE_BYTES + (len_bytes % POOL_PAGE_BYTES != 0);
}

int pool_alloc(struct pool *p, size_t len_bytes, void **addr)
{
	uint64_t want = pages_of(len_bytes);
	uint32_t x, n_pages;

	if (want == 0)
		return -EINVAL;
	if (want > p->room_pages)
		return -ENOSPC;
	n_pages = (uint32_t)want;

	pthread_mutex_lock(&p->lock);
	x = tree_best_fit(p, n_pages);
	if (x != NONE) {
		uint32_t n_rest = p->extents[x].n_pages - n_pages;

		tree_remove(p, x);
		extent_set(p, x, n_pages, true);
		if (n_rest) {
			extent_set(p, x + n_pages, n_rest, false);
			tree_insert(p, x + n_pages);
		}
		p->n_used_pages += n_pages;
		p->n_used_extents++;
	}
	pthread_mutex_unlock(&p->lock);
	if (x == NONE)
		return -ENOSPC;
	*addr = p->range + (size_t)x * POOL_PAGE_BYTES;
	return 0;
}

void pool_release(struct pool *p, void *addr, size_t len_bytes)
{
	size_t offset = (size_t)((char *)addr - p->range);
	uint32_t n_pages = (uint32_t)pages_of(len_bytes);
	uint32_t x = (uint32_t)(offset / POOL_PAGE_BYTES);

	assert((char *)addr >= p->range && offset % POOL_PAGE_BYTES == 0 &&
		offset / POOL_PAGE_BYTES < p->n_pages);
	pthread_mutex_lock(&p->lock);
	assert(p->extents[x].used && p->extents[x].n_pages == n_pages);
	p->n_used_pages -= n_pages;
	p->n_used_extents--;
	p->extents[x].used = false;
	if (x + n_pages < p->n_pages && !p->extents[x + n_pages].used) {
		uint32_t next = x + n_pages;

		tree_remove(p, next);
		n_pages += p->extents[next].n_pages;
	}
	if (x > 0 && !p->extents[p->extents[x - 1].first].used) {
		uint32_t previous = p->extents[x - 1].first;

		tree_remove(p, previous);
		n_pages += p->extents[previous].n_pages;
		x = previous;
	}
	extent_set(p, x, n_pages, false);
	tree_insert(p, x);
	pthread_mutex_unlock(&p->lock);
}

void pool_shrink(struct pool *p, void *addr, size_t len_bytes, size_t shorter_bytes)
{
	const uint32_t x = (uint32_t)((size_t)((char *)addr - p->range) / POOL_PAGE_BYTES);
	const uint32_t n_pages = (uint32_t)pages_of(len_bytes), n_stay = (uint32_t)pages_of(shorter_bytes);

	assert(n_stay && n_stay <= n_pages);
	if (n_stay == n_pages)
		return;
	pthread_mutex_lock(&p->lock);
	assert(p->extents[x].used && p->extents[x].n_pages == n_pages);
	extent_set(p, x, n_stay, true);
	extent_set(p, x + n_stay, n_pages - n_stay, true);
	p->n_used_extents++;
	pthread_mutex_unlock(&p->lock);
	pool_release(p, (char *)addr + (size_t)n_stay * POOL_PAGE_BYTES,
		(size_t)(n_pages - n_stay) * POOL_PAGE_BYTES);
}

void pool_get_stats(struct pool *p, struct pool_stats *out)
{
	uint32_t largest = NONE;

	pthread_mutex_lock(&p->lock);
	for (uint32_t t = p->root; t != NONE; t = p->extents[t].right)
		largest = t;
	*out = (struct pool_stats){
		.limit_bytes = (uint64_t)p->n_pages * POOL_PAGE_BYTES,
		.used_bytes = p->n_used_pages * POOL_PAGE_BYTES,
		.largest_free_bytes =
			largest == NONE ? 0 : (uint64_t)p->extents[largest].n_pages * POOL_PAGE_BYTES,
		.n_extents = p->n_used_extents,
	};
	pthread_mutex_unlock(&p->lock);
}

void pool_range(const struct pool *p, void **addr, size_t *len_bytes)
{
	*addr = p->range;
	*len_bytes = (size_t)p->room_pages * POOL_PAGE_BYTES;
}
