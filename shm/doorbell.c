#include "shm/doorbell.h"

#include <errno.h>
#include <sys/socket.h>

int doorbell_new(int *ringer, int *sleeper)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0)
		return -errno;
	*ringer = ends[0];
	*sleeper = ends[1];
	return 0;
}

int doorbell_ring(int ringer)
{
	for (;;) {
		if (send(ringer, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
			return 0;
		/* A full socket is a readable one: the sleeper will wake, which is all that was asked. */
		if (errno == EAGAIN)
			return 0;
		if (errno != EINTR)
			return errno == EPIPE || errno == ECONNRESET ? -ENOTCONN : -errno;
	}
}

int doorbell_drain(int sleeper)
{
	char rings[256];

	/* Bounded, so that a peer that rings without end holds this thread for a moment only. */
	for (int round = 0; round < 16; round++) {
		ssize_t n = recv(sleeper, rings, sizeof(rings), MSG_DONTWAIT);

		if (n == 0)
			return -ENOTCONN;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : errno == ECONNRESET ? -ENOTCONN : -errno;
		if ((size_t)n < sizeof(rings))
			return 0;
	}
	return 0;
}
