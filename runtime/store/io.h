/*
 * Reads, writes and syncs in flight: one io_uring, or, where the system allows none (a container's filter),
 * plain system calls one after the other. Belongs to one thread, which makes it, feeds it and waits in it;
 * done functions are called there, from io_wait only. Short transfers are carried on with and interruptions
 * repeated here, so a request ends once, whole or with an error.
 */
#ifndef RUNTIME_STORE_IO_H
#define RUNTIME_STORE_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <liburing.h>

enum { IO_FILES = 1024 }; /* descriptors from there on are not registered */

enum io_kind { IO_READ = 1, IO_WRITE = 2, IO_FDATASYNC = 3, IO_FSYNC = 4 };

/* Owned by the caller, lent from io_start to the call of done, which may start it again. */
struct io_request {
	enum io_kind kind;
	int fd;
	void *data;
	size_t len;
	uint64_t offset;
	/* status: 0 or -errno. A read that meets the end of the file ends with 0 and n_done < len. */
	void (*done)(struct io_request *r, int status);
	void *user;

	size_t n_done;
	uint32_t n_retries;
	struct io_request *next;
};

struct io {
	bool has_ring;
	bool fixed_buffers;
	bool fixed_files;
	struct io_uring ring;
	uint64_t files[IO_FILES / 64]; /* bit by descriptor: it is registered, in the place of its number */
	char *pool_addr;               /* registered in pieces of IO_FIXED_BYTES */
	size_t pool_bytes;
	int wake_fd;
	uint32_t n_in_flight;
	struct io_request *ready, **ready_tail; /* without a ring: started, to be carried out in io_wait */
};

/* depth: how many requests are in flight at most. wake_fd: a blocking eventfd, the caller's; io_wait
 * reads it.
 * pool_addr: memory that most buffers lie in, to be registered; NULL for none. What cannot be had is done
 * without: see has_ring, fixed_buffers and fixed_files. Blocks while memory is registered. */
void io_init(struct io *io, uint32_t depth, int wake_fd, void *pool_addr, size_t pool_bytes);
/* Nothing may be in flight. */
void io_fini(struct io *io);

/* Queues a request; nothing is called back before io_wait. */
void io_start(struct io *io, struct io_request *r);

/* To be called before a descriptor that requests named is closed. Fine for others, and before io_init and
 * after io_fini. */
void io_forget_file(struct io *io, int fd);

/* Hands over what was queued. With a ring: else it is carried out in io_wait. */
void io_submit(struct io *io);
/* The same, and calls done for what has ended, without waiting. How many that were, or -errno as io_wait.
 * With a ring only. */
int io_poll(struct io *io);
/* Hands over what was queued, waits until a request has ended or wake_fd was written to, and calls done for
 * each that ended; may come back for nothing. A write to wake_fd may be noticed late, when requests end all
 * the time. Without a ring one request is carried out, or, if there is none, wake_fd waited for. -errno: the
 * ring has failed, and nothing that is in flight can be said to have ended. */
int io_wait(struct io *io);

#endif
