#include "runtime/index.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <xxhash.h>

_Static_assert(sizeof(struct index_entry) == 104, "there may be millions");

enum {
	BUCKETS_MIN = 256,
	BLOCK_BYTES = 512 << 10,
	OWNER_BUCKETS = 1024,
	BATCH = 16, /* keys looked for at once */
};

struct block {
	uint32_t first; /* the number of entries[0] */
	uint32_t reserved[15];
	struct index_entry entries[];
};

enum { BLOCK_ENTRIES = (BLOCK_BYTES - sizeof(struct block)) / sizeof(struct index_entry) };

struct index {
	uint32_t *buckets; /* numbers of entries */
	size_t n_buckets;  /* a power of two */
	size_t n_entries;
	uint64_t seed;
	struct block **blocks;
	size_t n_blocks, blocks_capacity;
	uint32_t n_numbers;                 /* given out so far */
	uint32_t free;                      /* numbers given back, linked by hash_next */
	struct index_owner *owners;         /* from 1 on */
	uint32_t n_owners, owners_capacity; /* at most UINT16_MAX */
	uint8_t (*transforms)[16];          /* [n_transforms], numbered from 1 on; the plain codec has 0 */
	uint32_t n_transforms, last_transform;
	uint32_t owner_buckets[OWNER_BUCKETS];
};

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
	x->buckets = calloc(x->n_buckets, sizeof *x->buckets);
	if (!x->buckets) {
		free(x);
		return NULL;
	}
	/* Early in boot there may be no entropy: then the seed is 0, and only the defence is lost. */
	if (getrandom(&x->seed, sizeof x->seed, GRND_NONBLOCK) != (ssize_t)sizeof x->seed)
		x->seed = 0;
	return x;
}

struct index *index_free(struct index *x)
{
	if (!x)
		return NULL;
	for (size_t i = 0; i < x->n_blocks; i++)
		free(x->blocks[i]);
	free(x->blocks);
	free(x->buckets);
	free(x->owners);
	free(x->transforms);
	free(x);
	return NULL;
}

/* ---- numbers ---- */

struct index_entry *index_at(const struct index *x, uint32_t number)
{
	return &x->blocks[(number - 1) / BLOCK_ENTRIES]->entries[(number - 1) % BLOCK_ENTRIES];
}

uint32_t index_number(const struct index *x, const struct index_entry *e)
{
	/* Blocks are aligned to their size. */
	const struct block *b = (const struct block *)((uintptr_t)e & ~(uintptr_t)(BLOCK_BYTES - 1));

	(void)x;
	return b->first + (uint32_t)(e - b->entries);
}

/* One more block. False: out of memory. */
static bool add_block(struct index *x)
{
	struct block *b;

	if (x->n_blocks == x->blocks_capacity) {
		const size_t more = x->blocks_capacity * 2 + 16;
		struct block **blocks = reallocarray(x->blocks, more, sizeof *blocks);

		if (!blocks)
			return false;
		x->blocks = blocks;
		x->blocks_capacity = more;
	}
	if (x->n_numbers + BLOCK_ENTRIES >= EVICT_ITEMS_MAX)
		return false;
	b = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);
	if (!b)
		return false;
	/* The entries are touched as they are given out. */
	b->first = (uint32_t)(x->n_blocks * BLOCK_ENTRIES) + 1;
	x->blocks[x->n_blocks++] = b;
	return true;
}

static struct index_entry *take_entry(struct index *x)
{
	struct index_entry *e;

	if (x->free) {
		e = index_at(x, x->free);
		x->free = e->hash_next;
	} else {
		if (x->n_numbers == x->n_blocks * BLOCK_ENTRIES && !add_block(x))
			return NULL;
		e = index_at(x, ++x->n_numbers);
	}
	memset(e, 0, sizeof *e);
	return e;
}

void index_give_back(struct index *x, struct index_entry *e)
{
	assert(e->dead);
	e->owner = 0;
	e->hash_next = x->free;
	x->free = index_number(x, e);
}

/* ---- owners ---- */

static size_t owner_bucket(const uint8_t digest[16])
{
	uint32_t bits;

	memcpy(&bits, digest, sizeof bits);
	return bits % OWNER_BUCKETS;
}

