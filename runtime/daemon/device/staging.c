#include "runtime/daemon/device/staging.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/log.h"
#include "kernels/cuda/driver.h"
#include "runtime/cuda/device.h"
#include "runtime/daemon/device/lane.h"
#include "runtime/stats/board.h"

enum {
	ROUND_BYTES = 64 << 10, /* sizes are rounded up to this, so that slots serve again */
	IDLE_MS = 5000,
	PAUSE_FIRST_MS = 100,
	PAUSE_LAST_MS = 5000,
};

/* A slot that is being made or freed. */
struct making {
	struct lane_task task;
	struct staging *staging;
	struct staging_slot *slot; /* NULL: it could not be made */
	size_t bytes;
};

struct staging {
	struct lane *lane;
	uint64_t limit_bytes;
	uint64_t bytes; /* of slots that there are, or are being made */
	uint64_t freeing_bytes;
	uint64_t lent_bytes; /* of those in use */
	size_t n_slots, n_waiting;
	uint64_t n_refused;
	struct staging_slot *idle;               /* the last given first */
	struct staging_wait *waits, **waits_end; /* in order of arrival */
	size_t n_making;                         /* tasks on the lane */
	bool serving;
	uint64_t used_ms; /* when a slot was last taken or given */
	uint64_t paused_until_ms;
	uint32_t pause_ms;
	struct {
		const void *owner;
		uint64_t bytes;
	} * shares; /* of owners that have slots now */
	size_t n_shares, shares_size;
};

static uint64_t now_ms(void)
{
	return board_now_ns() / 1000000;
}

/* ---- on the lane ---- */

static void unmake(const struct cuda_driver *cu, struct staging_slot *slot)
{
	if (slot->landed)
		cu->cuEventDestroy(slot->landed);
	if (slot->reached)
		cu->cuEventDestroy(slot->reached);
	if (slot->host)
		cu->cuMemFreeHost(slot->host);
	if (slot->device)
		cu->cuMemFree(slot->device);
	free(slot);
}

static int make(struct lane_task *t)
{
	struct making *m = (struct making *)t;
	struct staging_slot *slot = calloc(1, sizeof *slot);
	const struct cuda_driver *cu = device_driver(lane_device(t->lane));
	void *host = NULL;

	if (!slot)
		return -ENOMEM;
	slot->bytes = m->bytes;
	if (cu->cuMemAlloc(&slot->device, slot->bytes))
		slot->device = 0;
	else if (cu->cuMemHostAlloc(&host, slot->bytes, CU_MEMHOSTALLOC_PORTABLE))
		host = NULL;
	slot->host = host;
	if (slot->host && cu->cuEventCreate(&slot->reached, CU_EVENT_DISABLE_TIMING))
		slot->reached = NULL;
	if (slot->reached && cu->cuEventCreate(&slot->landed, CU_EVENT_DISABLE_TIMING))
		slot->landed = NULL;
	if (!slot->landed) {
		unmake(cu, slot);
		return -ENOSPC;
	}
	m->slot = slot;
	return 0;
}

static int take_down(struct lane_task *t)
{
	struct making *m = (struct making *)t;

	unmake(device_driver(lane_device(t->lane)), m->slot);
	return 0;
}

/* ---- shares ---- */

static uint64_t *share_of(struct staging *s, const void *owner)
{
	for (size_t i = 0; i < s->n_shares; i++)
		if (s->shares[i].owner == owner)
			return &s->shares[i].bytes;
	return NULL;
}

static bool may_have(struct staging *s, const void *owner, size_t bytes)
{
	const uint64_t *share = share_of(s, owner);

	return (share ? *share : 0) + bytes <= staging_largest(s);
}

static int lend(struct staging *s, struct staging_slot *slot, const void *owner)
{
	uint64_t *share = share_of(s, owner);

	if (!share && s->n_shares == s->shares_size) {
		const size_t size = s->shares_size ? 2 * s->shares_size : 16;
		void *more = reallocarray(s->shares, size, sizeof *s->shares);

		if (!more)
			return -ENOMEM;
		s->shares = more;
		s->shares_size = size;
	}
	if (!share) {
		s->shares[s->n_shares].owner = owner;
		s->shares[s->n_shares].bytes = 0;
		share = &s->shares[s->n_shares++].bytes;
	}
	*share += slot->bytes;
	slot->owner = owner;
	s->lent_bytes += slot->bytes;
	return 0;
}

/* ---- slots ---- */

