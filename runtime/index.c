#include "runtime/index.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <xxhash.h>

enum { BUCKETS_MIN = 256 };

struct index {
	struct index_entry **buckets;
	size_t n_buckets; /* a power of two */
	size_t n_entries;
	uint64_t seed;
	uint64_t serial;
	/* The recency list is a ring through this entry: end.older is the newest, end.newer the oldest. An
	 * entry outside the list has newer and older NULL. */
	struct index_entry end;
};

/* Engines may choose keys freely; the seed keeps them from choosing keys that share a bucket. */
static size_t bucket_of(const struct index *x, size_t n_buckets, const struct index_key *id)
{
	return (size_t)XXH3_64bits_withSeed(id, sizeof *id, x->seed) & (n_buckets - 1);
}

void index_key_make(struct index_key *out, const uint8_t name_space[16], const uint8_t fingerprint[16],
	const uint8_t key[32])
{
	uint8_t both[32];
	XXH128_canonical_t owner;

	memcpy(both, name_space, 16);
	memcpy(both + 16, fingerprint, 16);
	XXH128_canonicalFromHash(&owner, XXH3_128bits(both, sizeof both));
	memcpy(out->owner, owner.digest, 16);
	memcpy(out->key, key, 32);
}

struct index *index_new(void)
{
	struct index *x = calloc(1, sizeof *x);

	if (!x)
		return NULL;
	x->n_buckets = BUCKETS_MIN;
	x->buckets = calloc(x->n_buckets, sizeof(struct index_entry *));
	if (!x->buckets) {
		free(x);
		return NULL;
	}
	/* Early in boot there may be no entropy: then the seed is 0, and only the defence is lost. */
	if (getrandom(&x->seed, sizeof x->seed, GRND_NONBLOCK) != (ssize_t)sizeof x->seed)
		x->seed = 0;
	x->end.newer = &x->end;
	x->end.older = &x->end;
	return x;
}

struct index *index_free(struct index *x)
{
	if (!x)
		return NULL;
	for (size_t i = 0; i < x->n_buckets; i++) {
		while (x->buckets[i]) {
			struct index_entry *e = x->buckets[i];

			x->buckets[i] = e->hash_next;
			free(e);
		}
	}
	free(x->buckets);
	free(x);
	return NULL;
}

struct index_entry *index_find(struct index *x, const struct index_key *id)
{
	struct index_entry *e = x->buckets[bucket_of(x, x->n_buckets, id)];

	while (e && memcmp(&e->id, id, sizeof *id) != 0)
		e = e->hash_next;
	return e;
}

/* Twice the buckets. With no memory for them the chains just get longer. */
static void grow(struct index *x)
{
	size_t n_buckets = x->n_buckets * 2;
	struct index_entry **buckets = calloc(n_buckets, sizeof(struct index_entry *));

	if (!buckets)
		return;
	for (size_t i = 0; i < x->n_buckets; i++) {
		while (x->buckets[i]) {
			struct index_entry *e = x->buckets[i];
			size_t to = bucket_of(x, n_buckets, &e->id);

			x->buckets[i] = e->hash_next;
			e->hash_next = buckets[to];
			buckets[to] = e;
		}
	}
	free(x->buckets);
	x->buckets = buckets;
	x->n_buckets = n_buckets;
}

struct index_entry *index_add(struct index *x, const struct index_key *id)
{
	struct index_entry *e = calloc(1, sizeof *e);
	size_t at;

	if (!e)
		return NULL;
	assert(!index_find(x, id));
	if (x->n_entries >= x->n_buckets)
		grow(x);
	at = bucket_of(x, x->n_buckets, id);
	e->id = *id;
	e->serial = ++x->serial;
	e->hash_next = x->buckets[at];
	x->buckets[at] = e;
	x->n_entries++;
	return e;
}

void index_detach(struct index *x, struct index_entry *e)
{
	struct index_entry **link = &x->buckets[bucket_of(x, x->n_buckets, &e->id)];

	while (*link != e)
		link = &(*link)->hash_next;
	*link = e->hash_next;
	index_untrack(x, e);
	x->n_entries--;
}

void index_remove(struct index *x, struct index_entry *e)
{
	index_detach(x, e);
	free(e);
}

void index_touch(struct index *x, struct index_entry *e)
{
	index_untrack(x, e);
	if (!e->record)
		return;
	e->newer = &x->end;
	e->older = x->end.older;
	e->older->newer = e;
	x->end.older = e;
}

void index_untrack(struct index *x, struct index_entry *e)
{
	(void)x;
	if (!e->newer)
		return;
	e->newer->older = e->older;
	e->older->newer = e->newer;
	e->newer = NULL;
	e->older = NULL;
}

struct index_entry *index_victim(struct index *x)
{
	struct index_entry *e = x->end.newer;

	while (e != &x->end && (e->n_pins || e->n_users || e->writing || e->dead))
		e = e->newer;
	return e == &x->end ? NULL : e;
}

void index_each(struct index *x, void (*fn)(void *arg, struct index_entry *e), void *arg)
{
	for (size_t i = 0; i < x->n_buckets; i++) {
		for (struct index_entry *e = x->buckets[i], *next; e; e = next) {
			next = e->hash_next;
			fn(arg, e);
		}
	}
}

size_t index_count(const struct index *x)
{
	return x->n_entries;
}
