#include "shm/message.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Room for more descriptors than we take: what comes over the limit is then seen and closed rather than
 * silently dropped by the kernel. */
enum { CONTROL_FDS = 16 };

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Waits until the socket is ready. deadline_ms is absolute when timeout_ms is positive. */
static int await(int socket, short events, int timeout_ms, int64_t deadline_ms)
{
	struct pollfd p = {.fd = socket, .events = events};

	for (;;) {
		int left_ms = -1;
		int n;

		if (timeout_ms == 0)
			return -EAGAIN;
		if (timeout_ms > 0) {
			int64_t left = deadline_ms - now_ms();

			if (left <= 0)
				return -ETIMEDOUT;
			left_ms = (int)left;
		}
		n = poll(&p, 1, left_ms);
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
}

void message_header(void *message, enum wire_type type, size_t len_bytes)
{
	struct wire_header header = {
		.magic = WIRE_MAGIC,
		.version = WIRE_VERSION,
		.type = (uint16_t)type,
		.len_bytes = (uint32_t)len_bytes,
	};

	memcpy(message, &header, sizeof(header));
}

void message_error(struct wire_error *e, int status, const char *text)
{
	memset(e, 0, sizeof(*e));
	message_header(e, WIRE_ERROR, sizeof(*e));
	e->status = status;
	snprintf(e->text, sizeof(e->text), "%s", text);
}

int message_send(int socket, const void *message, size_t len, const int *fds, uint32_t n_fds, int timeout_ms)
{
	union {
		char bytes[CMSG_SPACE(MESSAGE_FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov = {.iov_base = (void *)message, .iov_len = len};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	int64_t deadline_ms = timeout_ms > 0 ? now_ms() + timeout_ms : 0;

	if (len > WIRE_MESSAGE_MAX)
		return -EMSGSIZE;
	if (n_fds > MESSAGE_FDS_MAX)
		return -EINVAL;
	if (n_fds) {
		struct cmsghdr *c;

		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	}
	for (;;) {
		int r;

		if (sendmsg(socket, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
			return 0;
		if (errno == EINTR)
			continue;
		if (errno == EPIPE || errno == ECONNRESET)
			return -ENOTCONN;
		if (errno != EAGAIN)
			return -errno;
		r = await(socket, POLLOUT, timeout_ms, deadline_ms);
		if (r < 0)
			return r;
	}
}

/* Collects the descriptors of a received message. -EPROTO, with all of them closed, when there are more than
 * MESSAGE_FDS_MAX or the kernel had to leave some out. */
static int collect(struct msghdr *msg, struct message_fds *out)
{
	int r = msg->msg_flags & MSG_CTRUNC ? -EPROTO : 0;

	out->n = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (out->n < MESSAGE_FDS_MAX) {
				out->fds[out->n++] = fd;
			} else {
				close(fd);
				r = -EPROTO;
			}
		}
	}
	if (r < 0)
		message_fds_close(out);
	return r;
}

int message_receive(
	int socket, void *message, size_t size, size_t *len, struct message_fds *fds, int timeout_ms)
{
	union {
		char bytes[CMSG_SPACE(CONTROL_FDS * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct message_fds got = {0};
	int64_t deadline_ms = timeout_ms > 0 ? now_ms() + timeout_ms : 0;

	for (;;) {
		struct iovec iov = {.iov_base = message, .iov_len = size};
		struct msghdr msg = {
			.msg_iov = &iov,
			.msg_iovlen = 1,
			.msg_control = control.bytes,
			.msg_controllen = sizeof(control.bytes),
		};
		ssize_t n = recvmsg(socket, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
		int r;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			r = await(socket, POLLIN, timeout_ms, deadline_ms);
			if (r < 0)
				return r;
			continue;
		}
		if (n < 0)
			return errno == ECONNRESET ? -ENOTCONN : -errno;
		r = collect(&msg, &got);
		if (r == 0 && (msg.msg_flags & MSG_TRUNC))
			r = -EPROTO;
		/* An empty message and the end of the connection look the same; neither has a sequel. */
		if (r == 0 && n == 0)
			r = -ENOTCONN;
		if (r == 0 && fds) {
			*fds = got;
			got.n = 0;
		}
		message_fds_close(&got);
		if (r == 0)
			*len = (size_t)n;
		return r;
	}
}

void message_fds_close(struct message_fds *fds)
{
	for (uint32_t i = 0; i < fds->n; i++)
		if (fds->fds[i] >= 0)
			close(fds->fds[i]);
	fds->n = 0;
}

int message_fds_take(struct message_fds *fds, uint32_t i)
{
	int fd;

	if (i >= fds->n)
		return -1;
	fd = fds->fds[i];
	fds->fds[i] = -1;
	return fd;
}

int message_check(const void *message, size_t len, const char **why)
{
	struct wire_header header = {0};
	const char *fault = NULL;

	if (len >= sizeof(header))
		memcpy(&header, message, sizeof(header));
	if (header.magic != WIRE_MAGIC)
		fault = "not a Cistern message";
	else if (header.len_bytes != len)
		fault = "the length of the message is not what its header says";
	else if (header.type == WIRE_ERROR && len != sizeof(struct wire_error))
		fault = "an error message of the wrong size";
	else if (header.version != WIRE_VERSION && header.type != WIRE_ERROR)
		fault = "another version of the protocol";
	if (!fault)
		return 0;
	if (why)
		*why = fault;
	return -EPROTO;
}

enum wire_type message_type(const void *message)
{
	struct wire_header header;

	memcpy(&header, message, sizeof(header));
	return (enum wire_type)header.type;
}

void message_terminate(char *text, size_t size)
{
	text[size - 1] = 0;
}
