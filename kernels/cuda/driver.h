/*
 * The CUDA driver, loaded at run time: libcuda.so.1 and a table of the entry points that we use, each checked
 * to be there. Nothing is called but cuInit and cuDriverGetVersion. The table is read-only once loaded, any
 * thread may use it. One owner, who frees it when nothing of the driver is in use any more.
 *
 * A build of the tests may put a library of the same name in front (LD_LIBRARY_PATH): the driver double,
 * which carries a mark, so that nobody takes it for a GPU.
 *
 * Matrix products are our own kernels. cuBLASLt would be loaded here in the same way, as a second library
 * with a second table: where it is missing, the own kernels are what there is anyway.
 */
#ifndef KERNELS_CUDA_DRIVER_H
#define KERNELS_CUDA_DRIVER_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/cuda/api.h"

/* The name we call it by, the symbol's name. */
#define DRIVER_TABLE(ENTRY)                                                                                  \
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

struct cuda_driver {
#define DRIVER_MEMBER(name, symbol) __typeof__(symbol) *name;
	DRIVER_TABLE(DRIVER_MEMBER)
#undef DRIVER_MEMBER
	int version;   /* 1000 * major + 10 * minor of the CUDA version that the driver supports */
	bool emulated; /* the double: kernels run on the CPU, whatever the module's image holds */
	void *library; /* the loader's handle, also for what else a test wants of the double */
};

/* Loads and initialises the driver. -ENODEV with a sentence in why: no library, a symbol missing (named), or
 * cuInit refuses; -ENOMEM. */
int driver_load(struct cuda_driver **out, char *why, size_t why_len);
struct cuda_driver *driver_free(struct cuda_driver *d);

/* Its name, if it is one that we know; else "an error that has no name here". */
const char *driver_error_name(CUresult result);

#endif
