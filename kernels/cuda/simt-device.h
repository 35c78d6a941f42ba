/* simt.h for nvcc. Fragments of simt_mma_f16 lie as the PTX ISA says under "Matrix Fragments for
 * mma.m16n8k16". */
#ifndef KERNELS_CUDA_SIMT_DEVICE_H
#define KERNELS_CUDA_SIMT_DEVICE_H

#include <cuda_fp16.h>
#include <stdint.h>

/* The launch's dynamic shared memory, from its start, as elements of a type. */
#define SIMT_SHARED(type, name)                                                                              \
	extern __shared__ __align__(128) unsigned char simt_dynamic_shared[];                                \
	type *const name = reinterpret_cast<type *>(simt_dynamic_shared)

/* d[16x8] += a[16x16] b[16x8]: f16 in, f32 sums. The whole warp. */
__device__ __forceinline__ void simt_mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
		     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint32_t simt_shared_address(const void *shared)
{
	return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

/* Four 8x8 matrices of 16-bit elements: lane 8 i + r points at row r, 16 bytes, of matrix i. The whole warp.
 */
__device__ __forceinline__ void simt_ldmatrix_x4(uint32_t r[4], const void *shared)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
		     : "r"(simt_shared_address(shared))
		     : "memory");
}

__device__ __forceinline__ void simt_ldmatrix_x4_trans(uint32_t r[4], const void *shared)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
		     : "r"(simt_shared_address(shared))
		     : "memory");
}

/* 16 bytes from global to shared memory, aligned both, past the registers and past L1. Done when the group
 * that the next commit closes has been waited for; visible to other threads after a barrier. */
__device__ __forceinline__ void simt_copy16(void *shared, const void *global)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
		     :
		     : "r"(simt_shared_address(shared)), "l"(__cvta_generic_to_global(global))
		     : "memory");
}

__device__ __forceinline__ void simt_copy_commit()
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until no more than the N latest groups are under way. */
template <int N> __device__ __forceinline__ void simt_copy_wait()
{
	asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

/* f16 as bits, to nearest even; too large becomes infinite. */
__device__ __forceinline__ uint16_t simt_half(float x)
{
	return __half_as_ushort(__float2half_rn(x));
}

__device__ __forceinline__ uint32_t simt_half2(float lo, float hi)
{
	uint32_t both;
	asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(hi), "f"(lo));
	return both;
}

__device__ __forceinline__ float simt_float(uint16_t h)
{
	return __half2float(__ushort_as_half(h));
}

/* Before a loop of known length whose arrays are to stay in registers. */
#define SIMT_UNROLL _Pragma("unroll")

#endif
