/* Entry points for the device, contexts, modules and launches, and the double's own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/cuda/double/double.h"
#include "tests/cuda/double/entry.h"
#include "tests/cuda/double/memory.h"
#include "tests/cuda/double/races.h"
#include "tests/cuda/double/simt.h"
#include "tests/cuda/double/state.h"
#include "tests/cuda/double/stream.h"

struct CUctx_st {
	int n_retained;
};

struct CUmod_st {
	int unused;
};

/* One for each name, for ever. */
struct CUfunc_st {
	const struct simt_kernel *kernel;
	std::atomic<unsigned> shared_max;
};

namespace
{

const unsigned default_shared_max = 48 << 10;

std::atomic<bool> initialised;
std::atomic<int> sticky; /* an error after which the context is of no use */
std::mutex lock;
CUctx_st primary;
std::atomic<uint64_t> n_launches;
thread_local CUcontext current;

} // namespace

CUresult entry_check(const char *name, enum entry_needs needs)
{
	if (needs != NEEDS_NOTHING && !initialised)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (stream_is_here())
		return CUDA_ERROR_NOT_PERMITTED;
	if (initialised) {
		const int code = state_failure(name);
		if (code < 0) {
			usleep(static_cast<unsigned>(-code) * 1000);
			return entry_check(name, needs);
		}
		if (code >= CUDA_ERROR_ILLEGAL_ADDRESS && code <= CUDA_ERROR_LAUNCH_FAILED)
			sticky = code;
		if (code)
			return static_cast<CUresult>(code);
	}
	if (needs == NEEDS_CONTEXT && !current)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (needs == NEEDS_CONTEXT && sticky)
		return static_cast<CUresult>(sticky.load());
	return CUDA_SUCCESS;
}

CUresult cuInit(unsigned flags)
{
	std::lock_guard<std::mutex> guard(lock);

	if (flags)
		return CUDA_ERROR_INVALID_VALUE;
	if (!initialised) {
		state_open();
		memory_open();
	}
	initialised = true;
	return static_cast<CUresult>(state_failure("cuInit"));
}

CUresult cuDriverGetVersion(int *version)
{
	ENTRY("cuDriverGetVersion", NEEDS_NOTHING);
	*version = 13000;
	return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **out)
{
	switch (error) {
#define RESULT(name, value)                                                                                  \
	case name: *out = #name; return CUDA_SUCCESS;
		CUDA_RESULTS(RESULT)
#undef RESULT
	}
	*out = nullptr;
	return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **out)
{
	return cuGetErrorName(error, out);
}

/* ---- The device: one, unless CUDA_VISIBLE_DEVICES hides it. */

