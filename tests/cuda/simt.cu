#include "tests/cuda/simt-kernels.h"

/* One warp; K in steps of 16, all operands by way of shared memory. */
extern "C" __global__ void __launch_bounds__(32) simt_test_product(const struct simt_test_product_args a)
{
	enum { K = SIMT_TEST_K, ROW = K + 8 };
	SIMT_SHARED(uint16_t, left); /* [16, ROW], then bt: [8, ROW], then b: [K, 8] */
	uint16_t *const right_t = left + 16 * ROW;
	uint16_t *const right = right_t + 8 * ROW;
	const unsigned lane = threadIdx.x;
	float d[4] = {0, 0, 0, 0}, d_trans[4] = {0, 0, 0, 0};

	for (unsigned i = lane; i < 16 * K / 8; i += 32)
		simt_copy16(left + i / (K / 8) * ROW + i % (K / 8) * 8, a.a + 8 * i);
	for (unsigned i = lane; i < 8 * K / 8; i += 32)
		simt_copy16(right_t + i / (K / 8) * ROW + i % (K / 8) * 8, a.bt + 8 * i);
	simt_copy_commit();
	for (unsigned i = lane; i < K; i += 32)
		simt_copy16(right + 8 * i, a.b + 8 * i);
	simt_copy_commit();
	simt_copy_wait<1>();
	__syncwarp();

	for (unsigned k = 0; k < K; k += 32) {
		uint32_t b[4];

		simt_ldmatrix_x4(b, right_t + lane % 8 * ROW + k + lane / 8 * 8);
		for (unsigned half = 0; half < 2; half++) {
			uint32_t fragment[4];

			simt_ldmatrix_x4(fragment, left + lane % 16 * ROW + k + 16 * half + lane / 16 * 8);
			simt_mma_f16(d, fragment, b + 2 * half);
		}
	}
	simt_copy_wait<0>();
	__syncwarp();
	for (unsigned k = 0; k < K; k += 32) {
		uint32_t b[4];

		simt_ldmatrix_x4_trans(b, right + (k + lane) * 8);
		for (unsigned half = 0; half < 2; half++) {
			uint32_t fragment[4];

			simt_ldmatrix_x4(fragment, left + lane % 16 * ROW + k + 16 * half + lane / 16 * 8);
			simt_mma_f16(d_trans, fragment, b + 2 * half);
		}
	}
	for (unsigned i = 0; i < 4; i++) {
		const unsigned at = (lane / 4 + (i & 2 ? 8 : 0)) * 8 + lane % 4 * 2 + (i & 1);

		a.d[at] = d[i];
		a.d_trans[at] = d_trans[i];
	}
}

extern "C" __global__ void __launch_bounds__(32) simt_test_votes(const struct simt_test_votes_args a)
{
	const unsigned lane = threadIdx.x, all = 0xffffffffu;
	uint32_t *const out = a.out + lane * SIMT_TEST_VOTES;

	out[0] = __shfl_sync(all, lane * 3, (lane + 5) % 32);
	out[1] = __shfl_up_sync(all, lane * 3, 2);
	out[2] = __shfl_down_sync(all, lane * 3, 7);
	out[3] = __shfl_xor_sync(all, lane * 3, 9);
	out[4] = __shfl_sync(all, lane * 3, 13, 8);
	out[5] = __shfl_up_sync(all, lane * 3, 3, 16);
	out[6] = __shfl_down_sync(all, lane * 3, 3, 4);
	out[7] = __shfl_xor_sync(all, lane * 3, 9, 8);
	out[8] = __ballot_sync(all, lane % 3 == 0);
	out[9] = static_cast<uint32_t>(__any_sync(all, lane == 31)) |
		 static_cast<uint32_t>(__all_sync(all, lane < 32)) << 1 |
		 static_cast<uint32_t>(__any_sync(all, lane > 31)) << 2 |
		 static_cast<uint32_t>(__all_sync(all, lane < 31)) << 3;
	/* Two groups, each by itself. */
	if (lane < 12)
		out[10] = __ballot_sync(0x00000fffu, lane & 1);
	else
		out[10] = __ballot_sync(0xfffff000u, lane & 1);
	const unsigned long long wide = __shfl_sync(all, (1ull << 40) * lane + lane, lane ^ 1);
	out[11] = static_cast<uint32_t>(wide >> 40) ^ static_cast<uint32_t>(wide) << 8;
}

/* A scan by warps, then over warps: lives on its barriers. */
extern "C" __global__ void __launch_bounds__(SIMT_TEST_BLOCK) simt_test_sum(const struct simt_test_sum_args a)
{
	__shared__ uint32_t of_warp[SIMT_TEST_BLOCK / 32];
	const unsigned at = blockIdx.x * SIMT_TEST_BLOCK + threadIdx.x, lane = threadIdx.x % 32,
		       warp = threadIdx.x / 32;
	uint32_t sum = a.in[at];

	for (unsigned step = 1; step < 32; step *= 2) {
		const uint32_t below = __shfl_up_sync(0xffffffffu, sum, step);
		sum += lane >= step ? below : 0;
	}
	if (lane == 31)
		of_warp[warp] = sum;
	__syncthreads();
	for (unsigned i = 0; i < warp; i++)
		sum += of_warp[i];
	a.out[at] = sum;
	if (threadIdx.x == SIMT_TEST_BLOCK - 1)
		atomicAdd(a.total, sum);
}

