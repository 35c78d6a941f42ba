#include "runtime/store/io.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
	RETRIES_MAX = 1000, /* of one request, before interruptions count as failure */
	CALL_BYTES_MAX = 1 << 30,
	/* A disk behind a queue may well tell of everything it has done at once, and waits while all of it is
	 * checked; so it is asked for more after the first few. Writes follow each other on the disk and are
	 * better handed over together. */
	READS_AT_ONCE = 4,
};
/* The kernel takes no larger piece of memory as one registered buffer. */
static const size_t IO_FIXED_BYTES = 1u << 30;

/* Without these flags completions are run by interrupting the thread wherever it is. Kernels before 6.1 have
 * neither. */
static int make_ring(struct io_uring *ring, uint32_t entries)
{
	int r = io_uring_queue_init(entries, ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);

	return r == -EINVAL ? io_uring_queue_init(entries, ring, 0) : r;
}

static bool register_pool(struct io *io)
{
	size_t n = (io->pool_bytes + IO_FIXED_BYTES - 1) / IO_FIXED_BYTES;
	struct iovec *pieces;
	int r;

	if (n == 0 || n > 16384)
		return false;
	pieces = calloc(n, sizeof *pieces);
	if (!pieces)
		return false;
	for (size_t i = 0; i < n; i++) {
		size_t left = io->pool_bytes - i * IO_FIXED_BYTES;

		pieces[i].iov_base = io->pool_addr + i * IO_FIXED_BYTES;
		pieces[i].iov_len = left < IO_FIXED_BYTES ? left : IO_FIXED_BYTES;
	}
	r = io_uring_register_buffers(&io->ring, pieces, (unsigned)n);
	free(pieces);
	return r == 0;
}

void io_init(struct io *io, uint32_t depth, int wake_fd, void *pool_addr, size_t pool_bytes)
{
	*io = (struct io){.wake_fd = wake_fd, .pool_addr = pool_addr, .pool_bytes = pool_bytes};
	io->ready_tail = &io->ready;
	io->has_ring = make_ring(&io->ring, depth) == 0;
	/* Completions ring the same doorbell as the callers do, so that one read waits for both. (Waiting in
	 * the ring would save a system call where there is nothing to do anyway, and stop a program under
	 * valgrind.) */
	if (io->has_ring && io_uring_register_eventfd(&io->ring, wake_fd) < 0) {
		io_uring_queue_exit(&io->ring);
		io->has_ring = false;
	}
	io->fixed_buffers = io->has_ring && pool_addr && register_pool(io);
	/* Files come and go, so the table begins empty (Linux 5.19). */
	io->fixed_files = io->has_ring && io_uring_register_files_sparse(&io->ring, IO_FILES) == 0;
}

void io_fini(struct io *io)
{
	assert(io->n_in_flight == 0);
	/* The kernel takes down a ring when it gets round to it; files are to be closed now. */
	if (io->fixed_files)
		io_uring_unregister_files(&io->ring);
	io->fixed_files = false;
	if (io->has_ring)
		io_uring_queue_exit(&io->ring);
}

/* Whether a descriptor is registered, which is done the first time it is met. Not a directory's: the ring
 * would keep the lock on it for a moment longer than its owner does. */
static bool is_fixed_file(struct io *io, enum io_kind kind, int fd)
{
	const uint64_t bit = 1ull << (fd & 63);

	if (!io->fixed_files || kind == IO_FSYNC || fd >= IO_FILES)
		return false;
	if (!(io->files[fd / 64] & bit) &&
		io_uring_register_files_update(&io->ring, (unsigned)fd, &fd, 1) == 1)
		io->files[fd / 64] |= bit;
	return io->files[fd / 64] & bit;
}

void io_forget_file(struct io *io, int fd)
{
	const uint64_t bit = 1ull << (fd & 63);
	int none = -1;

	if (!io->fixed_files || fd >= IO_FILES || !(io->files[fd / 64] & bit))
		return;
	/* Were it to stay, the next file of this number would be taken for it. What is queued may name others
	 * by their place, and goes before the table does. */
	if (io_uring_register_files_update(&io->ring, (unsigned)fd, &none, 1) != 1) {
		io_uring_submit(&io->ring);
		io_uring_unregister_files(&io->ring);
		io->fixed_files = false;
	}
	io->files[fd / 64] &= ~bit;
}

/* Which registered piece holds the memory whole, or -1. */
static int fixed_piece(const struct io *io, const char *addr, size_t len)
{
	size_t offset = (size_t)(addr - io->pool_addr);

	if (!io->fixed_buffers || addr < io->pool_addr || offset >= io->pool_bytes ||
		len > io->pool_bytes - offset ||
		offset / IO_FIXED_BYTES != (offset + len - 1) / IO_FIXED_BYTES)
		return -1;
	return (int)(offset / IO_FIXED_BYTES);
}

static struct io_uring_sqe *take_sqe(struct io *io)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);

	while (!sqe) {
		io_uring_submit(&io->ring);
		sqe = io_uring_get_sqe(&io->ring);
	}
	return sqe;
}

