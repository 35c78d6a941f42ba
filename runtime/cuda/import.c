#include "runtime/cuda/import.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "kernels/cuda/driver.h"
#include "runtime/cuda/device.h"

enum import_state { OPENING, OPEN, CLOSING };

struct import {
	struct import *next;
	struct import_owner owner;
	bool by_handle;
	uint8_t handle[CU_IPC_HANDLE_SIZE];
	uint64_t owner_address;
	enum import_state state; /* under lock, as are n_refs and the list */
	uint32_t n_refs;
	_Atomic bool stale; /* relaxed: what is stale now was so a moment ago, nothing else hangs on it */
	CUdeviceptr address;
	uint64_t bytes;
	CUmemGenericAllocationHandle memory; /* of a descriptor's */
};

struct imports {
	const struct device *device;
	const struct cuda_driver *driver;
	struct import_limits limits;
	pthread_mutex_t lock;
	pthread_cond_t changed; /* of any import's state */
	struct import *all;
	struct import_stats stats;
};

struct import_owner import_owner_of(pid_t pid)
{
	struct import_owner owner = {.pid = pid};
	char path[64], text[1024];
	unsigned long long start = 0;
	size_t len;
	FILE *f;

	if (pid <= 0)
		return owner;
	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return owner;
	len = fread(text, 1, sizeof text - 1, f);
	fclose(f);
	text[len] = 0;
	/* proc(5): the 22nd field; the second one, a name, may hold anything, up to the last bracket. */
	if (strrchr(text, ')') &&
		sscanf(strrchr(text, ')') + 1,
			" %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
			&start) == 1)
		owner.start = start;
	return owner;
}

struct imports *imports_new(const struct device *d, const struct import_limits *limits)
{
	struct imports *x = calloc(1, sizeof *x);

	if (!x)
		return NULL;
	x->device = d;
	x->driver = device_driver(d);
	x->limits = *limits;
	pthread_mutex_init(&x->lock, NULL);
	pthread_cond_init(&x->changed, NULL);
	return x;
}

struct imports *imports_free(struct imports *x)
{
	if (!x)
		return NULL;
	assert(!x->all);
	pthread_cond_destroy(&x->changed);
	pthread_mutex_destroy(&x->lock);
	free(x);
	return NULL;
}

void imports_get_stats(struct imports *x, struct import_stats *out)
{
	pthread_mutex_lock(&x->lock);
	*out = x->stats;
	pthread_mutex_unlock(&x->lock);
}

static bool same_owner(const struct import_owner *a, const struct import_owner *b)
{
	return a->pid > 0 && a->pid == b->pid && a->start == b->start;
}

/* ---- under the lock ---- */

static void unlist(struct imports *x, struct import *i)
{
	struct import **link = &x->all;

	while (*link != i)
		link = &(*link)->next;
	*link = i->next;
	x->stats.n_allocations--;
	x->stats.bytes -= i->bytes;
}

static struct import *find_handle(struct imports *x, const struct import_source *s)
{
	for (struct import *i = x->all; i; i = i->next)
		if (s->handle && i->by_handle && !atomic_load_explicit(&i->stale, memory_order_relaxed) &&
			same_owner(&i->owner, &s->owner) &&
			memcmp(i->handle, s->handle, sizeof i->handle) == 0)
			return i;
	return NULL;
}

/* Whether an older import of the owner's lies, in the owner, where this one does. What the new one's length
 * is is not known before it is open: that it begins inside the older one says enough, for allocations do not
 * overlap; what begins before and reaches into it is found when the driver refuses. Two
 * descriptors may well be of one allocation, which nothing tells: they are both kept. */
static bool overlaps(const struct import *i, const struct import_source *s)
{
	return (s->handle || i->by_handle) && s->address && i->owner_address &&
	       same_owner(&i->owner, &s->owner) && s->address - i->owner_address < (i->bytes ? i->bytes : 1);
}

/* Marks what the source shows to have been freed. True: some of it is in use still. */
static bool mark_stale(struct imports *x, const struct import_source *s)
{
	bool in_use = false;

	for (struct import *i = x->all; i; i = i->next) {
		if (!overlaps(i, s))
			continue;
		if (!atomic_exchange_explicit(&i->stale, true, memory_order_relaxed)) {
			x->stats.n_stale++;
			log_warning("process %d has freed memory that it had registered", (int)s->owner.pid);
		}
		in_use = true;
	}
	return in_use;
}

/* ---- the driver's part ---- */

