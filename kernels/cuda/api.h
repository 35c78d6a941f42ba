/*
 * The part of the CUDA driver's interface that Cistern uses, in our own words, so that nothing needs NVIDIA's
 * headers to build. Names, values and layouts are facts of the driver's ABI, which is stable; where the
 * toolkit is installed, a test compares each with its cuda.h. Prototypes carry the name of the symbol that
 * libcuda.so.1 exports, with its version suffix. Nothing links against them: driver.h looks them up at run
 * time, and the driver double of the tests (tests/cuda/double/) defines them. Compiles as C17 and C++17.
 */
#ifndef KERNELS_CUDA_API_H
#define KERNELS_CUDA_API_H

#include <stddef.h>

/* The test that compares this with cuda.h reads it in a namespace, where linkage would make the two one. */
#if defined __cplusplus && !defined KERNELS_CUDA_API_COMPARED
extern "C" {
#endif

/* Of the driver's results, those that we act on, that the double gives, or that users are to find by name in
 * a log. */
#define CUDA_RESULTS(RESULT)                                                                                 \
	RESULT(CUDA_SUCCESS, 0)                                                                              \
	RESULT(CUDA_ERROR_INVALID_VALUE, 1)                                                                  \
	RESULT(CUDA_ERROR_OUT_OF_MEMORY, 2)                                                                  \
	RESULT(CUDA_ERROR_NOT_INITIALIZED, 3)                                                                \
	RESULT(CUDA_ERROR_STUB_LIBRARY, 34)                                                                  \
	RESULT(CUDA_ERROR_DEVICE_UNAVAILABLE, 46)                                                            \
	RESULT(CUDA_ERROR_NO_DEVICE, 100)                                                                    \
	RESULT(CUDA_ERROR_INVALID_DEVICE, 101)                                                               \
	RESULT(CUDA_ERROR_INVALID_IMAGE, 200)                                                                \
	RESULT(CUDA_ERROR_INVALID_CONTEXT, 201)                                                              \
	RESULT(CUDA_ERROR_MAP_FAILED, 205)                                                                   \
	RESULT(CUDA_ERROR_UNMAP_FAILED, 206)                                                                 \
	RESULT(CUDA_ERROR_ALREADY_MAPPED, 208)                                                               \
	RESULT(CUDA_ERROR_NO_BINARY_FOR_GPU, 209)                                                            \
	RESULT(CUDA_ERROR_NOT_MAPPED, 211)                                                                   \
	RESULT(CUDA_ERROR_ECC_UNCORRECTABLE, 214)                                                            \
	RESULT(CUDA_ERROR_INVALID_PTX, 218)                                                                  \
	RESULT(CUDA_ERROR_JIT_COMPILER_NOT_FOUND, 221)                                                       \
	RESULT(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, 222)                                                      \
	RESULT(CUDA_ERROR_FILE_NOT_FOUND, 301)                                                               \
	RESULT(CUDA_ERROR_SHARED_OBJECT_INIT_FAILED, 303)                                                    \
	RESULT(CUDA_ERROR_OPERATING_SYSTEM, 304)                                                             \
	RESULT(CUDA_ERROR_INVALID_HANDLE, 400)                                                               \
	RESULT(CUDA_ERROR_ILLEGAL_STATE, 401)                                                                \
	RESULT(CUDA_ERROR_NOT_FOUND, 500)                                                                    \
	RESULT(CUDA_ERROR_NOT_READY, 600)                                                                    \
	RESULT(CUDA_ERROR_ILLEGAL_ADDRESS, 700)                                                              \
	RESULT(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, 701)                                                      \
	RESULT(CUDA_ERROR_LAUNCH_TIMEOUT, 702)                                                               \
	RESULT(CUDA_ERROR_CONTEXT_IS_DESTROYED, 709)                                                         \
	RESULT(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, 712)                                               \
	RESULT(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, 713)                                                   \
	RESULT(CUDA_ERROR_HARDWARE_STACK_ERROR, 714)                                                         \
	RESULT(CUDA_ERROR_ILLEGAL_INSTRUCTION, 715)                                                          \
	RESULT(CUDA_ERROR_MISALIGNED_ADDRESS, 716)                                                           \
	RESULT(CUDA_ERROR_INVALID_ADDRESS_SPACE, 717)                                                        \
	RESULT(CUDA_ERROR_INVALID_PC, 718)                                                                   \
	RESULT(CUDA_ERROR_LAUNCH_FAILED, 719)                                                                \
	RESULT(CUDA_ERROR_NOT_PERMITTED, 800)                                                                \
	RESULT(CUDA_ERROR_NOT_SUPPORTED, 801)                                                                \
	RESULT(CUDA_ERROR_SYSTEM_NOT_READY, 802)                                                             \
	RESULT(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, 803)                                                       \
	RESULT(CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, 804)                                               \
	RESULT(CUDA_ERROR_MPS_CONNECTION_FAILED, 805)                                                        \
	RESULT(CUDA_ERROR_UNKNOWN, 999)

typedef enum {
#define CUDA_RESULT(name, value) name = value,
	CUDA_RESULTS(CUDA_RESULT)
#undef CUDA_RESULT
} CUresult;

typedef enum {
	CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK = 8,
	CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
	CU_DEVICE_ATTRIBUTE_INTEGRATED = 18,
	CU_DEVICE_ATTRIBUTE_PCI_BUS_ID = 33,
	CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID = 34,
	CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38,
	CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING = 41,
	CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID = 50,
	CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
	CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
	CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
	CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102,
	CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED = 103,
	CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED = 125,
} CUdevice_attribute;

typedef enum {
	CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
	CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
	CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3,
	CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
	CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
} CUfunction_attribute;

enum {
	CU_CTX_SCHED_BLOCKING_SYNC = 0x4,

	CU_STREAM_DEFAULT = 0x0,
	CU_STREAM_NON_BLOCKING = 0x1,

	CU_EVENT_DEFAULT = 0x0,
	CU_EVENT_BLOCKING_SYNC = 0x1,
	CU_EVENT_DISABLE_TIMING = 0x2,
	CU_EVENT_INTERPROCESS = 0x4,

	CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS = 0x1,
};

#ifndef CU_IPC_HANDLE_SIZE
enum { CU_IPC_HANDLE_SIZE = 64 };
#endif
#ifndef CU_MEMHOSTALLOC_PORTABLE
enum {
	CU_MEMHOSTALLOC_PORTABLE = 0x01,
	CU_MEMHOSTALLOC_DEVICEMAP = 0x02,
	CU_MEMHOSTALLOC_WRITECOMBINED = 0x04
};
enum { CU_MEMHOSTREGISTER_PORTABLE = 0x01, CU_MEMHOSTREGISTER_DEVICEMAP = 0x02 };
#endif

typedef enum { CU_MEMORYTYPE_HOST = 1, CU_MEMORYTYPE_DEVICE = 2 } CUmemorytype;
typedef enum { CU_MEM_ALLOCATION_TYPE_PINNED = 0x1 } CUmemAllocationType;
typedef enum {
	CU_MEM_HANDLE_TYPE_NONE = 0x0,
	CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR = 0x1,
} CUmemAllocationHandleType;
typedef enum { CU_MEM_LOCATION_TYPE_DEVICE = 0x1 } CUmemLocationType;
typedef enum {
	CU_MEM_ALLOC_GRANULARITY_MINIMUM = 0x0,
	CU_MEM_ALLOC_GRANULARITY_RECOMMENDED = 0x1,
} CUmemAllocationGranularity_flags;
typedef enum {
	CU_MEM_ACCESS_FLAGS_PROT_NONE = 0x0,
	CU_MEM_ACCESS_FLAGS_PROT_READ = 0x1,
	CU_MEM_ACCESS_FLAGS_PROT_READWRITE = 0x3,
} CUmemAccess_flags;

typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef unsigned long long CUmemGenericAllocationHandle;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream; /* NULL: the legacy default stream */
typedef struct CUevent_st *CUevent;
typedef struct CUarray_st *CUarray;
typedef void (*CUhostFn)(void *arg);

typedef struct {
	char bytes[16];
} CUuuid;

typedef struct {
	char reserved[CU_IPC_HANDLE_SIZE];
} CUipcMemHandle;

typedef struct {
	char reserved[CU_IPC_HANDLE_SIZE];
} CUipcEventHandle;

typedef struct {
	CUmemLocationType type;
	int id;
} CUmemLocation;

typedef struct {
	CUmemLocation location;
	CUmemAccess_flags flags;
} CUmemAccessDesc;

typedef struct {
	CUmemAllocationType type;
	CUmemAllocationHandleType requestedHandleTypes;
	CUmemLocation location;
	void *win32HandleMetaData;
	struct {
		unsigned char compressionType;
		unsigned char gpuDirectRDMACapable;
		unsigned short usage;
		unsigned char reserved[4];
	} allocFlags;
} CUmemAllocationProp;

typedef struct {
	size_t srcXInBytes, srcY;
	CUmemorytype srcMemoryType;
	const void *srcHost;
	CUdeviceptr srcDevice;
	CUarray srcArray;
	size_t srcPitch;
	size_t dstXInBytes, dstY;
	CUmemorytype dstMemoryType;
	void *dstHost;
	CUdeviceptr dstDevice;
	CUarray dstArray;
	size_t dstPitch;
	size_t WidthInBytes, Height;
} CUDA_MEMCPY2D;

CUresult cuInit(unsigned flags);
CUresult cuDriverGetVersion(int *version);
CUresult cuGetErrorName(CUresult error, const char **out);
CUresult cuGetErrorString(CUresult error, const char **out);

CUresult cuDeviceGetCount(int *out);
CUresult cuDeviceGet(CUdevice *out, int ordinal);
CUresult cuDeviceGetName(char *out, int len, CUdevice device);
CUresult cuDeviceGetAttribute(int *out, CUdevice_attribute attribute, CUdevice device);
CUresult cuDeviceTotalMem_v2(size_t *out, CUdevice device);
CUresult cuDeviceGetUuid_v2(CUuuid *out, CUdevice device);
CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags);
CUresult cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice device);
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device);

