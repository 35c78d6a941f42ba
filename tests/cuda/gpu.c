#include "tests/cuda/gpu.h"

#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

#ifdef HAVE_CUDA_KERNELS
extern const unsigned char cistern_test_kernels[];
#else
static const unsigned char cistern_test_kernels[1];
#endif

enum { SKIPPED = 77, PATTERN = 0xcb };

static void must(CUresult result, const char *what)
{
	if (result == CUDA_SUCCESS)
		return;
	fprintf(stderr, "%s: %s\n", what, driver_error_name(result));
	abort();
}
#define MUST(call) must((call), #call)

static CUdeviceptr address(const void *p)
{
	return (CUdeviceptr)(uintptr_t)p;
}

int gpu_begin(struct device **out)
{
	const struct device_options options = {.ordinal = -1};
	char why[256] = "";
	int status = device_new(&options, out, why, sizeof why);

	if (status) {
		printf("skipped: %s\n", why);
		return SKIPPED;
	}
	printf("%s\n", device_describe(*out));
	return 0;
}

int gpu_run_self(const char *argument, char *said, size_t size)
{
	char *argv[] = {"/proc/self/exe", (char *)(uintptr_t)argument, NULL};
	posix_spawn_file_actions_t actions;
	int ends[2], status = -1;
	size_t n = 0;
	ssize_t got;
	pid_t pid;

	said[0] = '\0';
	if (pipe(ends) != 0)
		return -1;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
	posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
	posix_spawn_file_actions_addclose(&actions, ends[0]);
	if (posix_spawn(&pid, argv[0], &actions, NULL, argv, environ) != 0)
		pid = -1;
	posix_spawn_file_actions_destroy(&actions);
	close(ends[1]);
	while (pid > 0 && n + 1 < size && (got = read(ends[0], said + n, size - 1 - n)) > 0)
		n += (size_t)got;
	said[n] = '\0';
	close(ends[0]);
	return pid > 0 && waitpid(pid, &status, 0) == pid ? status : -1;
}

const struct cuda_double *gpu_double(const struct device *d)
{
	return double_find(device_driver(d)->library);
}

CUfunction gpu_test_kernel(const struct device *d, const char *name)
{
	static CUmodule module;
	CUfunction function;

	if (!module)
		MUST(device_driver(d)->cuModuleLoadData(&module, cistern_test_kernels));
	MUST(device_driver(d)->cuModuleGetFunction(&function, module, name));
	return function;
}

void gpu_test_launch(const struct device *d, const char *name, uint32_t n_blocks, uint32_t block,
	uint32_t shared_bytes, const void *args)
{
	void *params[] = {(void *)(uintptr_t)args};

	MUST(device_driver(d)->cuLaunchKernel(
		gpu_test_kernel(d, name), n_blocks, 1, 1, block, 1, 1, shared_bytes, NULL, params, NULL));
	MUST(device_driver(d)->cuStreamSynchronize(NULL));
}

void *gpu_alloc(const struct device *d, size_t len)
{
	CUdeviceptr addr;

	MUST(device_driver(d)->cuMemAlloc(&addr, len));
	MUST(device_driver(d)->cuMemsetD8Async(addr, PATTERN, len, NULL));
	MUST(device_driver(d)->cuStreamSynchronize(NULL));
	return (void *)(uintptr_t)addr;
}

void *gpu_copy_in(const struct device *d, const void *from, size_t len)
{
	CUdeviceptr addr;

	MUST(device_driver(d)->cuMemAlloc(&addr, len));
	MUST(device_driver(d)->cuMemcpyHtoDAsync(addr, from, len, NULL));
	MUST(device_driver(d)->cuStreamSynchronize(NULL));
	return (void *)(uintptr_t)addr;
}

void gpu_copy_out(const struct device *d, void *to, const void *from, size_t len)
{
	MUST(device_driver(d)->cuMemcpyDtoHAsync(to, address(from), len, NULL));
	MUST(device_driver(d)->cuStreamSynchronize(NULL));
}

void gpu_free(const struct device *d, const void *addr)
{
	MUST(device_driver(d)->cuMemFree(address(addr)));
}
