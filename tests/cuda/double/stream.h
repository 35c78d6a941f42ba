/*
 * Streams and events of the driver double. A stream is a thread with a queue: what is put in is done in
 * order, and later than the caller believes if the device is slow (state_delay_us). Streams wait for each
 * other by events only: the default stream is one more stream, so what leans on it waiting for others shows.
 * An event is a pair of counts, records asked for and records done, in memory that other processes can map.
 */
#ifndef TESTS_CUDA_DOUBLE_STREAM_H
#define TESTS_CUDA_DOUBLE_STREAM_H

#include <functional>

#include "kernels/cuda/api.h"

/* Puts work in a stream's queue. CUDA_ERROR_INVALID_HANDLE: there is no such stream. */
CUresult stream_add(CUstream stream, std::function<void()> work);
CUresult stream_wait(CUstream stream);
/* For all that was put in any stream so far. */
void stream_wait_all();
/* Whether the calling thread is a stream's: nothing of the driver may be called there. */
bool stream_is_here();

struct stream_counts {
	unsigned long long n_streams, n_events, n_stale_events;
};
struct stream_counts stream_get_counts();

#endif