static size_t rounded(size_t bytes)
{
	return (bytes + ROUND_BYTES - 1) / ROUND_BYTES * ROUND_BYTES;
}

/* The smallest idle slot that is large enough, and not wastefully large. */
static struct staging_slot *take_idle(struct staging *s, size_t bytes)
{
	struct staging_slot **best = NULL, *slot;

	for (struct staging_slot **link = &s->idle; *link; link = &(*link)->next)
		if ((*link)->bytes >= bytes && (*link)->bytes <= 2 * bytes &&
			(!best || (*link)->bytes < (*best)->bytes))
			best = link;
	if (!best)
		return NULL;
	slot = *best;
	*best = slot->next;
	slot->next = NULL;
	return slot;
}

static void serve(struct staging *s);

static void taken_down(struct lane_task *t)
{
	struct making *m = (struct making *)t;
	struct staging *s = m->staging;

	s->n_making--;
	s->freeing_bytes -= m->bytes;
	free(m);
	serve(s);
}

static void free_slot(struct staging *s, struct staging_slot *slot)
{
	struct making *m = calloc(1, sizeof *m);

	if (!m) {
		/* It stays for now. */
		slot->next = s->idle;
		s->idle = slot;
		return;
	}
	m->task.run = take_down;
	m->task.done = taken_down;
	m->task.what = "free staging memory";
	m->staging = s;
	m->slot = slot;
	m->bytes = slot->bytes;
	s->n_making++;
	s->n_slots--;
	s->bytes -= slot->bytes;
	s->freeing_bytes += slot->bytes;
	lane_submit(s->lane, &m->task);
}

static void made(struct lane_task *t)
{
	struct making *m = (struct making *)t;
	struct staging *s = m->staging;

	s->n_making--;
	if (m->slot) {
		m->slot->next = s->idle;
		s->idle = m->slot;
		s->n_slots++;
		s->pause_ms = 0;
	} else {
		s->bytes -= m->bytes;
		s->pause_ms = !s->pause_ms                      ? PAUSE_FIRST_MS
			      : s->pause_ms < PAUSE_LAST_MS / 2 ? 2 * s->pause_ms
								: PAUSE_LAST_MS;
		s->paused_until_ms = now_ms() + s->pause_ms;
		log_warning("device: no memory for staging (%zu KiB of it): asked again in %u ms",
			m->bytes >> 10, s->pause_ms);
	}
	free(m);
	serve(s);
}

static void start_making(struct staging *s, size_t bytes)
{
	const size_t size = rounded(bytes);
	struct making *m;

	if (now_ms() < s->paused_until_ms)
		return;
	/* Slots of sizes that nobody wants now make room. What is freed first is freed first on the lane too,
	 * so that the limit holds at every moment. */
	while (s->bytes + size > s->limit_bytes && s->idle) {
		struct staging_slot *slot = s->idle;
		const uint64_t before = s->bytes;

		s->idle = slot->next;
		free_slot(s, slot);
		if (s->bytes == before)
			return;
	}
	m = s->bytes + size <= s->limit_bytes ? calloc(1, sizeof *m) : NULL;
	if (!m)
		return;
	m->task.run = make;
	m->task.done = made;
	m->task.what = "allocate staging memory";
	m->staging = s;
	m->bytes = size;
	s->n_making++;
	s->bytes += size;
	lane_submit(s->lane, &m->task);
}

static void unlink_wait(struct staging *s, struct staging_wait **link)
{
	*link = (*link)->next;
	if (!*link)
		s->waits_end = link;
	s->n_waiting--;
}

/* Serves one that waits and can be served, in order of arrival; has made what others need. */
static bool serve_one(struct staging *s)
{
	size_t n_needed = 0;

	for (struct staging_wait **link = &s->waits; *link; link = &(*link)->next) {
		struct staging_wait *w = *link;
		struct staging_slot *slot;

		if (!may_have(s, w->owner, w->bytes))
			continue;
		slot = take_idle(s, w->bytes);
		if (!slot) {
			if (++n_needed > s->n_making)
				start_making(s, w->bytes);
			continue;
		}
		unlink_wait(s, link);
		if (lend(s, slot, w->owner)) {
			slot->next = s->idle;
			s->idle = slot;
			w->fn(w, NULL, -ENOMEM);
		} else {
			w->fn(w, slot, 0);
		}
		return true;
	}
	return false;
}

