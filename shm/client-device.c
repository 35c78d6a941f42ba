#include "shm/client-device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int64_t client_device_bytes(struct cistern *c, const struct cistern_memory *memory)
{
	const bool has_fds = memory->kind == CISTERN_MEMORY_CUDA_VMM;
	const uint32_t n_max = has_fds ? WIRE_PART_FDS_MAX : WIRE_PARTS_MAX;
	uint64_t sum = 0;

	if (memory->kind == CISTERN_MEMORY_MEMFD)
		return 0;
	if (!has_fds && memory->kind != CISTERN_MEMORY_CUDA_IPC)
		return client_fail(c, -EINVAL, "unknown kind of memory %u", memory->kind);
	if (!memory->parts || !memory->n_parts || memory->n_parts > n_max)
		return client_fail(c, -EINVAL, "memory of this kind has 1 to %u parts, not %u", n_max,
			memory->parts ? memory->n_parts : 0);
	for (uint32_t i = 0; i < memory->n_parts; i++) {
		if (has_fds && memory->parts[i].fd < 0)
			return client_fail(c, -EINVAL, "part %u has no descriptor", i);
		if (__builtin_add_overflow(sum, memory->parts[i].size_bytes, &sum))
			return client_fail(c, -EINVAL, "the sizes of the parts are out of range");
	}
	if (sum != memory->size_bytes)
		return client_fail(c, -EINVAL, "the parts have %llu bytes together, the memory %llu",
			(unsigned long long)sum, (unsigned long long)memory->size_bytes);
	return (int64_t)(sizeof(struct wire_device_memory) +
			 memory->n_parts * sizeof(struct wire_device_part));
}

void client_device_fill(
	const struct cistern_memory *memory, uint8_t *at, int fds[WIRE_PART_FDS_MAX], uint32_t *n_fds)
{
	struct wire_device_memory head = {.n_parts = memory->n_parts};

	_Static_assert(sizeof head.uuid == sizeof memory->uuid, "travels as it is");
	memcpy(head.uuid, memory->uuid, sizeof head.uuid);
	memcpy(at, &head, sizeof head);
	at += sizeof head;
	*n_fds = 0;
	for (uint32_t i = 0; i < memory->n_parts; i++) {
		const struct cistern_device_part *part = &memory->parts[i];
		struct wire_device_part w = {.address = part->address,
			.offset_bytes = part->offset_bytes,
			.size_bytes = part->size_bytes};

		if (memory->kind == CISTERN_MEMORY_CUDA_VMM) {
			w.allocation_bytes = part->allocation_bytes;
			fds[(*n_fds)++] = part->fd;
		} else {
			memcpy(w.handle, part->handle, sizeof w.handle);
		}
		memcpy(at, &w, sizeof w);
		at += sizeof w;
	}
}

/* ---- events ---- */

int client_wire_events(struct cistern *c, uint32_t id, uint32_t n, uint32_t *wire_id)
{
	if (!n) {
		*wire_id = 0;
		return 0;
	}
	for (uint32_t i = 0; i < c->n_events; i++) {
		const struct client_events *e = &c->events[i];

		if (id >= e->id && id - e->id < e->n && n <= e->n - (id - e->id)) {
			*wire_id = e->wire_id + (id - e->id);
			return 0;
		}
	}
	return client_fail(c, -EINVAL, "%u events from %u on are not registered, or not together", n, id);
}

/* An id for n events behind all others: ids of the engine's are not those of the daemon's after a
 * reconnection. */
static uint32_t next_event_id(const struct cistern *c)
{
	uint32_t id = 1;

	for (uint32_t i = 0; i < c->n_events; i++)
		if (c->events[i].id + c->events[i].n > id)
			id = c->events[i].id + c->events[i].n;
	return id;
}

int cistern_register_events(struct cistern *c, const void *handles, uint32_t n, uint32_t *first_id)
{
	struct wire_register_events *m;
	struct client_events *events;
	const size_t len = sizeof(*m) + (size_t)n * WIRE_HANDLE_BYTES;
	uint32_t wire_id;
	int r;

	if (c->gone)
		return -ENOTCONN;
	if (!handles || n == 0 || n > WIRE_EVENTS_MAX)
		return client_fail(
			c, -EINVAL, "1 to %d events can be registered, not %u", WIRE_EVENTS_MAX, n);
	events = client_grow(c->events, c->n_events, sizeof(events[0]));
	if (!events)
		return client_fail(c, -ENOMEM, "out of memory");
	c->events = events;
	m = calloc(1, len);
	if (!m)
		return client_fail(c, -ENOMEM, "out of memory");
	message_header(m, WIRE_REGISTER_EVENTS, len);
	m->n_events = n;
	memcpy(m + 1, handles, (size_t)n * WIRE_HANDLE_BYTES);
	r = client_ask(c, m, len, NULL, 0, CLIENT_REGISTER_MS, &wire_id);
	if (r < 0) {
		free(m);
		return r;
	}
	c->events[c->n_events] = (struct client_events){
		.id = next_event_id(c), .wire_id = wire_id, .n = n, .message = m, .message_len = len};
	*first_id = c->events[c->n_events++].id;
	return 0;
}

int cistern_unregister_events(struct cistern *c, uint32_t first_id)
{
	struct wire_unregister_events w = {0};
	struct client_events *e = NULL;
	uint32_t id;
	int r;

	/* What is queued names them still. */
	r = cistern_submit(c);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < c->n_events; i++)
		if (c->events[i].id == first_id)
			e = &c->events[i];
	if (!e)
		return client_fail(c, -ENOENT, "no events were registered as %u", first_id);
	message_header(&w, WIRE_UNREGISTER_EVENTS, sizeof(w));
	w.first_id = e->wire_id;
	w.n_events = e->n;
	r = client_ask(c, &w, sizeof(w), NULL, 0, -1, &id);
	if (r < 0)
		return r;
	client_forget_events(e);
	*e = c->events[--c->n_events];
	return 0;
}

void client_forget_events(struct client_events *e)
{
	free(e->message);
}
