#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench-gpu/bench-gpu.h"

enum { SPANS_MAX = 8192 };

/* One piece of work on a stream, between two events. */
struct span {
	const char *name;
	CUevent start, end;
};

/* What is measured now: the driver's table has no place for more than a function. */
static struct {
	const struct device *device;
	struct cuda_driver *driver;
	struct cuda_driver real;
	struct span *spans;
	size_t n;
	bool full;
} now;

static struct span *span_begin(const char *name, CUstream stream)
{
	struct span *s = &now.spans[now.n];

	if (now.n == SPANS_MAX) {
		now.full = true;
		return NULL;
	}
	*s = (struct span){.name = name};
	if (now.real.cuEventCreate(&s->start, CU_EVENT_DEFAULT) != CUDA_SUCCESS)
		return NULL;
	if (now.real.cuEventCreate(&s->end, CU_EVENT_DEFAULT) != CUDA_SUCCESS) {
		now.real.cuEventDestroy(s->start);
		return NULL;
	}
	now.n++;
	now.real.cuEventRecord(s->start, stream);
	return s;
}

static CUresult span_end(struct span *s, CUstream stream, CUresult result)
{
	if (s)
		now.real.cuEventRecord(s->end, stream);
	return result;
}

static CUresult launch(CUfunction f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by,
	unsigned bz, unsigned shared_bytes, CUstream stream, void **params, void **extra)
{
	struct span *s = span_begin(device_kernel_name(now.device, f), stream);

	return span_end(s, stream,
		now.real.cuLaunchKernel(f, x, y, z, bx, by, bz, shared_bytes, stream, params, extra));
}

static CUresult copy_to_device(CUdeviceptr to, const void *from, size_t len, CUstream stream)
{
	struct span *s = span_begin("to the device", stream);

	return span_end(s, stream, now.real.cuMemcpyHtoDAsync(to, from, len, stream));
}

static CUresult copy_to_host(void *to, CUdeviceptr from, size_t len, CUstream stream)
{
	struct span *s = span_begin("to the host", stream);

	return span_end(s, stream, now.real.cuMemcpyDtoHAsync(to, from, len, stream));
}

int profile_begin(const struct device *d)
{
	now.device = d;
	/* The table is the device's, allocated; const is what it is to everyone else. */
	now.driver = (struct cuda_driver *)(uintptr_t)device_driver(d);
	now.real = *now.driver;
	now.n = 0;
	now.full = false;
	now.spans = calloc(SPANS_MAX, sizeof *now.spans);
	if (!now.spans)
		return -ENOMEM;
	now.driver->cuLaunchKernel = launch;
	now.driver->cuMemcpyHtoDAsync = copy_to_device;
	now.driver->cuMemcpyDtoHAsync = copy_to_host;
	return 0;
}

int profile_end(struct profile *out)
{
	int r = now.full ? -EOVERFLOW : 0;

	*now.driver = now.real;
	*out = (struct profile){0};
	for (size_t i = 0; i < now.n; i++) {
		const struct span *s = &now.spans[i];
		float ms = 0;
		size_t k = 0;

		if (!r)
			r = device_status(now.real.cuEventSynchronize(s->end));
		if (!r)
			r = device_status(now.real.cuEventElapsedTime(&ms, s->start, s->end));
		now.real.cuEventDestroy(s->start);
		now.real.cuEventDestroy(s->end);
		while (k < out->n && strcmp(out->parts[k].name, s->name) != 0)
			k++;
		if (k == PROFILE_PARTS_MAX)
			continue;
		if (k == out->n)
			out->parts[out->n++].name = s->name;
		out->parts[k].ms += (double)ms;
		out->parts[k].n++;
	}
	free(now.spans);
	now.spans = NULL;
	return r;
}
