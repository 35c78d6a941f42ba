/*
 * IPC handles of the double: 64 bytes that name a descriptor of the process that made them, which another
 * process of the same user opens by way of /proc. Nothing is kept alive by a handle: its maker's death makes
 * it worthless.
 */
#ifndef TESTS_CUDA_DOUBLE_HANDLE_H
#define TESTS_CUDA_DOUBLE_HANDLE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum handle_kind : uint32_t { HANDLE_MEMORY = 0x6d656d43, HANDLE_EVENT = 0x6576656e };

struct handle {
	enum handle_kind kind;
	pid_t pid;
	int fd;
	uint32_t zero;
	uint64_t start; /* of the process */
	uint64_t inode;
	uint64_t offset, len;
};

void handle_make(char out[64], enum handle_kind kind, int fd, uint64_t offset, uint64_t len);
/* false: it is none of this kind. */
bool handle_read(const char in[64], enum handle_kind kind, struct handle *out);
/* A descriptor of the caller's; -1: the maker is gone, or has closed it. */
int handle_open(const struct handle *h);

#endif
