/*
 * The two handles of a struct wire_ring in shared memory: a producer in one process, a consumer in the other.
 * A handle belongs to one thread and keeps its own index outside the shared memory, so the other process can
 * lie about its own index only: every index read is checked against the ring's size before it is used, and
 * no access ever leaves the ring. After -EPROTO the ring must be given up.
 *
 * Memory order. The producer writes an entry, then stores tail; the consumer loads tail, then reads the
 * entry (release/acquire on tail). The consumer reads an entry, then stores head; the producer loads head,
 * then overwrites the entry (release/acquire on head). Two hand-shakes need more, because each side stores
 * one variable and then loads another, and at least one of them has to see the other's store: publish
 * against sleep (tail and need_wakeup), and a full ring against release (tail and head). Those four accesses
 * are sequentially consistent; fences are not used, for ThreadSanitizer does not model them.
 */
#ifndef SHM_RING_H
#define SHM_RING_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "shm/protocol.h"

struct ring_producer {
	struct wire_ring *shared;
	uint8_t *entries;
	uint32_t n_entries; /* a power of two */
	uint32_t entry_bytes;
	uint32_t tail;      /* next entry to write */
	uint32_t published; /* what the consumer knows of tail */
	uint32_t head;      /* as last seen */
};

struct ring_consumer {
	struct wire_ring *shared;
	const uint8_t *entries;
	uint32_t n_entries;
	uint32_t entry_bytes;
	uint32_t head;     /* next entry to read */
	uint32_t released; /* what the producer knows of head */
	uint32_t tail;     /* as last seen */
};

/* Bytes that a ring takes in the segment: the indices, then the entries. */
size_t ring_bytes(uint32_t n_entries, uint32_t entry_bytes);

/* Make a handle for a ring that holds no entries. The handle borrows the memory. */
void ring_producer_init(
	struct ring_producer *p, struct wire_ring *shared, uint32_t n_entries, uint32_t entry_bytes);
void ring_consumer_init(
	struct ring_consumer *c, struct wire_ring *shared, uint32_t n_entries, uint32_t entry_bytes);

/* ---- producer ---- */

/* Writes one entry; the consumer sees it after ring_publish. -EAGAIN: the ring is full; -EPROTO: the
 * consumer's index is impossible. A producer that has published everything and then gets -EAGAIN may sleep:
 * the consumer is told by ring_release that a producer may be waiting for room. */
static inline int ring_push(struct ring_producer *p, const void *entry)
{
	if (p->tail - p->head == p->n_entries) {
		/* Acquire for the entries, seq_cst for a producer that sleeps on a full ring: pairs with the
		 * store of head in ring_release. */
		uint32_t head = atomic_load_explicit(&p->shared->head, memory_order_seq_cst);
		uint32_t n_used = p->tail - head;

		if (n_used > p->n_entries)
			return -EPROTO;
		p->head = head;
		if (n_used == p->n_entries)
			return -EAGAIN;
	}
	memcpy(p->entries + (size_t)(p->tail & (p->n_entries - 1)) * p->entry_bytes, entry, p->entry_bytes);
	p->tail++;
	return 0;
}

/* Entries that were pushed and not yet published. */
static inline uint32_t ring_unpublished(const struct ring_producer *p)
{
	return p->tail - p->published;
}

/* Shows the consumer everything that was pushed. True: the consumer sleeps, or is about to; ring its
 * doorbell. True once for each time that it went to sleep. */
static inline bool ring_publish(struct ring_producer *p)
{
	if (p->published == p->tail)
		return false;
	p->published = p->tail;
	/* Release for the entries; pairs with the loads of tail in ring_pop and ring_sleep. */
	atomic_store_explicit(&p->shared->tail, p->tail, memory_order_seq_cst);
	/* Pairs with the store in ring_sleep: either we read its 1 here, or it reads our tail there. */
	if (!atomic_load_explicit(&p->shared->need_wakeup, memory_order_seq_cst))
		return false;
	return atomic_exchange_explicit(&p->shared->need_wakeup, 0, memory_order_seq_cst) != 0;
}

/* ---- consumer ---- */

/* How many entries can be popped now. *n is at most the ring's size. -EPROTO: the producer's index is
 * impossible. */
static inline int ring_available(struct ring_consumer *c, uint32_t *n)
{
	/* Pairs with the store of tail in ring_publish. */
	uint32_t tail = atomic_load_explicit(&c->shared->tail, memory_order_acquire);

	if (tail - c->head > c->n_entries)
		return -EPROTO;
	c->tail = tail;
	*n = tail - c->head;
	return 0;
}

/* Copies the next entry out. 1: done; 0: the ring is empty; -EPROTO. The producer may use the room again
 * after ring_release. The copy is taken once: nothing that the other process does to the entry meanwhile or
 * later shows in *entry after the return. */
static inline int ring_pop(struct ring_consumer *c, void *entry)
{
	if (c->head == c->tail) {
		uint32_t n;
		int r = ring_available(c, &n);

		if (r < 0 || n == 0)
			return r;
	}
	memcpy(entry, c->entries + (size_t)(c->head & (c->n_entries - 1)) * c->entry_bytes, c->entry_bytes);
	/* A compiler that sees the copy and its use may read the shared bytes again instead of the copy; it
	 * believes that nobody else writes them. From here on it has to believe the copy. */
	__asm__ volatile("" : : "r"(entry) : "memory");
	c->head++;
	return 1;
}

/* Gives the room of popped entries back. True: the ring had been full, so the producer may be waiting for
 * room; a protocol that lets it wait rings its doorbell. */
static inline bool ring_release(struct ring_consumer *c)
{
	uint32_t released = c->released;

	if (released == c->head)
		return false;
	c->released = c->head;
	/* Release for the reads of the entries; pairs with the load of head in ring_push: either the producer
	 * finds our head there, or we find its tail, a whole ring ahead, here. */
	atomic_store_explicit(&c->shared->head, c->head, memory_order_seq_cst);
	return atomic_load_explicit(&c->shared->tail, memory_order_seq_cst) - released >= c->n_entries;
}

/* Announces that the consumer is going to sleep on its doorbell. 1: the ring is empty, sleep; 0: there are
 * entries, go on (nothing is announced); -EPROTO. */
static inline int ring_sleep(struct ring_consumer *c)
{
	uint32_t n;
	int r;

	/* Pairs with the load in ring_publish. The load of tail below has to be seq_cst as well. */
	atomic_store_explicit(&c->shared->need_wakeup, 1, memory_order_seq_cst);
	if (atomic_load_explicit(&c->shared->tail, memory_order_seq_cst) == c->head)
		return 1;
	atomic_store_explicit(&c->shared->need_wakeup, 0, memory_order_relaxed);
	r = ring_available(c, &n);
	return r;
}

/* Takes the announcement back, after waking for another reason than the doorbell. */
static inline void ring_wake(struct ring_consumer *c)
{
	atomic_store_explicit(&c->shared->need_wakeup, 0, memory_order_relaxed);
}

#endif
