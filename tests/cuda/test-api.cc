/*
 * kernels/cuda/api.h says what the toolkit's cuda.h says: values, layouts, and the number and sizes of
 * arguments. The compiler checks all of it; that this file compiles is the test. Ours is read in a namespace,
 * after theirs, whose macros rename functions in both alike. Flags that cuda.h has as macros are its own in
 * both, so those are compared by number.
 */
#include <cuda.h>
#include <stddef.h>

#include <type_traits>

#define KERNELS_CUDA_API_COMPARED
namespace ours
{
#include "kernels/cuda/api.h"
}

#define SAME_VALUE(name)                                                                                     \
	static_assert(static_cast<long long>(ours::name) == static_cast<long long>(::name), #name)
#define CHECK_RESULT(name, value) static_assert(::name == value, #name);
CUDA_RESULTS(CHECK_RESULT)

SAME_VALUE(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_INTEGRATED);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED);
SAME_VALUE(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
SAME_VALUE(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
SAME_VALUE(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES);
SAME_VALUE(CU_FUNC_ATTRIBUTE_NUM_REGS);
SAME_VALUE(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
SAME_VALUE(CU_CTX_SCHED_BLOCKING_SYNC);
SAME_VALUE(CU_STREAM_DEFAULT);
SAME_VALUE(CU_STREAM_NON_BLOCKING);
SAME_VALUE(CU_EVENT_DEFAULT);
SAME_VALUE(CU_EVENT_BLOCKING_SYNC);
SAME_VALUE(CU_EVENT_DISABLE_TIMING);
SAME_VALUE(CU_EVENT_INTERPROCESS);
SAME_VALUE(CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
SAME_VALUE(CU_MEMORYTYPE_HOST);
SAME_VALUE(CU_MEMORYTYPE_DEVICE);
SAME_VALUE(CU_MEM_ALLOCATION_TYPE_PINNED);
SAME_VALUE(CU_MEM_HANDLE_TYPE_NONE);
SAME_VALUE(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
SAME_VALUE(CU_MEM_LOCATION_TYPE_DEVICE);
SAME_VALUE(CU_MEM_ALLOC_GRANULARITY_MINIMUM);
SAME_VALUE(CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
SAME_VALUE(CU_MEM_ACCESS_FLAGS_PROT_NONE);
SAME_VALUE(CU_MEM_ACCESS_FLAGS_PROT_READ);
SAME_VALUE(CU_MEM_ACCESS_FLAGS_PROT_READWRITE);

static_assert(CU_MEMHOSTALLOC_PORTABLE == 0x01);
static_assert(CU_MEMHOSTALLOC_DEVICEMAP == 0x02);
static_assert(CU_MEMHOSTALLOC_WRITECOMBINED == 0x04);
static_assert(CU_MEMHOSTREGISTER_PORTABLE == 0x01);
static_assert(CU_MEMHOSTREGISTER_DEVICEMAP == 0x02);
static_assert(CU_IPC_HANDLE_SIZE == 64);

#define SAME_SIZE(type) static_assert(sizeof(ours::type) == sizeof(::type), #type)
#define SAME_PLACE(type, member)                                                                             \
	static_assert(offsetof(ours::type, member) == offsetof(::type, member) &&                            \
			      sizeof(ours::type::member) == sizeof(::type::member),                          \
		#type "." #member)
SAME_SIZE(CUresult);
SAME_SIZE(CUdevice_attribute);
SAME_SIZE(CUfunction_attribute);
SAME_SIZE(CUmemorytype);
SAME_SIZE(CUmemAllocationType);
SAME_SIZE(CUmemAllocationHandleType);
SAME_SIZE(CUmemLocationType);
SAME_SIZE(CUmemAllocationGranularity_flags);
SAME_SIZE(CUmemAccess_flags);
SAME_SIZE(CUdevice);
SAME_SIZE(CUdeviceptr);
SAME_SIZE(CUmemGenericAllocationHandle);
SAME_SIZE(CUcontext);
SAME_SIZE(CUmodule);
SAME_SIZE(CUfunction);
SAME_SIZE(CUstream);
SAME_SIZE(CUevent);
SAME_SIZE(CUhostFn);
SAME_SIZE(CUuuid);
SAME_SIZE(CUipcMemHandle);
SAME_SIZE(CUipcEventHandle);
SAME_SIZE(CUmemLocation);
SAME_SIZE(CUmemAccessDesc);
SAME_SIZE(CUmemAllocationProp);
SAME_SIZE(CUDA_MEMCPY2D);
SAME_PLACE(CUmemLocation, type);
SAME_PLACE(CUmemLocation, id);
SAME_PLACE(CUmemAccessDesc, location);
SAME_PLACE(CUmemAccessDesc, flags);
SAME_PLACE(CUmemAllocationProp, type);
SAME_PLACE(CUmemAllocationProp, requestedHandleTypes);
SAME_PLACE(CUmemAllocationProp, location);
SAME_PLACE(CUmemAllocationProp, win32HandleMetaData);
SAME_PLACE(CUmemAllocationProp, allocFlags);
SAME_PLACE(CUDA_MEMCPY2D, srcXInBytes);
SAME_PLACE(CUDA_MEMCPY2D, srcY);
SAME_PLACE(CUDA_MEMCPY2D, srcMemoryType);
SAME_PLACE(CUDA_MEMCPY2D, srcHost);
SAME_PLACE(CUDA_MEMCPY2D, srcDevice);
SAME_PLACE(CUDA_MEMCPY2D, srcArray);
SAME_PLACE(CUDA_MEMCPY2D, srcPitch);
SAME_PLACE(CUDA_MEMCPY2D, dstXInBytes);
SAME_PLACE(CUDA_MEMCPY2D, dstY);
SAME_PLACE(CUDA_MEMCPY2D, dstMemoryType);
SAME_PLACE(CUDA_MEMCPY2D, dstHost);
SAME_PLACE(CUDA_MEMCPY2D, dstDevice);
SAME_PLACE(CUDA_MEMCPY2D, dstArray);
SAME_PLACE(CUDA_MEMCPY2D, dstPitch);
SAME_PLACE(CUDA_MEMCPY2D, WidthInBytes);
SAME_PLACE(CUDA_MEMCPY2D, Height);

template <class... A, class... B>
constexpr bool same_arguments(::CUresult (*)(A...), ours::CUresult (*)(B...))
{
	if constexpr (sizeof...(A) == sizeof...(B))
		return ((sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B>)&&...);
	else
		return false;
}

#define CHECK_ENTRY(name, symbol)                                                                            \
	static_assert(same_arguments(static_cast<decltype(&::symbol)>(nullptr),                              \
			      static_cast<decltype(&ours::symbol)>(nullptr)),                                \
		#symbol);
CUDA_ENTRIES(CHECK_ENTRY)
