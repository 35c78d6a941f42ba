/*
 * What the backend leans on: that the driver is found or a sentence says why not, and that streams, events,
 * copies and memory behave as the rest of the backend believes. Run against the double and against a GPU, the
 * second part also says whether the double is like the driver. Modes, by argument: nothing, for a driver that
 * works; `refused WORDS`, for an environment in which loading must fail with a sentence that has these words.
 */
#include "kernels/cuda/driver.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cuda/gpu.h"

enum { LEN = 1 << 20 };

static struct device *device;
static const struct cuda_driver *cu;

static CUstream make_stream(void)
{
	CUstream s;

	assert_int_equal(cu->cuStreamCreateWithPriority(&s, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
	return s;
}

/* Makes streams late: the double by its knob, a GPU is left as it is. */
static void set_delay(unsigned delay_us)
{
	if (gpu_double(device))
		gpu_double(device)->set_delay_us(delay_us);
}

static void chosen_device(void **state)
{
	int n = 0, least = 0, greatest = 0;
	size_t free_bytes = 0, total_bytes = 0;

	(void)state;
	assert_true(cu->version >= 11040);
	assert_int_equal(cu->cuDeviceGetCount(&n), CUDA_SUCCESS);
	assert_true(n >= 1);
	assert_int_equal(cu->cuCtxGetStreamPriorityRange(&least, &greatest), CUDA_SUCCESS);
	assert_true(greatest < least);
	assert_int_equal(cu->cuMemGetInfo(&free_bytes, &total_bytes), CUDA_SUCCESS);
	assert_true(free_bytes > 0 && free_bytes <= total_bytes);

	const struct device_options far = {.ordinal = n};
	struct device *none = NULL;
	char why[256] = "";
	assert_int_equal(device_new(&far, &none, why, sizeof why), -ENODEV);
	assert_null(none);
	assert_non_null(strstr(why, "there is no GPU"));
	assert_int_equal(device_enter(device), 0);
}

static void errors(void **state)
{
	CUdeviceptr addr;
	CUmodule module;
	CUfunction function;

	(void)state;
	assert_int_equal(cu->cuMemAlloc(&addr, 0), CUDA_ERROR_INVALID_VALUE);
	assert_int_equal(cu->cuMemFree(0), CUDA_SUCCESS);
	assert_int_equal(cu->cuModuleGetFunction(&function, NULL, "probe") == CUDA_SUCCESS, 0);
	(void)module;
	assert_string_equal(driver_error_name(CUDA_ERROR_OUT_OF_MEMORY), "CUDA_ERROR_OUT_OF_MEMORY");
	assert_int_equal(device_status(CUDA_SUCCESS), 0);
	assert_int_equal(device_status(CUDA_ERROR_NOT_READY), -EAGAIN);
	assert_int_equal(device_status(CUDA_ERROR_OUT_OF_MEMORY), -ENOMEM);
	assert_int_equal(device_status(CUDA_ERROR_ILLEGAL_ADDRESS), -EIO);
}

/* Copies in both directions, in rows too, in the order of their stream. */
static void copies(void **state)
{
	CUstream s = make_stream();
	unsigned char *host, *back = calloc(1, LEN);
	CUdeviceptr a, b;

	(void)state;
	assert_int_equal(cu->cuMemHostAlloc((void **)&host, LEN, 0), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemAlloc(&a, LEN), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemAlloc(&b, LEN), CUDA_SUCCESS);
	for (int i = 0; i < LEN; i++)
		host[i] = (unsigned char)(i * 7 + i / 256);
	set_delay(2000);
	assert_int_equal(cu->cuMemcpyHtoDAsync(a, host, LEN, s), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemcpyDtoDAsync(b, a, LEN, s), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemsetD8Async(a, 0, LEN, s), CUDA_SUCCESS);
	/* Every other 100 bytes of 1000 rows of b, packed, to a's beginning. */
	const CUDA_MEMCPY2D rows = {
		.srcMemoryType = CU_MEMORYTYPE_DEVICE,
		.srcDevice = b,
		.srcPitch = 200,
		.srcXInBytes = 100,
		.dstMemoryType = CU_MEMORYTYPE_DEVICE,
		.dstDevice = a,
		.dstPitch = 100,
		.WidthInBytes = 100,
		.Height = 1000,
	};
	assert_int_equal(cu->cuMemcpy2DAsync(&rows, s), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemsetD32Async(a + 200000, 0x01020304, 2, s), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemcpyDtoHAsync(back, a, LEN, s), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamSynchronize(s), CUDA_SUCCESS);
	set_delay(0);
	for (int i = 0; i < 100000; i++)
		assert_int_equal(back[i], host[i / 100 * 200 + 100 + i % 100]);
	assert_int_equal(back[100000], 0);
	assert_memory_equal(back + 200000, "\4\3\2\1\4\3\2\1", 8);
	assert_int_equal(back[200008], 0);

	assert_int_equal(cu->cuMemFree(a), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemFree(b), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemFreeHost(host), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamDestroy(s), CUDA_SUCCESS);
	free(back);
}

static void add_to_list(void *arg)
{
	char **end = arg;

	usleep(1000);
	*(*end)++ = 'x';
}

static void mark(void *arg)
{
	atomic_store((atomic_int *)arg, 1);
}

static void wait_for_flag(void *arg)
{
	while (!atomic_load((atomic_int *)arg))
		usleep(100);
}

/* A stream works while the host goes on; an event says when; another stream waits for it without the host. */
static void streams_and_events(void **state)
{
	CUstream first = make_stream(), second = make_stream();
	CUevent event, start, end;
	atomic_int go = 0, done = 0;
	char list[4] = "", *at = list;
	float ms = -1;

	(void)state;
	assert_int_equal(cu->cuEventCreate(&event, CU_EVENT_DISABLE_TIMING), CUDA_SUCCESS);
	/* Never recorded: complete. */
	assert_int_equal(cu->cuEventQuery(event), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamWaitEvent(second, event, 0), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamSynchronize(second), CUDA_SUCCESS);

	assert_int_equal(cu->cuLaunchHostFunc(first, wait_for_flag, &go), CUDA_SUCCESS);
	assert_int_equal(cu->cuEventRecord(event, first), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamWaitEvent(second, event, 0), CUDA_SUCCESS);
	assert_int_equal(cu->cuLaunchHostFunc(second, mark, &done), CUDA_SUCCESS);
	usleep(20000);
	assert_int_equal(cu->cuStreamQuery(first), CUDA_ERROR_NOT_READY);
	assert_int_equal(cu->cuStreamQuery(second), CUDA_ERROR_NOT_READY);
	assert_int_equal(cu->cuEventQuery(event), CUDA_ERROR_NOT_READY);
	assert_int_equal(atomic_load(&done), 0);
	/* Destroyed while it is waited for: the wait goes on. */
	assert_int_equal(cu->cuEventDestroy(event), CUDA_SUCCESS);
	atomic_store(&go, 1);
	assert_int_equal(cu->cuStreamSynchronize(second), CUDA_SUCCESS);
	assert_int_equal(atomic_load(&done), 1);
	assert_int_equal(cu->cuStreamSynchronize(first), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamQuery(first), CUDA_SUCCESS);

	assert_int_equal(cu->cuEventCreate(&start, CU_EVENT_DEFAULT), CUDA_SUCCESS);
	assert_int_equal(cu->cuEventCreate(&end, CU_EVENT_DEFAULT), CUDA_SUCCESS);
	assert_int_equal(cu->cuEventRecord(start, first), CUDA_SUCCESS);
	for (int i = 0; i < 3; i++)
		assert_int_equal(cu->cuLaunchHostFunc(first, add_to_list, &at), CUDA_SUCCESS);
	assert_int_equal(cu->cuEventRecord(end, first), CUDA_SUCCESS);
	assert_int_equal(cu->cuEventSynchronize(end), CUDA_SUCCESS);
	assert_string_equal(list, "xxx");
	assert_int_equal(cu->cuEventElapsedTime(&ms, start, end), CUDA_SUCCESS);
	assert_true(ms >= 3);
	assert_int_equal(cu->cuEventDestroy(start), CUDA_SUCCESS);
	assert_int_equal(cu->cuEventDestroy(end), CUDA_SUCCESS);
	/* Destroyed with work in it: the work is done. */
	assert_int_equal(cu->cuLaunchHostFunc(first, add_to_list, &at), CUDA_SUCCESS);
	at = list;
	assert_int_equal(cu->cuStreamDestroy(first), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamDestroy(second), CUDA_SUCCESS);
	for (int i = 0; i < 1000 && at == list; i++)
		usleep(1000);
	assert_ptr_equal(at, list + 1);
}

/* Two mappings of one allocation, one by way of a descriptor. */
static void shareable_memory(void **state)
{
	const CUmemAllocationProp prop = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = {CU_MEM_LOCATION_TYPE_DEVICE, device_ordinal(device)},
	};
	const CUmemAccessDesc access = {prop.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	CUmemGenericAllocationHandle handle, again;
	CUdeviceptr a, b;
	size_t granularity;
	uint32_t seen = 0;
	int fd = -1;

	(void)state;
	assert_int_equal(
		cu->cuMemGetAllocationGranularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
		CUDA_SUCCESS);
	assert_int_equal(cu->cuMemAddressReserve(&a, granularity, 0, 0, 0), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemAddressReserve(&b, granularity, 0, 0, 0), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemCreate(&handle, granularity + 1, &prop, 0), CUDA_ERROR_INVALID_VALUE);
	assert_int_equal(cu->cuMemCreate(&handle, granularity, &prop, 0), CUDA_SUCCESS);
	assert_int_equal(
		cu->cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
		CUDA_SUCCESS);
	assert_int_equal(cu->cuMemImportFromShareableHandle(
				 &again, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
		CUDA_SUCCESS);
	close(fd);
	assert_int_equal(cu->cuMemMap(a, granularity, 0, handle, 0), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemMap(b, granularity, 0, again, 0), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemRelease(handle), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemRelease(again), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemSetAccess(a, granularity, &access, 1), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemSetAccess(b, granularity, &access, 1), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemsetD32Async(a, 0x600df00d, granularity / 4, NULL), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamSynchronize(NULL), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemUnmap(a, granularity), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemAddressFree(a, granularity), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemcpyDtoHAsync(&seen, b + granularity - 4, 4, NULL), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamSynchronize(NULL), CUDA_SUCCESS);
	assert_int_equal(seen, 0x600df00d);
	assert_int_equal(cu->cuMemUnmap(b, granularity), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemAddressFree(b, granularity), CUDA_SUCCESS);

	/* Some other file is refused. */
	fd = memfd_create("other", MFD_CLOEXEC);
	assert_int_equal(ftruncate(fd, 2 << 20), 0);
	assert_int_not_equal(cu->cuMemImportFromShareableHandle(
				     &again, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
		CUDA_SUCCESS);
	close(fd);
}

/* What the double alone does: refuses copies outside of allocations, counts, and fails when it is told to. */
static void double_checks(void **state)
{
	const struct cuda_double *emulated = gpu_double(device);
	struct double_counts before, after;
	char buffer[64] = "";
	CUdeviceptr a;

	(void)state;
	if (!emulated)
		skip();
	emulated->counts(&before);
	assert_int_equal(cu->cuMemAlloc(&a, 5000), CUDA_SUCCESS);
	emulated->counts(&after);
	assert_int_equal(after.taken_bytes - before.taken_bytes, 8192);
	assert_int_equal(after.n_allocations - before.n_allocations, 1);
	assert_int_equal(cu->cuMemcpyHtoDAsync(a + 5000 - 63, buffer, 64, NULL), CUDA_ERROR_INVALID_VALUE);
	assert_int_equal(cu->cuMemcpyHtoDAsync(a - 1, buffer, 64, NULL), CUDA_ERROR_INVALID_VALUE);
	assert_int_equal(cu->cuMemcpyDtoHAsync(buffer, 4096, 64, NULL), CUDA_ERROR_INVALID_VALUE);
	assert_int_equal(cu->cuMemsetD8Async(a + 1, 0, 5000, NULL), CUDA_ERROR_INVALID_VALUE);
	assert_int_equal(cu->cuMemFree(a + 256), CUDA_ERROR_INVALID_VALUE);
	assert_int_equal(cu->cuMemFree(a), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemFree(a), CUDA_ERROR_INVALID_VALUE);
	assert_int_equal(cu->cuMemsetD8Async(a, 0, 1, NULL), CUDA_ERROR_INVALID_VALUE);
	emulated->counts(&after);
	assert_int_equal(after.taken_bytes, before.taken_bytes);

	emulated->refuse(getpid(), "cuMemAlloc", 2, CUDA_ERROR_UNKNOWN);
	assert_int_equal(cu->cuMemAlloc(&a, 1), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemFree(a), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemAlloc(&a, 1), CUDA_ERROR_UNKNOWN);
	assert_int_equal(cu->cuMemAlloc(&a, 1), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemFree(a), CUDA_SUCCESS);
	emulated->set_total_bytes(after.taken_bytes + 4096);
	assert_int_equal(cu->cuMemAlloc(&a, 4097), CUDA_ERROR_OUT_OF_MEMORY);
	assert_int_equal(cu->cuMemAlloc(&a, 4096), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemFree(a), CUDA_SUCCESS);
	emulated->set_total_bytes(before.total_bytes);
}

static int refused(const char *words)
{
	struct cuda_driver *driver = NULL;
	char why[256] = "";
	int status = driver_load(&driver, why, sizeof why);

	if (status == 0 && !driver->emulated && strstr(words, "no NVIDIA driver")) {
		printf("skipped: this machine has a driver\n");
		return 77;
	}
	printf("%d: %s\n", status, why);
	return status == -ENODEV && strstr(why, words) ? 0 : 1;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(chosen_device),
		cmocka_unit_test(errors),
		cmocka_unit_test(copies),
		cmocka_unit_test(streams_and_events),
		cmocka_unit_test(shareable_memory),
		cmocka_unit_test(double_checks),
	};
	int status;

	if (argc == 3)
		return refused(argv[2]);
	status = gpu_begin(&device);
	if (status)
		return status;
	cu = device_driver(device);
	status = cmocka_run_group_tests(tests, NULL, NULL);
	device_free(device);
	return status;
}