/* 0: no such owner. */
static uint32_t find_owner(const struct index *x, const uint8_t digest[16])
{
	uint32_t o = x->owner_buckets[owner_bucket(digest)];

	while (o && memcmp(x->owners[o].digest, digest, 16) != 0)
		o = x->owners[o].next;
	return o;
}

/* 0: out of memory. */
static uint32_t add_owner(struct index *x, const uint8_t digest[16])
{
	uint32_t *bucket = &x->owner_buckets[owner_bucket(digest)], o;

	if (x->n_owners == UINT16_MAX)
		return 0;
	if (x->n_owners + 1 >= x->owners_capacity) {
		const uint32_t more = x->owners_capacity * 2 + 16;
		struct index_owner *owners = reallocarray(x->owners, more, sizeof *owners);

		if (!owners)
			return 0;
		x->owners = owners;
		x->owners_capacity = more;
	}
	o = ++x->n_owners;
	x->owners[o] = (struct index_owner){.next = *bucket};
	memcpy(x->owners[o].digest, digest, 16);
	*bucket = o;
	return o;
}

void index_set_transform(struct index *x, struct index_entry *e, const uint8_t id[16])
{
	static const uint8_t plain[16];
	uint8_t(*more)[16];

	e->transform = 0;
	if (memcmp(id, plain, 16) == 0)
		return;
	/* There are few, and mostly it is the one of the time before. */
	for (uint32_t i = 0; i < x->n_transforms; i++) {
		const uint32_t k = (x->last_transform + i) % x->n_transforms;

		if (memcmp(x->transforms[k], id, 16) == 0) {
			x->last_transform = k;
			e->transform = (uint16_t)(k + 1);
			return;
		}
	}
	e->transform = UINT16_MAX;
	more = x->n_transforms < UINT16_MAX - 1 ? reallocarray(x->transforms, x->n_transforms + 1, 16) : NULL;
	if (!more)
		return;
	x->transforms = more;
	memcpy(more[x->n_transforms], id, 16);
	x->last_transform = x->n_transforms++;
	e->transform = (uint16_t)x->n_transforms;
}

const uint8_t *index_transform(const struct index *x, const struct index_entry *e)
{
	static const uint8_t plain[16], unknown[16] = "? ? ? ? ? ? ? ?";

	return !e->transform ? plain : e->transform == UINT16_MAX ? unknown : x->transforms[e->transform - 1];
}

void index_name_owner(struct index *x, const struct index_entry *e, const uint8_t name_space[16],
	const uint8_t fingerprint[16], uint32_t tag)
{
	x->owners[e->owner].tag = tag;
	memcpy(x->owners[e->owner].name_space, name_space, 16);
	memcpy(x->owners[e->owner].fingerprint, fingerprint, 16);
}

const struct index_owner *index_owner(const struct index *x, uint32_t owner)
{
	return &x->owners[owner];
}

void index_id(const struct index *x, const struct index_entry *e, struct index_key *out)
{
	memcpy(out->owner, x->owners[e->owner].digest, 16);
	memcpy(out->key, e->key, 32);
}

/* ---- the table ---- */

/* Engines may choose keys freely; the seed keeps them from choosing keys that share a bucket. */
static size_t bucket_of(const struct index *x, size_t n_buckets, uint32_t owner, const uint8_t key[32])
{
	return (size_t)XXH3_64bits_withSeed(key, 32, x->seed + owner) & (n_buckets - 1);
}

static struct index_entry *follow(
	const struct index *x, uint32_t number, uint32_t owner, const uint8_t key[32])
{
	while (number) {
		struct index_entry *e = index_at(x, number);

		if (e->owner == owner && memcmp(e->key, key, 32) == 0)
			return e;
		number = e->hash_next;
	}
	return NULL;
}

struct index_entry *index_find(struct index *x, const struct index_key *id)
{
	const uint32_t owner = find_owner(x, id->owner);

	if (!owner)
		return NULL;
	return follow(x, x->buckets[bucket_of(x, x->n_buckets, owner, id->key)], owner, id->key);
}

