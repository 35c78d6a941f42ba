/*
 * Events. A record takes the next number; the event is complete when the highest number given out is done. A
 * wait is for the highest number at the time of the call. An interprocess event's counts lie in a memfd that
 * the handle names; the owner marks it destroyed, and a use after that is an error here, where the real
 * driver promises nothing.
 */
#include "tests/cuda/double/event.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <set>

#include "tests/cuda/double/entry.h"
#include "tests/cuda/double/handle.h"
#include "tests/cuda/double/state.h"
#include "tests/cuda/double/stream.h"

namespace
{

struct counts {
	std::atomic<uint64_t> asked, done;
	std::atomic<uint32_t> changed; /* a futex */
	std::atomic<uint32_t> destroyed;
	std::atomic<int> recorder; /* the process that asked last */
	std::atomic<uint64_t> recorder_start;
	std::atomic<uint64_t> time_ns; /* when the last was done */
};

/* Lives until the event is destroyed and no stream needs it any more. */
struct place {
	struct counts *counts;
	int fd; /* -1: of this process alone */

	explicit place(int fd_) : counts(nullptr), fd(fd_)
	{
		void *at = mmap(nullptr, sizeof *counts, PROT_READ | PROT_WRITE,
			fd < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
		if (at != MAP_FAILED)
			counts = static_cast<struct counts *>(at);
	}
	~place()
	{
		if (counts)
			munmap(counts, sizeof *counts);
		if (fd >= 0)
			close(fd);
	}
	place(const place &) = delete;
	place &operator=(const place &) = delete;
};

} // namespace

struct CUevent_st {
	std::shared_ptr<struct place> place;
	unsigned flags;
	bool owner;
};

namespace
{

struct registry {
	std::mutex lock;
	std::set<CUevent> events;
	unsigned long long n_stale = 0;
};

struct registry *events()
{
	static struct registry *r = new struct registry;
	return r;
}

uint64_t now_ns()
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
}

uint64_t own_start()
{
	static const uint64_t start = process_start(getpid());
	return start;
}

/* With the registry's lock held. */
CUresult usable(CUevent e)
{
	if (!e || !events()->events.count(e))
		return CUDA_ERROR_INVALID_HANDLE;
	if (e->place->counts->destroyed) {
		events()->n_stale++;
		return CUDA_ERROR_INVALID_HANDLE;
	}
	return CUDA_SUCCESS;
}

void finish(struct counts *c, uint64_t number)
{
	uint64_t done = c->done;

	c->time_ns = now_ns();
	while (done < number && !c->done.compare_exchange_weak(done, number))
		;
	c->changed++;
	syscall(SYS_futex, &c->changed, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

void wait_for(const struct counts *c, uint64_t number)
{
	struct timespec patience = {0, 20000000};

	while (c->done < number) {
		const uint32_t seen = c->changed;
		if (c->done >= number)
			return;
		if (state_orphans_fire() && process_start(c->recorder) != c->recorder_start)
			return;
		syscall(SYS_futex, &c->changed, FUTEX_WAIT, seen, &patience, nullptr, 0);
	}
}

CUevent add(std::shared_ptr<struct place> place, unsigned flags, bool owner)
{
	std::lock_guard<std::mutex> guard(events()->lock);
	CUevent e = new CUevent_st{std::move(place), flags, owner};

	events()->events.insert(e);
	return e;
}

} // namespace

unsigned long long event_count()
{
	std::lock_guard<std::mutex> guard(events()->lock);
	return events()->events.size();
}

unsigned long long event_stale_count()
{
	std::lock_guard<std::mutex> guard(events()->lock);
	return events()->n_stale;
}

CUresult cuEventCreate(CUevent *out, unsigned flags)
{
	ENTRY("cuEventCreate", NEEDS_CONTEXT);
	int fd = -1;

	if (!out || (flags & CU_EVENT_INTERPROCESS && !(flags & CU_EVENT_DISABLE_TIMING)))
		return CUDA_ERROR_INVALID_VALUE;
	if (flags & CU_EVENT_INTERPROCESS) {
		fd = memfd_create("cistern-emulated-event", MFD_CLOEXEC);
		if (fd < 0 || ftruncate(fd, sizeof(struct counts)) != 0)
			return CUDA_ERROR_OPERATING_SYSTEM;
	}
	auto place = std::make_shared<struct place>(fd);
	if (!place->counts)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*out = add(std::move(place), flags, true);
	return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent event)
{
	ENTRY("cuEventDestroy", NEEDS_CONTEXT);
	std::lock_guard<std::mutex> guard(events()->lock);

	if (!event || !events()->events.erase(event))
		return CUDA_ERROR_INVALID_HANDLE;
	if (event->owner)
		event->place->counts->destroyed = 1;
	delete event;
	return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream)
{
	ENTRY("cuEventRecord", NEEDS_CONTEXT);
	std::shared_ptr<struct place> place;
	uint64_t number;
	{
		std::lock_guard<std::mutex> guard(events()->lock);
		const CUresult result = usable(event);
		if (result != CUDA_SUCCESS)
			return result;
		place = event->place;
		place->counts->recorder = getpid();
		place->counts->recorder_start = own_start();
		number = ++place->counts->asked;
	}
	const CUresult result = stream_add(stream, [place, number] { finish(place->counts, number); });
	if (result != CUDA_SUCCESS)
		finish(place->counts, number);
	return result;
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags)
{
	ENTRY("cuStreamWaitEvent", NEEDS_CONTEXT);
	std::shared_ptr<struct place> place;
	{
		std::lock_guard<std::mutex> guard(events()->lock);
		const CUresult result = flags ? CUDA_ERROR_INVALID_VALUE : usable(event);
		if (result != CUDA_SUCCESS)
			return result;
		place = event->place;
	}
	const uint64_t number = place->counts->asked;
	return stream_add(stream, [place, number] { wait_for(place->counts, number); });
}

CUresult cuEventQuery(CUevent event)
{
	ENTRY("cuEventQuery", NEEDS_CONTEXT);
	std::lock_guard<std::mutex> guard(events()->lock);
	const CUresult result = usable(event);

	if (result != CUDA_SUCCESS)
		return result;
	return event->place->counts->done >= event->place->counts->asked ? CUDA_SUCCESS
									 : CUDA_ERROR_NOT_READY;
}

CUresult cuEventSynchronize(CUevent event)
{
	ENTRY("cuEventSynchronize", NEEDS_CONTEXT);
	std::shared_ptr<struct place> place;
	{
		std::lock_guard<std::mutex> guard(events()->lock);
		const CUresult result = usable(event);
		if (result != CUDA_SUCCESS)
			return result;
		place = event->place;
	}
	wait_for(place->counts, place->counts->asked);
	return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float *ms, CUevent start, CUevent end)
{
	ENTRY("cuEventElapsedTime", NEEDS_CONTEXT);
	std::lock_guard<std::mutex> guard(events()->lock);

	if (!ms || usable(start) != CUDA_SUCCESS || usable(end) != CUDA_SUCCESS ||
		(start->flags | end->flags) & CU_EVENT_DISABLE_TIMING)
		return CUDA_ERROR_INVALID_HANDLE;
	const struct counts *a = start->place->counts, *b = end->place->counts;
	if (!a->asked || !b->asked)
		return CUDA_ERROR_INVALID_HANDLE;
	if (a->done < a->asked || b->done < b->asked)
		return CUDA_ERROR_NOT_READY;
	*ms = static_cast<float>(static_cast<double>(b->time_ns) - static_cast<double>(a->time_ns)) * 1e-6f;
	return CUDA_SUCCESS;
}

CUresult cuIpcGetEventHandle(CUipcEventHandle *out, CUevent event)
{
	ENTRY("cuIpcGetEventHandle", NEEDS_CONTEXT);
	std::lock_guard<std::mutex> guard(events()->lock);
	const CUresult result = usable(event);

	if (result != CUDA_SUCCESS)
		return result;
	if (!out || !event->owner || event->place->fd < 0)
		return CUDA_ERROR_INVALID_HANDLE;
	handle_make(out->reserved, HANDLE_EVENT, event->place->fd, 0, 0);
	return CUDA_SUCCESS;
}

CUresult cuIpcOpenEventHandle(CUevent *out, CUipcEventHandle given)
{
	ENTRY("cuIpcOpenEventHandle", NEEDS_CONTEXT);
	struct handle h;
	int fd;

	if (!out || !handle_read(given.reserved, HANDLE_EVENT, &h))
		return CUDA_ERROR_INVALID_VALUE;
	if (h.pid == getpid())
		return CUDA_ERROR_INVALID_CONTEXT;
	fd = handle_open(&h);
	if (fd < 0)
		return CUDA_ERROR_INVALID_HANDLE;
	auto place = std::make_shared<struct place>(fd);
	if (!place->counts)
		return CUDA_ERROR_MAP_FAILED;
	if (place->counts->destroyed)
		return CUDA_ERROR_INVALID_HANDLE;
	*out = add(std::move(place), CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING, false);
	return CUDA_SUCCESS;
}
