#include "tests/cuda/double/handle.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/cuda/double/state.h"

void handle_make(char out[64], enum handle_kind kind, int fd, uint64_t offset, uint64_t len)
{
	static_assert(sizeof(struct handle) <= 64, "a handle has 64 bytes");
	struct stat st = {};
	struct handle h = {};

	fstat(fd, &st);
	h.kind = kind;
	h.pid = getpid();
	h.fd = fd;
	h.start = process_start(h.pid);
	h.inode = st.st_ino;
	h.offset = offset;
	h.len = len;
	memset(out, 0, 64);
	memcpy(out, &h, sizeof h);
}

bool handle_read(const char in[64], enum handle_kind kind, struct handle *out)
{
	memcpy(out, in, sizeof *out);
	return out->kind == kind;
}

int handle_open(const struct handle *h)
{
	struct stat st;
	char path[64];
	int fd;

	if (process_start(h->pid) != h->start)
		return -1;
	snprintf(path, sizeof path, "/proc/%d/fd/%d", h->pid, h->fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -1;
	if (fstat(fd, &st) == 0 && st.st_ino == h->inode)
		return fd;
	close(fd);
	return -1;
}
