#include "base/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fault.h"

/* 1 to 65535, or 0: not a port. */
static in_port_t parse_port(const char *text)
{
	const size_t len = strlen(text);
	const long port = strspn(text, "0123456789") == len && len <= 5 ? strtol(text, NULL, 10) : 0;

	return port <= 65535 ? (in_port_t)port : 0;
}

static int parse_local(const char *path, struct address *a, char *why, size_t why_len)
{
	if (path[0] != '/' || strlen(path) >= sizeof a->local.sun_path)
		return fault_say(-EINVAL, why, why_len,
			"a unix socket's path begins with / and has at most %zu bytes",
			sizeof a->local.sun_path - 1);
	a->local.sun_family = AF_UNIX;
	strcpy(a->local.sun_path, path);
	a->len_bytes = sizeof a->local;
	return 0;
}

int address_parse(const char *text, struct address *out, char *why, size_t why_len)
{
	struct address a = {0};
	struct sockaddr_in *v4 = (struct sockaddr_in *)&a.storage;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&a.storage;
	const char *colon = strrchr(text, ':');
	char host[64];
	in_port_t port;
	int r;

	if (!strncmp(text, "unix:", 5)) {
		r = parse_local(text + 5, &a, why, why_len);
		if (!r)
			*out = a;
		return r;
	}
	port = colon ? parse_port(colon + 1) : 0;
	if (!port || (size_t)(colon - text) >= sizeof host)
		return fault_say(-EINVAL, why, why_len,
			"\"%s\" is neither ADDRESS:PORT (as 127.0.0.1:9464) nor unix:PATH", text);
	snprintf(host, sizeof host, "%.*s", (int)(colon - text), text);
	if (inet_pton(AF_INET, strcmp(host, "localhost") ? host : "127.0.0.1", &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(port);
		a.len_bytes = sizeof *v4;
		r = ntohl(v4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET ? 0 : -EINVAL;
	} else {
		const size_t len = strlen(host);
		const bool bracketed = len > 2 && host[0] == '[' && host[len - 1] == ']';

		if (bracketed)
			host[len - 1] = 0;
		if (!bracketed || inet_pton(AF_INET6, host + 1, &v6->sin6_addr) != 1)
			return fault_say(-EINVAL, why, why_len, "\"%.*s\" is not an IP address",
				(int)(colon - text), text);
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons(port);
		a.len_bytes = sizeof *v6;
		r = IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr) ? 0 : -EINVAL;
	}
	if (r)
		return fault_say(r, why, why_len,
			"%s can be reached from other machines; only loopback addresses are taken", text);
	*out = a;
	return 0;
}

int address_clear(const struct sockaddr_un *local, int type)
{
	struct stat st;
	int fd, r;

	if (lstat(local->sun_path, &st))
		return 0;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	r = connect(fd, (const struct sockaddr *)local, sizeof *local);
	close(fd);
	if (!r)
		return -EADDRINUSE;
	return unlink(local->sun_path) && errno != ENOENT ? -errno : 0;
}

int address_listen(const struct address *a, unsigned mode, int *fd)
{
	const bool local = a->any.sa_family == AF_UNIX;
	int s, r = local ? address_clear(&a->local, SOCK_STREAM) : 0;

	if (r)
		return r;
	s = socket(a->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s < 0)
		return -errno;
	/* A restarted daemon gets its port back although old connections linger. */
	if (!local && setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)))
		goto fail;
	if (bind(s, &a->any, a->len_bytes) || (local && chmod(a->local.sun_path, mode)) || listen(s, 16))
		goto fail;
	*fd = s;
	return 0;
fail:
	r = -errno;
	close(s);
	return r;
}