extern "C" __global__ void simt_test_bits(const struct simt_test_bits_args a)
{
	const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;

	if (i >= a.n)
		return;
	__shared__ uint2 pairs[64];
	const uint32_t x = __ldcs(&a.in[2 * i]), y = a.in[2 * i + 1];
	const float z = __uint_as_float(a.in[2 * a.n - 1 - i]);
	uint32_t *const out = a.out + i * SIMT_TEST_BITS;

	pairs[threadIdx.x] = make_uint2(x, y);
	__syncwarp();
	simt_prefetch(a.in + 2 * i);

	out[0] = static_cast<uint32_t>(__popc(x));
	out[1] = static_cast<uint32_t>(__clz(static_cast<int>(x)));
	out[2] = static_cast<uint32_t>(__ffs(static_cast<int>(x)));
	out[3] = __brev(x);
	out[4] = __funnelshift_l(x, y, y);
	out[5] = __funnelshift_r(x, y, y);
	out[6] = __byte_perm(x, y, y & 0xffffu);
	out[7] = __umulhi(x, y);
	out[8] = simt_half(__uint_as_float(x));
	out[9] = simt_half2(__uint_as_float(x), __uint_as_float(y));
	out[10] = __float_as_uint(simt_float(static_cast<uint16_t>(x)));
	out[11] = static_cast<uint32_t>(__popcll(static_cast<unsigned long long>(x) << 32 | y)) +
		  static_cast<uint32_t>(__clzll(static_cast<long long>(y)));
	out[12] = simt_mad(x, y, x ^ y);
	const simt_shared mine = simt_shared_of(pairs) + 8 * threadIdx.x;
	const uint2 pair = simt_load_pair(mine);
	out[13] = pair.x - pair.y;
	out[14] = simt_load_byte(mine + (y & 7));
	out[15] = 0xa5a5a5a5u;
	simt_store_word(reinterpret_cast<uint8_t *>(out + 15) + 1, x, y & 1);
	out[16] = __float_as_uint(__fmaf_rd(__uint_as_float(x), __uint_as_float(y), z));
	out[17] = __float_as_uint(__fmaf_ru(__uint_as_float(x), __uint_as_float(y), z));
}

extern "C" __global__ void simt_test_wrong(const struct simt_test_wrong_args a)
{
	SIMT_SHARED(uint32_t, dynamic);
	const unsigned i = threadIdx.x;

	switch (a.which) {
	case WRONG_BARRIER_LINES:
		if (i < 32)
			__syncthreads();
		else
			__syncthreads();
		break;
	case WRONG_BARRIER_MISSED:
		if (i != 5)
			__syncthreads();
		else
			__syncwarp();
		break;
	case WRONG_LANE_MISSING:
		if (i != 7)
			a.memory[i] = __shfl_sync(0xffffffffu, i, 7);
		break;
	case WRONG_MASKS: __syncwarp(i % 32 < 20 ? 0x001fffffu : 0xfff80000u); break;
	case WRONG_NOT_NAMED: __syncwarp(0x0000ffffu); break;
	case WRONG_SHARED_END:
		if (i == 0)
			dynamic[25] = i;
		break;
	case WRONG_SHARED_FAR:
		if (i == 0)
			dynamic[25 + 32] = i;
		break;
	case WRONG_ALIGNMENT:
		if (i == 0)
			reinterpret_cast<uint4 *>(a.memory + 1)->x = i;
		break;
	case WRONG_ADDRESS:
		if (i == 0)
			a.memory[64] = i;
		break;
	case WRONG_UNINITIALISED: a.memory[i] = dynamic[i % 25]; break;
	case WRONG_COPY_NOT_WAITED:
		if (i == 0) {
			simt_copy16(dynamic, a.memory + 32);
			simt_copy_commit();
			a.memory[0] = dynamic[0];
			simt_copy_wait<0>();
			a.memory[1] = dynamic[0];
		}
		break;
	case WRONG_RACE_OF_BLOCK:
		if (i % 32 == 0)
			dynamic[0] = 1;
		break;
	case WRONG_RACE_OF_WARP:
		if (i < 25)
			dynamic[i] = i;
		__syncthreads();
		if (i == 3)
			dynamic[4] = i;
		/* A shuffle orders no memory. */
		__shfl_sync(0xffffffffu, i, 0);
		if (i == 5)
			a.memory[i] = dynamic[4];
		break;
	case WRONG_RACE_OF_BLOCKS:
		if (i == 0)
			a.memory[gridDim.x] = blockIdx.x;
		break;
	case WRONG_RACE_NONE:
		/* Bytes side by side, one word after a barrier of the warp, atomics of all. */
		reinterpret_cast<uint8_t *>(dynamic)[i] = static_cast<uint8_t>(i);
		__syncwarp();
		if (i < 8)
			a.memory[i + 1] = dynamic[i] + dynamic[i ^ 1];
		atomicAdd(&a.memory[0], 1);
		break;
	default: a.memory[i] = i; break;
	}
}
