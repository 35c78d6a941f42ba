#include "shm/ring.h"

#include <assert.h>

static bool is_power_of_two(uint32_t n)
{
	return n && (n & (n - 1)) == 0;
}

size_t ring_bytes(uint32_t n_entries, uint32_t entry_bytes)
{
	return sizeof(struct wire_ring) + (size_t)n_entries * entry_bytes;
}

/* The indices are read once, here, from memory that no other process has used yet. They are zero in a fresh
 * segment; a test starts elsewhere. */
void ring_producer_init(
	struct ring_producer *p, struct wire_ring *shared, uint32_t n_entries, uint32_t entry_bytes)
{
	uint32_t start = atomic_load_explicit(&shared->tail, memory_order_relaxed);

	assert(is_power_of_two(n_entries) && entry_bytes);
	*p = (struct ring_producer){
		.shared = shared,
		.entries = (uint8_t *)(shared + 1),
		.n_entries = n_entries,
		.entry_bytes = entry_bytes,
		.tail = start,
		.published = start,
		.head = start,
	};
}

void ring_consumer_init(
	struct ring_consumer *c, struct wire_ring *shared, uint32_t n_entries, uint32_t entry_bytes)
{
	uint32_t start = atomic_load_explicit(&shared->head, memory_order_relaxed);

	assert(is_power_of_two(n_entries) && entry_bytes);
	*c = (struct ring_consumer){
		.shared = shared,
		.entries = (const uint8_t *)(shared + 1),
		.n_entries = n_entries,
		.entry_bytes = entry_bytes,
		.head = start,
		.released = start,
		.tail = start,
	};
}