CUresult cuCtxSetCurrent(CUcontext context);
CUresult cuCtxGetCurrent(CUcontext *out);
CUresult cuCtxSynchronize(void);
CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest);

CUresult cuModuleLoadData(CUmodule *out, const void *image);
CUresult cuModuleUnload(CUmodule module);
CUresult cuModuleGetFunction(CUfunction *out, CUmodule module, const char *name);
CUresult cuFuncGetAttribute(int *out, CUfunction_attribute attribute, CUfunction function);
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value);
CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
	unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream,
	void **params, void **extra);
CUresult cuLaunchHostFunc(CUstream stream, CUhostFn fn, void *arg);

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes);
CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t len);
CUresult cuMemFree_v2(CUdeviceptr addr);
CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *len, CUdeviceptr addr);
CUresult cuMemHostAlloc(void **out, size_t len, unsigned flags);
CUresult cuMemFreeHost(void *addr);
CUresult cuMemHostRegister_v2(void *addr, size_t len, unsigned flags);
CUresult cuMemHostUnregister(void *addr);
CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *out, void *addr, unsigned flags);

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t len, CUstream stream);
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t len, CUstream stream);
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t len, CUstream stream);
CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *copy, CUstream stream);
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t n, CUstream stream);
CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t n, CUstream stream);

