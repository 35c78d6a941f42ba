#include "tests/fuzz/live-session.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/fuzz/fuzz.h"

static struct daemon *daemon_here;
static struct config config;

static void end_daemon(void)
{
	daemon_fini(daemon_here);
	free(daemon_here);
	daemon_here = NULL;
}

struct daemon *live_daemon(void)
{
	if (daemon_here)
		return daemon_here;
	log_set_level(LOG_LEVEL_ERROR);
	config_init(&config);
	snprintf(config.socket, sizeof config.socket, "/tmp/fuzz-%d.sock", (int)getpid());
	config.pool_bytes = 4 << 20;
	config.workers = 1;
	daemon_here = calloc(1, sizeof *daemon_here);
	REQUIRE(daemon_here && daemon_init(daemon_here, &config) == 0);
	atexit(end_daemon);
	return daemon_here;
}

void live_open(struct live *l)
{
	struct daemon *d = live_daemon();
	int ends[2];

	REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
	l->socket = ends[0];
	l->session = session_new(d, ends[1], 1);
	REQUIRE(l->session);
}

/* One turn of what the daemon's loop does for a session. */
static void turn(struct session *s)
{
	struct daemon *d = live_daemon();
	struct pollfd p = {.fd = workers_fd(d->workers), .events = POLLIN};

	if (workers_n_busy(d->workers) && poll(&p, 1, 1000) > 0)
		workers_reap(d->workers);
	cache_reap(d->cache);
	while (d->dirty) {
		struct session *dirty = d->dirty;

		d->dirty = dirty->next_dirty;
		dirty->dirty = false;
		session_publish(dirty);
	}
	(void)s;
}

void live_run(struct live *l)
{
	struct session *s = l->session;

	for (int i = 0; i < 1000; i++) {
		const uint32_t n = session_consume(s, 64);

		turn(s);
		if (!n && !s->n_requests)
			break;
	}
}

void live_close(struct live *l)
{
	struct session *s = l->session;

	session_close(s, "over");
	for (int i = 0; s->n_requests && i < 10000; i++)
		turn(s);
	REQUIRE(!s->n_requests);
	turn(s);
	session_free(s);
	close(l->socket);
	l->session = NULL;
}

void live_send(struct live *l, const void *data, size_t len, const int *fds, uint32_t n_fds)
{
	if (!l->session->closed && message_send(l->socket, data, len, fds, n_fds, 0) == 0)
		session_receive(l->session);
}

size_t live_answer(struct live *l, void *out, size_t room, struct message_fds *fds)
{
	size_t len = 0;

	return message_receive(l->socket, out, room, &len, fds, 0) ? 0 : len;
}