static int open_handle(struct imports *x, struct import *i, char *why, size_t why_len)
{
	const struct cuda_driver *cu = x->driver;
	CUipcMemHandle handle;
	CUdeviceptr base;
	size_t len;
	CUresult r;

	memcpy(&handle, i->handle, sizeof handle);
	r = cu->cuIpcOpenMemHandle(&i->address, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
	if (r) {
		const char *name = "unknown";

		cu->cuGetErrorName(r, &name);
		snprintf(why, why_len, "the driver does not open the memory handle: %s", name);
		return r == CUDA_ERROR_OUT_OF_MEMORY    ? -ENOMEM
		       : r == CUDA_ERROR_ALREADY_MAPPED ? -EBUSY
							: -EINVAL;
	}
	/* What the client says of its size proves nothing. */
	r = cu->cuMemGetAddressRange(&base, &len, i->address);
	if (r) {
		cu->cuIpcCloseMemHandle(i->address);
		snprintf(why, why_len, "the driver does not say how large the memory is");
		return device_status(r);
	}
	i->address = base;
	i->bytes = len;
	return 0;
}

static int open_fd(struct imports *x, struct import *i, int fd, uint64_t bytes, char *why, size_t why_len)
{
	const struct cuda_driver *cu = x->driver;
	const CUmemAccessDesc access = {
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device_ordinal(x->device)},
		.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	const char *step = "open the descriptor";
	CUresult r;

	if (!bytes) {
		snprintf(why, why_len, "allocation_bytes is missing");
		return -EINVAL;
	}
	r = cu->cuMemImportFromShareableHandle(
		&i->memory, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
	if (r)
		goto out;
	step = "find room for the memory";
	r = cu->cuMemAddressReserve(&i->address, bytes, 0, 0, 0);
	if (r)
		goto release;
	/* The driver refuses to map more than there is. */
	step = "map as much memory as was announced";
	r = cu->cuMemMap(i->address, bytes, 0, i->memory, 0);
	if (r)
		goto unreserve;
	step = "open the memory for this GPU";
	r = cu->cuMemSetAccess(i->address, bytes, &access, 1);
	if (!r) {
		i->bytes = bytes;
		return 0;
	}
	cu->cuMemUnmap(i->address, bytes);
unreserve:
	cu->cuMemAddressFree(i->address, bytes);
release:
	cu->cuMemRelease(i->memory);
out:
	snprintf(why, why_len, "the driver does not %s", step);
	return r == CUDA_ERROR_OUT_OF_MEMORY ? -ENOMEM : -EINVAL;
}

static void close_now(struct imports *x, const struct import *i)
{
	const struct cuda_driver *cu = x->driver;

	if (i->by_handle) {
		device_status(cu->cuIpcCloseMemHandle(i->address));
		return;
	}
	device_status(cu->cuMemUnmap(i->address, i->bytes));
	device_status(cu->cuMemAddressFree(i->address, i->bytes));
	device_status(cu->cuMemRelease(i->memory));
}

/* ---- the story ---- */

/* Finds it, or enters a new one that is OPENING: *made. Whoever else wants it meanwhile waits for its state.
 */
static int enter(struct imports *x, const struct import_source *s, struct import **out, bool *made, char *why,
	size_t why_len)
{
	struct import *i;

	while ((i = find_handle(x, s)) && i->state != OPEN)
		pthread_cond_wait(&x->changed, &x->lock);
	*made = !i;
	if (i) {
		i->n_refs++;
		*out = i;
		return 0;
	}
	if (mark_stale(x, s)) {
		snprintf(why, why_len,
			"an older allocation at this address is registered still; it is let go of now");
		return -EBUSY;
	}
	if (x->stats.n_allocations >= x->limits.n_allocations) {
		snprintf(why, why_len, "as many allocations are mapped as may be");
		return -ENOSPC;
	}
	i = calloc(1, sizeof *i);
	if (!i)
		return -ENOMEM;
	i->owner = s->owner;
	i->by_handle = s->handle;
	if (s->handle)
		memcpy(i->handle, s->handle, sizeof i->handle);
	i->owner_address = s->address;
	i->n_refs = 1;
	i->next = x->all;
	x->all = i;
	x->stats.n_allocations++;
	*out = i;
	return 0;
}

int import_open(
	struct imports *x, const struct import_source *source, struct import **out, char *why, size_t why_len)
{
	struct import *i = NULL;
	bool made = false, over;
	int r;

	pthread_mutex_lock(&x->lock);
	r = enter(x, source, &i, &made, why, why_len);
	pthread_mutex_unlock(&x->lock);
	if (r || !made) {
		if (!r)
			*out = i;
		return r;
	}
	r = i->by_handle ? open_handle(x, i, why, why_len)
			 : open_fd(x, i, source->fd, source->bytes, why, why_len);
	pthread_mutex_lock(&x->lock);
	over = !r && i->bytes > x->limits.bytes - x->stats.bytes;
	x->stats.bytes += r ? 0 : i->bytes;
	x->stats.n_opened += !r;
	i->state = r || over ? CLOSING : OPEN;
	pthread_mutex_unlock(&x->lock);
	if (over) {
		close_now(x, i);
		snprintf(why, why_len, "more memory would be mapped than may be");
		r = -ENOSPC;
	}
	pthread_mutex_lock(&x->lock);
	if (r)
		unlist(x, i);
	pthread_cond_broadcast(&x->changed);
	pthread_mutex_unlock(&x->lock);
	if (r)
		free(i);
	else
		*out = i;
	return r;
}

struct import *import_close(struct imports *x, struct import *i)
{
	bool last;

	if (!i)
		return NULL;
	pthread_mutex_lock(&x->lock);
	last = --i->n_refs == 0;
	if (last)
		i->state = CLOSING;
	pthread_mutex_unlock(&x->lock);
	if (!last)
		return NULL;
	close_now(x, i);
	pthread_mutex_lock(&x->lock);
	unlist(x, i);
	pthread_cond_broadcast(&x->changed);
	pthread_mutex_unlock(&x->lock);
	free(i);
	return NULL;
}

CUdeviceptr import_address(const struct import *i)
{
	return i->address;
}

uint64_t import_bytes(const struct import *i)
{
	return i->bytes;
}

bool import_is_stale(const struct import *i)
{
	return atomic_load_explicit(&i->stale, memory_order_relaxed);
}

int import_open_event(struct imports *x, const uint8_t handle[CU_IPC_HANDLE_SIZE], CUevent *out)
{
	CUipcEventHandle h;

	memcpy(&h, handle, sizeof h);
	if (x->driver->cuIpcOpenEventHandle(out, h))
		return -EINVAL;
	pthread_mutex_lock(&x->lock);
	x->stats.n_events++;
	pthread_mutex_unlock(&x->lock);
	return 0;
}

void import_close_event(struct imports *x, CUevent event)
{
	device_status(x->driver->cuEventDestroy(event));
	pthread_mutex_lock(&x->lock);
	x->stats.n_events--;
	pthread_mutex_unlock(&x->lock);
}
