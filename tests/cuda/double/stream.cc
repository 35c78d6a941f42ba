#include "tests/cuda/double/stream.h"

#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "tests/cuda/double/entry.h"
#include "tests/cuda/double/event.h"
#include "tests/cuda/double/fault.h"
#include "tests/cuda/double/state.h"

struct CUstream_st {
	std::mutex lock;
	std::condition_variable changed;
	std::deque<std::function<void()>> queue;
	uint64_t n_added = 0, n_done = 0;
	unsigned n_waiters = 0; /* it stays while there are any */
	bool leaving = false;   /* destroyed: ends when the queue is empty */
	int priority = 0;
};

namespace
{

enum { PRIORITY_LEAST = 0, PRIORITY_GREATEST = -5 };

/* Never destroyed, as the streams' threads run to the end of the process. */
struct registry {
	std::mutex lock;
	std::set<CUstream> streams;
	CUstream default_stream = nullptr;
};

struct registry *streams()
{
	static struct registry *r = new struct registry;
	return r;
}

thread_local bool is_stream;

void run(CUstream s)
{
	is_stream = true;
	std::unique_lock<std::mutex> guard(s->lock);
	for (;;) {
		s->changed.wait(guard, [s] { return !s->queue.empty() || s->leaving; });
		if (s->queue.empty())
			break;
		std::function<void()> work = std::move(s->queue.front());
		s->queue.pop_front();
		guard.unlock();
		if (const unsigned delay_us = state_delay_us())
			usleep(delay_us);
		fault_arm();
		work();
		work = nullptr;
		/* Running kernels has overwritten what is thread-local here: see simt.cc. */
		is_stream = true;
		guard.lock();
		s->n_done++;
		s->changed.notify_all();
	}
	s->changed.wait(guard, [s] { return s->n_waiters == 0; });
	guard.unlock();
	delete s;
}

CUstream begin(int priority)
{
	CUstream s = new CUstream_st;

	s->priority = priority;
	std::thread(run, s).detach();
	return s;
}

/* With the registry's lock held: a stream's owner may destroy it in another thread. */
CUstream find(CUstream stream)
{
	struct registry *r = streams();

	if (!stream) {
		if (!r->default_stream)
			r->default_stream = begin(0);
		return r->default_stream;
	}
	return r->streams.count(stream) ? stream : nullptr;
}

} // namespace

CUresult stream_add(CUstream stream, std::function<void()> work)
{
	std::lock_guard<std::mutex> registry_guard(streams()->lock);
	CUstream s = find(stream);

	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	std::lock_guard<std::mutex> guard(s->lock);
	s->queue.push_back(std::move(work));
	s->n_added++;
	s->changed.notify_all();
	return CUDA_SUCCESS;
}

CUresult stream_wait(CUstream stream)
{
	std::unique_lock<std::mutex> registry_guard(streams()->lock);
	CUstream s = find(stream);

	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	std::unique_lock<std::mutex> guard(s->lock);
	const uint64_t until = s->n_added;
	s->n_waiters++;
	registry_guard.unlock();
	s->changed.wait(guard, [s, until] { return s->n_done >= until; });
	s->n_waiters--;
	s->changed.notify_all();
	return CUDA_SUCCESS;
}

void stream_wait_all()
{
	std::vector<CUstream> all;
	{
		std::lock_guard<std::mutex> guard(streams()->lock);
		all.assign(streams()->streams.begin(), streams()->streams.end());
		if (streams()->default_stream)
			all.push_back(nullptr);
	}
	for (CUstream s : all)
		stream_wait(s);
}

bool stream_is_here()
{
	return is_stream;
}

struct stream_counts stream_get_counts()
{
	std::lock_guard<std::mutex> guard(streams()->lock);
	return {streams()->streams.size(), event_count(), event_stale_count()};
}

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
	ENTRY("cuCtxGetStreamPriorityRange", NEEDS_CONTEXT);
	if (least)
		*least = PRIORITY_LEAST;
	if (greatest)
		*greatest = PRIORITY_GREATEST;
	return CUDA_SUCCESS;
}

CUresult cuStreamCreateWithPriority(CUstream *out, unsigned flags, int priority)
{
	ENTRY("cuStreamCreateWithPriority", NEEDS_CONTEXT);
	if (!out || flags & ~static_cast<unsigned>(CU_STREAM_NON_BLOCKING))
		return CUDA_ERROR_INVALID_VALUE;
	CUstream s = begin(priority);
	std::lock_guard<std::mutex> guard(streams()->lock);
	streams()->streams.insert(s);
	*out = s;
	return CUDA_SUCCESS;
}

CUresult cuStreamDestroy_v2(CUstream stream)
{
	ENTRY("cuStreamDestroy", NEEDS_CONTEXT);
	std::lock_guard<std::mutex> registry_guard(streams()->lock);
	if (!stream || !streams()->streams.erase(stream))
		return CUDA_ERROR_INVALID_HANDLE;
	std::lock_guard<std::mutex> guard(stream->lock);
	stream->leaving = true;
	stream->changed.notify_all();
	return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream)
{
	ENTRY("cuStreamSynchronize", NEEDS_CONTEXT);
	return stream_wait(stream);
}

CUresult cuStreamQuery(CUstream stream)
{
	ENTRY("cuStreamQuery", NEEDS_CONTEXT);
	std::lock_guard<std::mutex> registry_guard(streams()->lock);
	CUstream s = find(stream);
	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	std::lock_guard<std::mutex> guard(s->lock);
	return s->n_done == s->n_added ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn fn, void *arg)
{
	ENTRY("cuLaunchHostFunc", NEEDS_CONTEXT);
	if (!fn)
		return CUDA_ERROR_INVALID_VALUE;
	return stream_add(stream, [fn, arg] { fn(arg); });
}