static void serve(struct staging *s)
{
	/* Who is served may want another one, or give one: the outer call goes on. */
	if (s->serving)
		return;
	s->serving = true;
	for (;;) {
		struct staging_wait *w = s->waits;

		if (serve_one(s))
			continue;
		/* Nothing will come back by itself. */
		if (!w || s->lent_bytes || s->n_making)
			break;
		unlink_wait(s, &s->waits);
		s->n_refused++;
		w->fn(w, NULL, -ENOSPC);
	}
	s->serving = false;
}

/* ---- public ---- */

int staging_new(struct lanes *lanes, uint64_t limit_bytes, struct staging **out)
{
	struct staging *s = calloc(1, sizeof *s);
	int r;

	if (!s)
		return -ENOMEM;
	s->limit_bytes = limit_bytes;
	s->waits_end = &s->waits;
	r = lane_new(lanes, "staging", &s->lane);
	if (r)
		free(s);
	else
		*out = s;
	return r;
}

static void end(struct staging *s)
{
	lane_close(s->lane);
	free(s->shares);
	free(s);
}

/* A task that has not begun when its lane closes is not carried out: the lane closes with the last one's
 * return. */
static void last_taken_down(struct lane_task *t)
{
	struct making *m = (struct making *)t;
	struct staging *s = m->staging;

	free(m);
	if (!--s->n_making)
		end(s);
}

struct staging *staging_free(struct staging *s)
{
	if (!s)
		return NULL;
	assert(!s->waits && !s->lent_bytes && !s->n_making);
	while (s->idle) {
		struct making *m = calloc(1, sizeof *m);
		struct staging_slot *slot = s->idle;

		s->idle = slot->next;
		if (!m)
			continue; /* the process is about to end, and the driver has it all back then */
		m->task.run = take_down;
		m->task.done = last_taken_down;
		m->task.what = "free staging memory";
		m->staging = s;
		m->slot = slot;
		s->n_making++;
		lane_submit(s->lane, &m->task);
	}
	if (!s->n_making)
		end(s);
	return NULL;
}

size_t staging_n_busy(const struct staging *s)
{
	return s->n_making;
}

uint64_t staging_largest(const struct staging *s)
{
	return s->limit_bytes / 2;
}

bool staging_fits(const struct staging *s, size_t bytes)
{
	return rounded(bytes) <= staging_largest(s);
}

void staging_want(struct staging *s, struct staging_wait *w)
{
	w->next = NULL;
	w->bytes = rounded(w->bytes);
	if (w->bytes > staging_largest(s)) {
		s->n_refused++;
		w->fn(w, NULL, -ENOSPC);
		return;
	}
	*s->waits_end = w;
	s->waits_end = &w->next;
	s->n_waiting++;
	s->used_ms = now_ms();
	serve(s);
}

void staging_cancel(struct staging *s, const void *owner)
{
	struct staging_wait **link = &s->waits;

	while (*link) {
		struct staging_wait *w = *link;

		if (w->owner != owner) {
			link = &w->next;
			continue;
		}
		unlink_wait(s, link);
		w->fn(w, NULL, -ECANCELED);
		link = &s->waits; /* which fn may have changed */
	}
}

void staging_give(struct staging *s, struct staging_slot *slot)
{
	for (size_t i = 0; i < s->n_shares; i++) {
		if (s->shares[i].owner != slot->owner)
			continue;
		s->shares[i].bytes -= slot->bytes;
		if (!s->shares[i].bytes)
			s->shares[i] = s->shares[--s->n_shares];
		break;
	}
	s->lent_bytes -= slot->bytes;
	s->used_ms = now_ms();
	slot->owner = NULL;
	slot->next = s->idle;
	s->idle = slot;
	serve(s);
}

int staging_tick(struct staging *s)
{
	const uint64_t now = now_ms();

	if (!s->idle)
		return -1;
	if (now < s->used_ms + IDLE_MS)
		return (int)(s->used_ms + IDLE_MS - now);
	while (s->idle) {
		struct staging_slot *slot = s->idle;

		s->idle = slot->next;
		free_slot(s, slot);
		if (s->idle == slot)
			return IDLE_MS;
	}
	return -1;
}

uint64_t staging_bytes(const struct staging *s)
{
	return s->bytes + s->freeing_bytes;
}

json_t *staging_status(const struct staging *s)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "limit_bytes", (json_int_t)s->limit_bytes, "bytes",
		(json_int_t)staging_bytes(s), "lent_bytes", (json_int_t)s->lent_bytes, "slots",
		(json_int_t)s->n_slots, "waiting", (json_int_t)s->n_waiting, "refused",
		(json_int_t)s->n_refused);
}