CUresult cuMemAddressReserve(
	CUdeviceptr *out, size_t len, size_t alignment, CUdeviceptr wanted, unsigned long long flags);
CUresult cuMemAddressFree(CUdeviceptr addr, size_t len);
CUresult cuMemCreate(CUmemGenericAllocationHandle *out, size_t len, const CUmemAllocationProp *prop,
	unsigned long long flags);
CUresult cuMemRelease(CUmemGenericAllocationHandle handle);
CUresult cuMemMap(CUdeviceptr addr, size_t len, size_t offset, CUmemGenericAllocationHandle handle,
	unsigned long long flags);
CUresult cuMemUnmap(CUdeviceptr addr, size_t len);
CUresult cuMemSetAccess(CUdeviceptr addr, size_t len, const CUmemAccessDesc *desc, size_t n);
CUresult cuMemGetAllocationGranularity(
	size_t *out, const CUmemAllocationProp *prop, CUmemAllocationGranularity_flags option);
/* out: for a POSIX descriptor an int. */
CUresult cuMemExportToShareableHandle(void *out, CUmemGenericAllocationHandle handle,
	CUmemAllocationHandleType type, unsigned long long flags);
/* os_handle: for a POSIX descriptor the int itself, cast. */
CUresult cuMemImportFromShareableHandle(
	CUmemGenericAllocationHandle *out, void *os_handle, CUmemAllocationHandleType type);

