/*
 * Where to listen for watchers of this machine alone: a TCP port on a loopback address, or a unix socket.
 * Text to socket address, and to a listening socket. Pure but for address_listen; any thread.
 */
#ifndef BASE_ADDRESS_H
#define BASE_ADDRESS_H

#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

struct address {
	union {
		struct sockaddr any;
		struct sockaddr_un local;
		struct sockaddr_storage storage;
	};
	socklen_t len_bytes;
};

/* "127.0.0.1:9464", "[::1]:9464", "localhost:9464" (the first of these) or "unix:/a/path". 0, or -EINVAL with
 * a sentence in why: an address of another machine's reach among the reasons. */
int address_parse(const char *text, struct address *out, char *why, size_t why_len);

/* Removes a unix socket's file (of SOCK_STREAM or SOCK_SEQPACKET) that nobody listens on, as a process that
 * was killed leaves it. 0 also when there is none; -EADDRINUSE: somebody listens; -EEXIST: it is no socket;
 * -errno. */
int address_clear(const struct sockaddr_un *local, int type);

/* A socket bound to it and listening, close-on-exec, the caller's. A unix socket's file that nobody listens
 * on is replaced; mode is for that file. -EADDRINUSE, -EEXIST (a file that is no socket); -errno. */
int address_listen(const struct address *a, unsigned mode, int *fd);

#endif