void index_find_many(struct index *x, const uint8_t owner_digest[16], const uint8_t (*keys)[32], size_t n,
	struct index_entry **out)
{
	const uint32_t owner = find_owner(x, owner_digest);
	uint32_t *buckets[BATCH];

	for (size_t i = 0; !owner && i < n; i++)
		out[i] = NULL;
	for (size_t at = 0; owner && at < n; at += BATCH) {
		const size_t n_here = n - at < BATCH ? n - at : BATCH;

		for (size_t i = 0; i < n_here; i++) {
			buckets[i] = &x->buckets[bucket_of(x, x->n_buckets, owner, keys[at + i])];
			__builtin_prefetch(buckets[i]);
		}
		for (size_t i = 0; i < n_here; i++)
			if (*buckets[i])
				__builtin_prefetch(index_at(x, *buckets[i]));
		for (size_t i = 0; i < n_here; i++)
			out[at + i] = follow(x, *buckets[i], owner, keys[at + i]);
	}
}

/* Twice the buckets. With no memory for them the chains just get longer. */
static void grow(struct index *x)
{
	size_t n_buckets = x->n_buckets * 2;
	uint32_t *buckets = calloc(n_buckets, sizeof *buckets);

	if (!buckets)
		return;
	for (size_t i = 0; i < x->n_buckets; i++) {
		while (x->buckets[i]) {
			struct index_entry *e = index_at(x, x->buckets[i]);
			const size_t to = bucket_of(x, n_buckets, e->owner, e->key);
			const uint32_t number = x->buckets[i];

			x->buckets[i] = e->hash_next;
			e->hash_next = buckets[to];
			buckets[to] = number;
		}
	}
	free(x->buckets);
	x->buckets = buckets;
	x->n_buckets = n_buckets;
}

struct index_entry *index_add(struct index *x, const struct index_key *id)
{
	uint32_t owner = find_owner(x, id->owner);
	struct index_entry *e;
	size_t at;

	if (!owner)
		owner = add_owner(x, id->owner);
	e = owner ? take_entry(x) : NULL;
	if (!e)
		return NULL;
	if (x->n_entries >= x->n_buckets)
		grow(x);
	at = bucket_of(x, x->n_buckets, owner, id->key);
	assert(!follow(x, x->buckets[at], owner, id->key));
	memcpy(e->key, id->key, 32);
	e->owner = (uint16_t)owner;
	e->hash_next = x->buckets[at];
	x->buckets[at] = index_number(x, e);
	x->n_entries++;
	return e;
}

void index_detach(struct index *x, struct index_entry *e)
{
	uint32_t *link = &x->buckets[bucket_of(x, x->n_buckets, e->owner, e->key)];
	const uint32_t number = index_number(x, e);

	while (*link != number)
		link = &index_at(x, *link)->hash_next;
	*link = e->hash_next;
	e->dead = 1;
	x->n_entries--;
}

void index_remove(struct index *x, struct index_entry *e)
{
	index_detach(x, e);
	index_give_back(x, e);
}

struct store_location index_location(const struct index_entry *e)
{
	const uint64_t bytes = STORE_HEADER_BYTES + (uint64_t)e->frame_bytes;

	return (struct store_location){.segment = e->segment,
		.len_pages = e->page ? (uint32_t)((bytes + STORE_ALIGN - 1) / STORE_ALIGN) : 0,
		.offset = (uint64_t)e->page * STORE_ALIGN};
}

void index_each(struct index *x, void (*fn)(void *arg, struct index_entry *e), void *arg)
{
	for (uint32_t number = 1; number <= x->n_numbers; number++) {
		struct index_entry *e = index_at(x, number);

		if (e->owner && !e->dead)
			fn(arg, e);
	}
}

uint32_t index_end(const struct index *x)
{
	return x->n_numbers + 1;
}

size_t index_count(const struct index *x)
{
	return x->n_entries;
}

size_t index_memory_bytes(const struct index *x)
{
	return sizeof *x + x->n_blocks * BLOCK_BYTES + x->blocks_capacity * sizeof *x->blocks +
	       x->n_buckets * sizeof *x->buckets + x->owners_capacity * sizeof *x->owners;
}