CUresult cuDeviceGetCount(int *out)
{
	ENTRY("cuDeviceGetCount", NEEDS_INIT);
	const char *visible = getenv("CUDA_VISIBLE_DEVICES");
	*out = !visible || visible[0] == '0' || strncmp(visible, "GPU-", 4) == 0;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *out, int ordinal)
{
	ENTRY("cuDeviceGet", NEEDS_INIT);
	int n = 0;
	cuDeviceGetCount(&n);
	if (ordinal < 0 || ordinal >= n)
		return CUDA_ERROR_INVALID_DEVICE;
	*out = 0;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *out, int len, CUdevice device)
{
	ENTRY("cuDeviceGetName", NEEDS_INIT);
	if (!out || len <= 0 || device != 0)
		return CUDA_ERROR_INVALID_VALUE;
	snprintf(out, static_cast<size_t>(len), "emulated GPU");
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *out, CUdevice_attribute attribute, CUdevice device)
{
	ENTRY("cuDeviceGetAttribute", NEEDS_INIT);
	if (!out || device != 0)
		return CUDA_ERROR_INVALID_VALUE;
	switch (attribute) {
	case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *out = default_shared_max; break;
	case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *out = 4; break;
	case CU_DEVICE_ATTRIBUTE_INTEGRATED: *out = 0; break;
	case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID:
	case CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID:
	case CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID: *out = 0; break;
	case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *out = 32 << 20; break;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *out = 9; break;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *out = 0; break;
	case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *out = SIMT_SHARED_BYTES_MAX; break;
	case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
	case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
	case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED:
	case CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED: *out = 1; break;
	default: return CUDA_ERROR_INVALID_VALUE;
	}
	return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t *out, CUdevice device)
{
	ENTRY("cuDeviceTotalMem", NEEDS_INIT);
	if (!out || device != 0)
		return CUDA_ERROR_INVALID_VALUE;
	*out = state_get_memory().total_bytes;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid_v2(CUuuid *out, CUdevice device)
{
	ENTRY("cuDeviceGetUuid", NEEDS_INIT);
	if (!out || device != 0)
		return CUDA_ERROR_INVALID_VALUE;
	memcpy(out->bytes, "emulated device", sizeof out->bytes);
	return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags)
{
	ENTRY("cuDevicePrimaryCtxSetFlags", NEEDS_INIT);
	return device != 0    ? CUDA_ERROR_INVALID_DEVICE
	       : flags > 0xff ? CUDA_ERROR_INVALID_VALUE
			      : CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice device)
{
	ENTRY("cuDevicePrimaryCtxRetain", NEEDS_INIT);
	std::lock_guard<std::mutex> guard(lock);
	if (!out || device != 0)
		return CUDA_ERROR_INVALID_VALUE;
	primary.n_retained++;
	*out = &primary;
	return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	ENTRY("cuDevicePrimaryCtxRelease", NEEDS_INIT);
	std::lock_guard<std::mutex> guard(lock);
	if (device != 0)
		return CUDA_ERROR_INVALID_DEVICE;
	if (primary.n_retained == 0)
		return CUDA_ERROR_INVALID_CONTEXT;
	primary.n_retained--;
	return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context)
{
	ENTRY("cuCtxSetCurrent", NEEDS_INIT);
	if (context && context != &primary)
		return CUDA_ERROR_INVALID_CONTEXT;
	current = context;
	return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *out)
{
	ENTRY("cuCtxGetCurrent", NEEDS_INIT);
	*out = current;
	return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void)
{
	ENTRY("cuCtxSynchronize", NEEDS_CONTEXT);
	stream_wait_all();
	return CUDA_SUCCESS;
}

/* ---- Modules: the image is not looked at, the kernels are those that the double was built with. */

CUresult cuModuleLoadData(CUmodule *out, const void *image)
{
	ENTRY("cuModuleLoadData", NEEDS_CONTEXT);
	(void)image;
	if (!out)
		return CUDA_ERROR_INVALID_VALUE;
	*out = new CUmod_st;
	return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module)
{
	ENTRY("cuModuleUnload", NEEDS_CONTEXT);
	delete module;
	return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *out, CUmodule module, const char *name)
{
	ENTRY("cuModuleGetFunction", NEEDS_CONTEXT);
	static std::map<std::string, CUfunction> *functions = new std::map<std::string, CUfunction>;
	if (!out || !module || !name)
		return CUDA_ERROR_INVALID_VALUE;
	const struct simt_kernel *kernel = simt_find(name);
	if (!kernel)
		return CUDA_ERROR_NOT_FOUND;
	std::lock_guard<std::mutex> guard(lock);
	CUfunction &f = (*functions)[name];
	if (!f)
		f = new CUfunc_st{kernel, {default_shared_max}};
	*out = f;
	return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *out, CUfunction_attribute attribute, CUfunction function)
{
	ENTRY("cuFuncGetAttribute", NEEDS_CONTEXT);
	if (!out || !function)
		return CUDA_ERROR_INVALID_VALUE;
	switch (attribute) {
	case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *out = SIMT_BLOCK_THREADS_MAX; break;
	case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
		*out = static_cast<int>(function->shared_max);
		break;
	case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
	case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
	case CU_FUNC_ATTRIBUTE_NUM_REGS: *out = 0; break;
	default: return CUDA_ERROR_INVALID_VALUE;
	}
	return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value)
{
	ENTRY("cuFuncSetAttribute", NEEDS_CONTEXT);
	if (!function || attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 ||
		value > SIMT_SHARED_BYTES_MAX)
		return CUDA_ERROR_INVALID_VALUE;
	function->shared_max = static_cast<unsigned>(value);
	return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction f, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
	unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void **params,
	void **extra)
{
	ENTRY("cuLaunchKernel", NEEDS_CONTEXT);
	struct dimensions {
		uint32_t grid[3], block[3];
	} d = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}};
	const uint64_t n_threads = static_cast<uint64_t>(block_x) * block_y * block_z;

	/* CUDA C++ Programming Guide, "Compute Capabilities": the largest grid and block. */
	if (!f || !params || extra || !n_threads || n_threads > SIMT_BLOCK_THREADS_MAX || block_z > 64 ||
		!grid_x || !grid_y || !grid_z || grid_x > 0x7fffffffu || grid_y > 0xffffu ||
		grid_z > 0xffffu || shared_bytes > f->shared_max)
		return CUDA_ERROR_INVALID_VALUE;
	const char *from = static_cast<const char *>(params[0]);
	auto args = std::make_shared<std::vector<char>>(from, from + f->kernel->args_bytes);
	n_launches++;
	return stream_add(stream, [kernel = f->kernel, d, shared_bytes, args] {
		simt_launch(kernel, d.grid, d.block, shared_bytes, args->data());
	});
}

/* ---- The double's own. */

namespace
{

void get_counts(struct double_counts *out)
{
	const struct state_memory m = state_get_memory();
	const struct memory_counts c = memory_get_counts();
	const struct stream_counts s = stream_get_counts();

	*out = {};
	out->total_bytes = m.total_bytes;
	out->taken_bytes = m.taken_bytes;
	out->process_bytes = m.process_bytes;
	out->imported_bytes = c.imported_bytes;
	out->n_launches = n_launches;
	out->n_streams = s.n_streams;
	out->n_events = s.n_events;
	out->n_allocations = c.n_allocations;
	out->n_mappings = c.n_mappings;
	out->n_stale_events = s.n_stale_events;
}

} // namespace

extern "C" {
extern const struct cuda_double cistern_driver_double;
const struct cuda_double cistern_driver_double = {
	get_counts,
	state_fail,
	state_set_delay_us,
	state_set_total,
	[](int fire) { state_set_orphans_fire(fire != 0); },
	[] { return simt_races ? 1 : 0; },
};
}
