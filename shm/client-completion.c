#include "shm/client.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <time.h>

#include "shm/doorbell.h"

enum {
	LOOK_EVERY_NS = 1000 * 1000, /* how often an idle cistern_poll looks whether the daemon lives */
	SPINS_PER_CLOCK = 32,
};

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void cpu_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

void client_look(struct cistern *c)
{
	struct wire_error error;
	size_t len;
	int r;

	if (c->gone)
		return;
	r = message_receive(c->socket, &error, sizeof(error), &len, NULL, 0);
	if (r == -EAGAIN)
		return;
	if (r == 0 && message_check(&error, len, NULL) == 0 && message_type(&error) == WIRE_ERROR) {
		message_terminate(error.text, sizeof(error.text));
		client_lost(c, false, "the daemon ended the connection: %s", error.text);
	} else if (r == -ENOTCONN) {
		client_lost(c, false, "the daemon has hung up");
	} else {
		client_lost(c, true, "the daemon sent a message that nobody asked for");
	}
}

/* Matches a completion with its request and ends the request with its last one. False: there is no such
 * request, or it did not ask for that much. */
static bool land(struct cistern *c, const struct wire_cqe *cqe, struct cistern_completion *out)
{
	uint32_t index = (uint32_t)cqe->user_data;
	struct flight *f;

	if (index >= c->n_flights)
		return false;
	f = &c->flights[index];
	if (!f->live || f->generation != (uint32_t)(cqe->user_data >> 32))
		return false;
	if (cqe->n_chunks > f->n_chunks || cqe->status > 0)
		return false;
	*out = (struct cistern_completion){
		.user_data = f->user_data,
		.status = cqe->status,
		.flags = cqe->flags & CISTERN_MORE,
		.n_chunks = cqe->n_chunks,
		.n_layers = cqe->n_layers,
		.bytes = cqe->bytes,
	};
	if (cqe->flags & CISTERN_MORE)
		return true;
	if (f->arena_len)
		arena_release(&c->arena, f->arena_offset, f->arena_len);
	f->live = false;
	f->generation++;
	c->idle[c->n_idle++] = index;
	return true;
}

/* Takes up to n completions that are there. */
static int take(struct cistern *c, struct cistern_completion *out, uint32_t n)
{
	uint32_t n_taken = 0;
	int r = 0;

	while (n_taken < n && !c->broken) {
		struct wire_cqe cqe;

		r = ring_pop(&c->cq, &cqe);
		if (r == 0)
			break;
		if (r < 0) {
			client_lost(c, true, "the daemon broke the completion ring");
			break;
		}
		if (!land(c, &cqe, &out[n_taken])) {
			client_lost(c, true, "the daemon sent a completion that fits no request");
			break;
		}
		n_taken++;
	}
	if (ring_release(&c->cq))
		doorbell_ring(c->sq_ringer);
	return (int)n_taken;
}

/* The doorbell may be the first to end when the daemon dies; the socket knows better why. */
static void answer_doorbell(struct cistern *c)
{
	if (doorbell_drain(c->cq_sleeper) == 0)
		return;
	client_look(c);
	client_lost(c, false, "the daemon has hung up");
}

/* Goes to sleep on the ring, so that the doorbell will ring. True: nothing is there, and it will. */
static bool arm(struct cistern *c)
{
	int r = ring_sleep(&c->cq);

	if (r < 0)
		client_lost(c, true, "the daemon broke the completion ring");
	return r == 1;
}

/* A daemon that published and then died has left completions: they come before -ENOTCONN. */
static int take_last(struct cistern *c, struct cistern_completion *out, uint32_t n)
{
	int n_taken = take(c, out, n);

	return n_taken ? n_taken : -ENOTCONN;
}

int cistern_poll(struct cistern *c, struct cistern_completion *out, uint32_t n)
{
	if (n == 0)
		return client_fail(c, -EINVAL, "there is room for no completion");
	for (;;) {
		int n_taken = take(c, out, n);
		int64_t now;

		if (n_taken)
			return n_taken;
		if (c->gone)
			return -ENOTCONN;
		if (c->watched) {
			/* Drained before it is armed: a ring that comes in between is not lost. */
			answer_doorbell(c);
			if (!c->gone && !arm(c))
				continue;
		}
		now = now_ns();
		if (c->looked_ns && now - c->looked_ns < LOOK_EVERY_NS)
			return 0;
		c->looked_ns = now;
		client_look(c);
		if (!c->gone)
			return 0;
		return take_last(c, out, n);
	}
}

/* Polls the ring for spin_us, but not beyond the deadline. */
static int spin(struct cistern *c, struct cistern_completion *out, uint32_t n, int64_t until_ns)
{
	while (!c->gone) {
		int n_taken;

		for (int i = 0; i < SPINS_PER_CLOCK; i++) {
			n_taken = take(c, out, n);
			if (n_taken)
				return n_taken;
			cpu_pause();
		}
		if (now_ns() >= until_ns)
			break;
	}
	return 0;
}

/* Sleeps until the doorbell, the socket or the deadline (-1: none). 0, or -EINTR. */
static int doze(struct cistern *c, int64_t deadline_ns)
{
	struct pollfd fds[2] = {
		{.fd = c->cq_sleeper, .events = POLLIN},
		{.fd = c->socket, .events = POLLIN},
	};
	struct timespec left = {0};
	int r;

	if (deadline_ns >= 0) {
		int64_t ns = deadline_ns - now_ns();

		ns = ns > 0 ? ns : 0;
		left = (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
	}
	r = ppoll(fds, 2, deadline_ns >= 0 ? &left : NULL, NULL);
	if (r < 0 && errno == EINTR)
		return client_fail(c, -EINTR, "interrupted by a signal");
	if (r < 0)
		return client_fail(c, -errno, "cannot wait: %s", strerror(errno));
	if (fds[1].revents)
		client_look(c);
	if (fds[0].revents)
		answer_doorbell(c);
	return 0;
}

int cistern_wait(struct cistern *c, struct cistern_completion *out, uint32_t n, int timeout_ms)
{
	int64_t deadline_ns = -1;
	int n_taken;
	int r = 0;

	if (n == 0)
		return client_fail(c, -EINVAL, "there is room for no completion");
	cistern_submit(c);
	n_taken = take(c, out, n);
	if (n_taken)
		return n_taken;
	if (timeout_ms >= 0)
		deadline_ns = now_ns() + (int64_t)timeout_ms * 1000000;
	if (c->spin_us && timeout_ms) {
		int64_t until_ns = now_ns() + (int64_t)c->spin_us * 1000;

		n_taken =
			spin(c, out, n, deadline_ns >= 0 && deadline_ns < until_ns ? deadline_ns : until_ns);
		if (n_taken)
			return n_taken;
	}
	while (!c->gone) {
		if (arm(c))
			r = doze(c, deadline_ns);
		if (!c->watched)
			ring_wake(&c->cq);
		n_taken = take(c, out, n);
		if (n_taken)
			return n_taken;
		if (r < 0)
			return r;
		if (deadline_ns >= 0 && now_ns() >= deadline_ns && !c->gone)
			return 0;
	}
	return take_last(c, out, n);
}

int cistern_fd(const struct cistern *c)
{
	/* The handle is const for the caller, who sees no change; it lies on the heap, so this is allowed. */
	struct cistern *self = (struct cistern *)c;

	if (!self->watched) {
		self->watched = true;
		arm(self);
	}
	return c->cq_sleeper;
}
