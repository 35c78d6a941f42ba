/* simt.h for nvcc. Fragments of simt_mma_f16 lie as the PTX ISA says under "Matrix Fragments for
 * mma.m16n8k16". */
#ifndef KERNELS_CUDA_SIMT_DEVICE_H
#define KERNELS_CUDA_SIMT_DEVICE_H

#include <cuda_fp16.h>
#include <stdint.h>

/* The launch's dynamic shared memory, from its start, as elements of a type. */
#define SIMT_SHARED(type, name)                                                                              \
	extern __shared__ __align__(1024) unsigned char simt_dynamic_shared[];                               \
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

/* ---- Products of a warpgroup: four warps, the first one's number a multiple of four, both operands in
 * shared memory. Where SIMT_WARPGROUPS is 0 there are none: wgmma is of sm_90 alone. */
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SIMT_WARPGROUPS 1
#define SIMT_WGMMA(...) asm volatile(__VA_ARGS__)
#else
#define SIMT_WARPGROUPS 0
#define SIMT_WGMMA(...) __trap()
#endif

/* A matrix in shared memory in rows of 128 bytes, the piece of 16 bytes number c of row r in place c ^ r % 8;
 * the start of eight rows is aligned to 1024 bytes. PTX ISA, "Matrix Descriptor". Along: rows along the sum,
 * 64 elements; group_bytes: from eight rows to the next. Across: rows across the sum, 64 elements of them;
 * group_bytes: from eight rows to the next, block_bytes: from 64 columns to the next. */
typedef uint64_t simt_matrix;

__device__ __forceinline__ simt_matrix simt_matrix_at(
	const void *shared, uint32_t group_bytes, uint32_t block_bytes)
{
	return (uint64_t)(simt_shared_address(shared) >> 4 & 0x3fff) | (uint64_t)(block_bytes >> 4) << 16 |
	       (uint64_t)(group_bytes >> 4) << 32 | (uint64_t)1 << 62;
}

/* So many bytes on, within a row or by whole groups. */
__device__ __forceinline__ simt_matrix simt_matrix_on(simt_matrix m, uint32_t bytes)
{
	return m + (bytes >> 4);
}

/* A warpgroup's sums, as operands that an instruction changes. */
#define SIMT_SUMS_ROW(d, j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define SIMT_SUMS(d)                                                                                         \
	SIMT_SUMS_ROW(d, 0), SIMT_SUMS_ROW(d, 1), SIMT_SUMS_ROW(d, 2), SIMT_SUMS_ROW(d, 3),                  \
		SIMT_SUMS_ROW(d, 4), SIMT_SUMS_ROW(d, 5), SIMT_SUMS_ROW(d, 6), SIMT_SUMS_ROW(d, 7),          \
		SIMT_SUMS_ROW(d, 8), SIMT_SUMS_ROW(d, 9), SIMT_SUMS_ROW(d, 10), SIMT_SUMS_ROW(d, 11),        \
		SIMT_SUMS_ROW(d, 12), SIMT_SUMS_ROW(d, 13), SIMT_SUMS_ROW(d, 14), SIMT_SUMS_ROW(d, 15)

/* Before the first product, and after other code has touched sums. */
__device__ __forceinline__ void simt_products_begin()
{
	SIMT_WGMMA("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void simt_products_commit()
{
	SIMT_WGMMA("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until all are done: d is theirs, and nobody else's until then. */
__device__ __forceinline__ void simt_products_wait(float (&d)[16][4])
{
	SIMT_WGMMA("wgmma.wait_group.sync.aligned 0;" : SIMT_SUMS(d) : : "memory");
}

/* d[64x128] += a[64x16] b[16x128], in the background: f16 in, f32 sums. Of a warp's sixteen rows a lane has
 * lane / 4 and that plus 8, of columns 8 j .. 8 j + 7 lane % 4 * 2 and the next: d[j] as in simt_mma_f16. */
template <bool ACROSS>
__device__ __forceinline__ void simt_products_add(float (&d)[16][4], simt_matrix a, simt_matrix b)
{
	SIMT_WGMMA("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
		   "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
		   "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
		   "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
		   "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
		   "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
		   "}, %64, %65, p, 1, 1, %66, %66;\n}"
		   : SIMT_SUMS(d)
		   : "l"(a), "l"(b), "n"(ACROSS ? 1 : 0));
}
/* Ordinary writes and finished copies of this thread are seen by products after the next barrier. */
__device__ __forceinline__ void simt_products_see()
{
	SIMT_WGMMA("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- Single instructions. */

/* Asks for the line at an address, which must be within an allocation, to be brought to L2. */
__device__ __forceinline__ void simt_prefetch(const void *global)
{
	asm volatile("prefetch.global.L2 [%0];" : : "l"(__cvta_generic_to_global(global)));
}

/* a * b + c in one instruction: sums that follow are not drawn into it. */
__device__ __forceinline__ uint32_t simt_mad(uint32_t a, uint32_t b, uint32_t c)
{
	uint32_t sum;
	asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
	return sum;
}

/* The lower two bytes of a word, at any address, where `does`: no branch. */
__device__ __forceinline__ void simt_store_word(uint8_t *global, uint32_t word, bool does)
{
	asm volatile("{\n\t"
		     ".reg .pred p;\n\t"
		     "setp.ne.u32 p, %2, 0;\n\t"
		     "@p st.global.u8 [%0], %1;\n\t"
		     "@p st.global.u8 [%0 + 1], %3;\n\t"
		     "}"
		     :
		     : "l"(__cvta_generic_to_global(global)), "r"(word), "r"(static_cast<uint32_t>(does)),
		     "r"(word >> 8)
		     : "memory");
}

/* An address in shared memory, to be added to, that is found once: compilers make it anew at each use
 * otherwise, for they take it to be cheap. Of the whole warp, which all have the same. Loads through it stay
 * in the order of the source. */
typedef uint32_t simt_shared;

__device__ __forceinline__ simt_shared simt_shared_of(const void *shared)
{
	return __shfl_sync(0xffffffffu, simt_shared_address(shared), 0);
}

/* simt_copy16, to such an address. */
__device__ __forceinline__ void simt_copy16_to(simt_shared to, const void *global)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
		     :
		     : "r"(to), "l"(__cvta_generic_to_global(global))
		     : "memory");
}

__device__ __forceinline__ uint32_t simt_load_byte(simt_shared at)
{
	uint32_t byte;
	asm volatile("ld.shared.u8 %0, [%1];" : "=r"(byte) : "r"(at) : "memory");
	return byte;
}

/* Aligned to 8 bytes. */
__device__ __forceinline__ uint2 simt_load_pair(simt_shared at)
{
	uint2 pair;
	asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(pair.x), "=r"(pair.y) : "r"(at) : "memory");
	return pair;
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

/* bf16 the same way. */
__device__ __forceinline__ uint32_t simt_bfloat2(float lo, float hi)
{
	uint32_t both;
	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(hi), "f"(lo));
	return both;
}

__device__ __forceinline__ float simt_float(uint16_t h)
{
	return __half2float(__ushort_as_half(h));
}

/* Before a loop of known length whose arrays are to stay in registers. */
#define SIMT_UNROLL _Pragma("unroll")
/* Before one of unknown length of which n rounds are to be under way at once. */
#define SIMT_UNROLL_BY(n) SIMT_PRAGMA(unroll n)
#define SIMT_PRAGMA(x) _Pragma(#x)

#endif