CUresult cuStreamCreateWithPriority(CUstream *out, unsigned flags, int priority);
CUresult cuStreamDestroy_v2(CUstream stream);
CUresult cuStreamSynchronize(CUstream stream);
CUresult cuStreamQuery(CUstream stream);
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags);

CUresult cuEventCreate(CUevent *out, unsigned flags);
CUresult cuEventDestroy_v2(CUevent event);
CUresult cuEventRecord(CUevent event, CUstream stream);
CUresult cuEventQuery(CUevent event);
CUresult cuEventSynchronize(CUevent event);
CUresult cuEventElapsedTime(float *ms, CUevent start, CUevent end);

CUresult cuIpcGetMemHandle(CUipcMemHandle *out, CUdeviceptr addr);
CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *out, CUipcMemHandle handle, unsigned flags);
CUresult cuIpcCloseMemHandle(CUdeviceptr addr);
CUresult cuIpcGetEventHandle(CUipcEventHandle *out, CUevent event);
CUresult cuIpcOpenEventHandle(CUevent *out, CUipcEventHandle handle);

#if defined __cplusplus && !defined KERNELS_CUDA_API_COMPARED
}
#endif

/* All of them: the name we call it by, the symbol's name. */
#define CUDA_ENTRIES(ENTRY)                                                                                  \
	ENTRY(cuInit, cuInit)                                                                                \
	ENTRY(cuDriverGetVersion, cuDriverGetVersion)                                                        \
	ENTRY(cuGetErrorName, cuGetErrorName)                                                                \
	ENTRY(cuGetErrorString, cuGetErrorString)                                                            \
	ENTRY(cuDeviceGetCount, cuDeviceGetCount)                                                            \
	ENTRY(cuDeviceGet, cuDeviceGet)                                                                      \
	ENTRY(cuDeviceGetName, cuDeviceGetName)                                                              \
	ENTRY(cuDeviceGetAttribute, cuDeviceGetAttribute)                                                    \
	ENTRY(cuDeviceTotalMem, cuDeviceTotalMem_v2)                                                         \
	ENTRY(cuDeviceGetUuid, cuDeviceGetUuid_v2)                                                           \
	ENTRY(cuDevicePrimaryCtxSetFlags, cuDevicePrimaryCtxSetFlags_v2)                                     \
	ENTRY(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain)                                            \
	ENTRY(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2)                                       \
	ENTRY(cuCtxSetCurrent, cuCtxSetCurrent)                                                              \
	ENTRY(cuCtxGetCurrent, cuCtxGetCurrent)                                                              \
	ENTRY(cuCtxSynchronize, cuCtxSynchronize)                                                            \
	ENTRY(cuCtxGetStreamPriorityRange, cuCtxGetStreamPriorityRange)                                      \
	ENTRY(cuModuleLoadData, cuModuleLoadData)                                                            \
	ENTRY(cuModuleUnload, cuModuleUnload)                                                                \
	ENTRY(cuModuleGetFunction, cuModuleGetFunction)                                                      \
	ENTRY(cuFuncGetAttribute, cuFuncGetAttribute)                                                        \
	ENTRY(cuFuncSetAttribute, cuFuncSetAttribute)                                                        \
	ENTRY(cuLaunchKernel, cuLaunchKernel)                                                                \
	ENTRY(cuLaunchHostFunc, cuLaunchHostFunc)                                                            \
	ENTRY(cuMemGetInfo, cuMemGetInfo_v2)                                                                 \
	ENTRY(cuMemAlloc, cuMemAlloc_v2)                                                                     \
	ENTRY(cuMemFree, cuMemFree_v2)                                                                       \
	ENTRY(cuMemGetAddressRange, cuMemGetAddressRange_v2)                                                 \
	ENTRY(cuMemHostAlloc, cuMemHostAlloc)                                                                \
	ENTRY(cuMemFreeHost, cuMemFreeHost)                                                                  \
	ENTRY(cuMemHostRegister, cuMemHostRegister_v2)                                                       \
	ENTRY(cuMemHostUnregister, cuMemHostUnregister)                                                      \
	ENTRY(cuMemHostGetDevicePointer, cuMemHostGetDevicePointer_v2)                                       \
	ENTRY(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2)                                                       \
	ENTRY(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2)                                                       \
	ENTRY(cuMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2)                                                       \
	ENTRY(cuMemcpy2DAsync, cuMemcpy2DAsync_v2)                                                           \
	ENTRY(cuMemsetD8Async, cuMemsetD8Async)                                                              \
	ENTRY(cuMemsetD32Async, cuMemsetD32Async)                                                            \
	ENTRY(cuMemAddressReserve, cuMemAddressReserve)                                                      \
	ENTRY(cuMemAddressFree, cuMemAddressFree)                                                            \
	ENTRY(cuMemCreate, cuMemCreate)                                                                      \
	ENTRY(cuMemRelease, cuMemRelease)                                                                    \
	ENTRY(cuMemMap, cuMemMap)                                                                            \
	ENTRY(cuMemUnmap, cuMemUnmap)                                                                        \
	ENTRY(cuMemSetAccess, cuMemSetAccess)                                                                \
	ENTRY(cuMemGetAllocationGranularity, cuMemGetAllocationGranularity)                                  \
	ENTRY(cuMemExportToShareableHandle, cuMemExportToShareableHandle)                                    \
	ENTRY(cuMemImportFromShareableHandle, cuMemImportFromShareableHandle)                                \
	ENTRY(cuStreamCreateWithPriority, cuStreamCreateWithPriority)                                        \
	ENTRY(cuStreamDestroy, cuStreamDestroy_v2)                                                           \
	ENTRY(cuStreamSynchronize, cuStreamSynchronize)                                                      \
	ENTRY(cuStreamQuery, cuStreamQuery)                                                                  \
	ENTRY(cuStreamWaitEvent, cuStreamWaitEvent)                                                          \
	ENTRY(cuEventCreate, cuEventCreate)                                                                  \
	ENTRY(cuEventDestroy, cuEventDestroy_v2)                                                             \
	ENTRY(cuEventRecord, cuEventRecord)                                                                  \
	ENTRY(cuEventQuery, cuEventQuery)                                                                    \
	ENTRY(cuEventSynchronize, cuEventSynchronize)                                                        \
	ENTRY(cuEventElapsedTime, cuEventElapsedTime)                                                        \
	ENTRY(cuIpcGetMemHandle, cuIpcGetMemHandle)                                                          \
	ENTRY(cuIpcOpenMemHandle, cuIpcOpenMemHandle_v2)                                                     \
	ENTRY(cuIpcCloseMemHandle, cuIpcCloseMemHandle)                                                      \
	ENTRY(cuIpcGetEventHandle, cuIpcGetEventHandle)                                                      \
	ENTRY(cuIpcOpenEventHandle, cuIpcOpenEventHandle)

#endif