static void queue(struct io *io, struct io_request *r)
{
	char *addr = (char *)r->data + r->n_done;
	size_t left = r->len - r->n_done;
	unsigned len = (unsigned)(left < CALL_BYTES_MAX ? left : CALL_BYTES_MAX);
	uint64_t offset = r->offset + r->n_done;
	struct io_uring_sqe *sqe;
	int piece;

	if (!io->has_ring) {
		r->next = NULL;
		*io->ready_tail = r;
		io->ready_tail = &r->next;
		return;
	}
	sqe = take_sqe(io);
	piece = len ? fixed_piece(io, addr, len) : -1;
	switch (r->kind) {
	case IO_READ:
		if (piece >= 0)
			io_uring_prep_read_fixed(sqe, r->fd, addr, len, offset, piece);
		else
			io_uring_prep_read(sqe, r->fd, addr, len, offset);
		break;
	case IO_WRITE:
		if (piece >= 0)
			io_uring_prep_write_fixed(sqe, r->fd, addr, len, offset, piece);
		else
			io_uring_prep_write(sqe, r->fd, addr, len, offset);
		break;
	case IO_FDATASYNC: io_uring_prep_fsync(sqe, r->fd, IORING_FSYNC_DATASYNC); break;
	case IO_FSYNC: io_uring_prep_fsync(sqe, r->fd, 0); break;
	}
	if (is_fixed_file(io, r->kind, r->fd))
		sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data(sqe, r);
}

void io_start(struct io *io, struct io_request *r)
{
	r->n_done = 0;
	r->n_retries = 0;
	io->n_in_flight++;
	queue(io, r);
}

static void finish(struct io *io, struct io_request *r, int status)
{
	io->n_in_flight--;
	r->done(r, status);
}

/* One call for r has come back with result, as from the system call. */
static void take_result(struct io *io, struct io_request *r, int result)
{
	bool transfer = r->kind == IO_READ || r->kind == IO_WRITE;

	if ((result == -EINTR || result == -EAGAIN) && r->n_retries++ < RETRIES_MAX) {
		queue(io, r);
	} else if (result < 0) {
		finish(io, r, result);
	} else if (!transfer) {
		finish(io, r, 0);
	} else if (result == 0) {
		/* A write that gets nowhere and gives no reason would be repeated for ever. */
		finish(io, r, r->kind == IO_READ || r->n_done == r->len ? 0 : -EIO);
	} else {
		r->n_done += (size_t)result;
		if (r->n_done < r->len)
			queue(io, r);
		else
			finish(io, r, 0);
	}
}

static int call(const struct io_request *r)
{
	char *addr = (char *)r->data + r->n_done;
	size_t left = r->len - r->n_done, len = left < CALL_BYTES_MAX ? left : CALL_BYTES_MAX;
	off_t offset = (off_t)(r->offset + r->n_done);
	ssize_t n = 0;

	switch (r->kind) {
	case IO_READ: n = pread(r->fd, addr, len, offset); break;
	case IO_WRITE: n = pwrite(r->fd, addr, len, offset); break;
	case IO_FDATASYNC: n = fdatasync(r->fd); break;
	case IO_FSYNC: n = fsync(r->fd); break;
	}
	return n < 0 ? -errno : (int)n;
}

static void carry_out_first(struct io *io)
{
	struct io_request *r = io->ready;

	io->ready = r->next;
	if (!io->ready)
		io->ready_tail = &io->ready;
	take_result(io, r, call(r));
}

/* Returns whether any call has come back. */
static int take_completions(struct io *io)
{
	struct io_uring_cqe *cqe;
	int n = 0, n_reads = 0, r = io_uring_submit_and_get_events(&io->ring);

	/* EBUSY: completions have piled up, and are taken now. */
	if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY)
		return r;
	/* One at a time, since done may queue more. */
	while (n_reads < READS_AT_ONCE && io_uring_peek_cqe(&io->ring, &cqe) == 0) {
		struct io_request *request = io_uring_cqe_get_data(cqe);
		int result = cqe->res;

		io_uring_cqe_seen(&io->ring, cqe);
		n_reads += request->kind == IO_READ;
		take_result(io, request, result);
		n++;
	}
	return n;
}

void io_submit(struct io *io)
{
	/* What cannot be handed over now stays queued. */
	if (io->has_ring && io_uring_sq_ready(&io->ring))
		io_uring_submit(&io->ring);
}

int io_poll(struct io *io)
{
	return take_completions(io);
}

int io_wait(struct io *io)
{
	uint64_t value;
	int r;

	if (io->has_ring) {
		r = take_completions(io);
		if (r)
			return r < 0 ? r : 0;
	} else if (io->ready) {
		carry_out_first(io);
		return 0;
	}
	if (read(io->wake_fd, &value, sizeof value) < 0 && errno != EINTR)
		return -errno;
	r = io->has_ring ? take_completions(io) : 0;
	return r < 0 ? r : 0;
}
