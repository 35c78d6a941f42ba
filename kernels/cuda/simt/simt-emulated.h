/*
 * simt.h for a host compiler (g++, clang++; C++17). The threads of a block are fibres of one OS thread, which
 * the engine (tests/cuda/double/simt.cc) switches between at barriers and collectives; blocks may run on
 * several OS threads at once. Shared memory is filled with NaNs before each block. What CUDA leaves undefined
 * ends the process with a message: lanes that do not agree on a collective, threads that wait for each other
 * for ever, dynamic shared memory written past its end.
 *
 * Asynchronous copies take place when they are waited for and not before, so that a missing wait shows.
 */
#ifndef KERNELS_CUDA_SIMT_EMULATED_H
#define KERNELS_CUDA_SIMT_EMULATED_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* ---- The language. */

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
	unsigned x, y, z;
};
typedef uint3 dim3;

struct __align__(8) uint2
{
	unsigned x, y;
};
struct __align__(16) uint4
{
	unsigned x, y, z, w;
};
struct __align__(8) int2
{
	int x, y;
};
struct __align__(16) int4
{
	int x, y, z, w;
};
struct __align__(8) float2
{
	float x, y;
};
struct __align__(16) float4
{
	float x, y, z, w;
};

static inline uint2 make_uint2(unsigned x, unsigned y)
{
	return {x, y};
}

static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
	return {x, y, z, w};
}

static inline int2 make_int2(int x, int y)
{
	return {x, y};
}

static inline int4 make_int4(int x, int y, int z, int w)
{
	return {x, y, z, w};
}

static inline float2 make_float2(float x, float y)
{
	return {x, y};
}

static inline float4 make_float4(float x, float y, float z, float w)
{
	return {x, y, z, w};
}

/* ---- What the engine provides. */

/* Of the thread that runs now, on this OS thread. */
struct simt_self {
	uint3 thread, block;
	dim3 block_dim, grid_dim;
	void *shared;         /* dynamic */
	struct simt_run *run; /* the engine's */
	void *races;          /* and its search for races' */
};
extern __thread struct simt_self simt_self;

#define threadIdx (simt_self.thread)
#define blockIdx (simt_self.block)
#define blockDim (simt_self.block_dim)
#define gridDim (simt_self.grid_dim)
#define warpSize 32

#define SIMT_SHARED(type, name) type *const name = static_cast<type *>(simt_self.shared)

/* Every lane named in mask hands in something; the last to come has combine work on all (of[i] is NULL for a
 * lane that is not named or has ended), and all go on. what: the collective's name, for messages. */
typedef void simt_combine(void *const of[32], const char *what);
void simt_collective(const char *what, unsigned mask, int line, void *mine, simt_combine *combine);
void simt_barrier(int line);
/* Lets others run. */
void simt_yield(void);
void simt_copy_add(void *shared, const void *global);
void simt_copy_close(void);
void simt_copy_finish(unsigned n_left);
/* What a thread's warpgroup has under way; and whether this GPU has such products: CISTERN_SIMT_WARPGROUPS=0
 * in the environment says it does not. */
struct simt_products *simt_products_here(void);
bool simt_warpgroups(void);
[[noreturn]] void simt_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- Barriers and fences. line: where it is called, which all callers must share. */

static inline void __syncthreads(int line = __builtin_LINE())
{
	simt_barrier(line);
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE())
{
	simt_collective("__syncwarp", mask, line, &mask, [](void *const *, const char *) {});
}

static inline void __threadfence()
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void __threadfence_block()
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void __threadfence_system()
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void __nanosleep(unsigned)
{
	simt_yield();
}

/* ---- Shuffles and votes. */

struct simt_shuffle {
	uint64_t value;
	int source; /* lane of the warp */
};

template <class T> static T simt_shuffle_from(const char *what, unsigned mask, T value, int source, int line)
{
	static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 32 or 64 bits");
	struct simt_shuffle mine = {0, source};

	memcpy(&mine.value, &value, sizeof value);
	simt_collective(what, mask, line, &mine, [](void *const of[32], const char *name) {
		uint64_t given[32] = {0};
		for (int i = 0; i < 32; i++)
			if (of[i])
				given[i] = static_cast<struct simt_shuffle *>(of[i])->value;
		for (int i = 0; i < 32; i++) {
			if (!of[i])
				continue;
			struct simt_shuffle *to = static_cast<struct simt_shuffle *>(of[i]);
			if (!of[to->source])
				simt_fault("%s: lane %d reads lane %d, which takes no part", name, i,
					to->source);
			to->value = given[to->source];
		}
	});
	memcpy(&value, &mine.value, sizeof value);
	return value;
}

static inline int simt_lane()
{
	return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}

template <class T>
static T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE())
{
	const int base = simt_lane() & ~(width - 1);
	return simt_shuffle_from("__shfl_sync", mask, value, base + (source & (width - 1)), line);
}

template <class T>
static T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE())
{
	const int lane = simt_lane(), source = lane - static_cast<int>(delta);
	return simt_shuffle_from(
		"__shfl_up_sync", mask, value, source < (lane & ~(width - 1)) ? lane : source, line);
}

template <class T>
static T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE())
{
	const int lane = simt_lane(), source = lane + static_cast<int>(delta);
	return simt_shuffle_from(
		"__shfl_down_sync", mask, value, source > (lane | (width - 1)) ? lane : source, line);
}

template <class T>
static T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE())
{
	const int lane = simt_lane(), source = lane ^ bits;
	return simt_shuffle_from(
		"__shfl_xor_sync", mask, value, source > (lane | (width - 1)) ? lane : source, line);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE())
{
	unsigned mine = predicate != 0;

	simt_collective("__ballot_sync", mask, line, &mine, [](void *const of[32], const char *) {
		unsigned all = 0;
		for (int i = 0; i < 32; i++)
			if (of[i])
				all |= *static_cast<unsigned *>(of[i]) << i;
		for (int i = 0; i < 32; i++)
			if (of[i])
				*static_cast<unsigned *>(of[i]) = all;
	});
	return mine;
}

static inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE())
{
	return __ballot_sync(mask, predicate, line) != 0;
}

static inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE())
{
	return __ballot_sync(mask, !predicate, line) == 0;
}

/* ---- Atomics, on global and on shared memory. */

template <class T, class F> static T simt_atomic(T *at, F next)
{
	T old, now;

	__atomic_load(at, &old, __ATOMIC_RELAXED);
	do
		now = next(old);
	while (!__atomic_compare_exchange(at, &old, &now, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
	return old;
}

/* The operand's type is not deduced: atomicAdd(&unsigned_counter, 1) is fine, as it is in CUDA. */
template <class T> struct simt_same {
	typedef T type;
};

#define SIMT_ATOMIC(name, expression)                                                                        \
	template <class T> static T name(T *at, typename simt_same<T>::type operand)                         \
	{                                                                                                    \
		return simt_atomic(at, [operand](T old) -> T { return (expression); });                      \
	}
SIMT_ATOMIC(atomicAdd, old + operand)
SIMT_ATOMIC(atomicSub, old - operand)
SIMT_ATOMIC(atomicMax, old > operand ? old : operand)
SIMT_ATOMIC(atomicMin, old < operand ? old : operand)
SIMT_ATOMIC(atomicOr, old | operand)
SIMT_ATOMIC(atomicAnd, old &operand)
SIMT_ATOMIC(atomicXor, old ^ operand)
SIMT_ATOMIC(atomicExch, (static_cast<void>(old), operand))
#undef SIMT_ATOMIC

template <class T>
static T atomicCAS(T *at, typename simt_same<T>::type expected, typename simt_same<T>::type wanted)
{
	T old = expected;

	__atomic_compare_exchange(at, &old, &wanted, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
	return old;
}

/* ---- Bits and arithmetic. */

static inline int __popc(unsigned x)
{
	return __builtin_popcount(x);
}

static inline int __popcll(unsigned long long x)
{
	return __builtin_popcountll(x);
}

static inline int __clz(int x)
{
	return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}

static inline int __clzll(long long x)
{
	return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}

static inline int __ffs(int x)
{
	return __builtin_ffs(x);
}

static inline int __ffsll(long long x)
{
	return __builtin_ffsll(x);
}

static inline unsigned __brev(unsigned x)
{
	x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
	x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
	x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
	return __builtin_bswap32(x);
}

static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift)
{
	const uint64_t both = static_cast<uint64_t>(hi) << 32 | lo;
	return static_cast<unsigned>(both << (shift & 31) >> 32);
}

static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift)
{
	const uint64_t both = static_cast<uint64_t>(hi) << 32 | lo;
	return static_cast<unsigned>(both >> (shift & 31));
}

/* Selector nibbles: which of the eight bytes; their highest bit is not looked at. */
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
	const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
	unsigned out = 0;
	for (int i = 0; i < 4; i++) {
		const unsigned which = selector >> (4 * i) & 7u;
		out |= (static_cast<unsigned>(both >> (8 * which)) & 0xffu) << (8 * i);
	}
	return out;
}

static inline unsigned __umulhi(unsigned a, unsigned b)
{
	return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
	__extension__ typedef unsigned __int128 wide;
	return static_cast<unsigned long long>(static_cast<wide>(a) * b >> 64);
}

template <class T> static T __ldg(const T *at)
{
	return *at;
}

/* To be read once: it need not stay in a cache. */
template <class T> static T __ldcs(const T *at)
{
	return *at;
}

/* Reads what is asked for, so that an address that may not be shows. */
static inline void simt_prefetch(const void *global)
{
	static_cast<void>(*static_cast<const volatile uint8_t *>(global));
}

typedef const uint8_t *simt_shared;

static inline simt_shared simt_shared_of(const void *shared)
{
	return static_cast<simt_shared>(shared);
}

static inline uint32_t simt_load_byte(simt_shared at)
{
	return *at;
}

static inline uint2 simt_load_pair(simt_shared at)
{
	return *reinterpret_cast<const uint2 *>(at);
}

static inline uint32_t simt_mad(uint32_t a, uint32_t b, uint32_t c)
{
	return a * b + c;
}

static inline void simt_store_word(uint8_t *global, uint32_t word, bool does)
{
	if (!does)
		return;
	global[0] = static_cast<uint8_t>(word);
	global[1] = static_cast<uint8_t>(word >> 8);
}

static inline unsigned __float_as_uint(float x)
{
	unsigned u;
	memcpy(&u, &x, sizeof u);
	return u;
}

static inline float __uint_as_float(unsigned u)
{
	float x;
	memcpy(&x, &u, sizeof x);
	return x;
}

#define SIMT_MIN_MAX(type)                                                                                   \
	static inline type min(type a, type b)                                                               \
	{                                                                                                    \
		return b < a ? b : a;                                                                        \
	}                                                                                                    \
	static inline type max(type a, type b)                                                               \
	{                                                                                                    \
		return a < b ? b : a;                                                                        \
	}
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX

static inline float rsqrtf(float x)
{
	return 1.0f / sqrtf(x);
}

/* Fused, rounded down or up: the sum in double is exact but for its own rounding, whose error is known to
 * the bit (D. Knuth, TAOCP 2, 4.2.2, theorem B). x y is exact in double. */
static inline float simt_fused_towards(float x, float y, float z, float end)
{
	const double product = static_cast<double>(x) * static_cast<double>(y), addend = z;
	const double sum = product + addend, part = sum - product;
	const double error = (product - (sum - part)) + (addend - part);
	const float nearest = static_cast<float>(sum);
	const double over = static_cast<double>(nearest) - sum;
	const bool is_over = over > 0 || (over == 0 && error < 0);
	const bool is_under = over < 0 || (over == 0 && error > 0);

	if (sum == 0 && signbit(product) != signbit(addend))
		return end < 0 ? -0.0f : 0.0f;
	return (end < 0 && is_over) || (end > 0 && is_under) ? nextafterf(nearest, end) : nearest;
}

static inline float __fmaf_rd(float x, float y, float z)
{
	return simt_fused_towards(x, y, z, -INFINITY);
}

static inline float __fmaf_ru(float x, float y, float z)
{
	return simt_fused_towards(x, y, z, INFINITY);
}

/* ---- f16. */

static inline uint16_t simt_half(float x)
{
	const uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
	const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);

	if (magnitude > 0x7f800000u)
		return 0x7fffu;
	if (magnitude >= 0x477ff000u) /* 65520 and above */
		return static_cast<uint16_t>(sign | 0x7c00u);
	if (magnitude < 0x38800000u) {
		/* Subnormal: the sum's last place is 2^-24, so the addition rounds. */
		const uint32_t rounded = __float_as_uint(__uint_as_float(magnitude) + 0.5f);
		return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
	}
	return static_cast<uint16_t>(
		sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
}

static inline uint32_t simt_half2(float lo, float hi)
{
	return simt_half(lo) | static_cast<uint32_t>(simt_half(hi)) << 16;
}

static inline uint32_t simt_bfloat2(float lo, float hi)
{
	uint32_t both = 0;

	for (int i = 0; i < 2; i++) {
		const uint32_t bits = __float_as_uint(i ? hi : lo);
		const uint32_t rounded = (bits & 0x7fffffffu) > 0x7f800000u
						 ? 0x7fffu
						 : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
		both |= rounded << (16 * i);
	}
	return both;
}

static inline float simt_float(uint16_t h)
{
	const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, exponent = h >> 10 & 31u,
		       mantissa = h & 0x3ffu;

	if (exponent == 31)
		return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
	if (exponent == 0)
		return __uint_as_float(sign | __float_as_uint(static_cast<float>(mantissa) * 0x1p-24f));
	return __uint_as_float(sign | (exponent + 112u) << 23 | mantissa << 13);
}

/* ---- Matrices. */

struct simt_mma {
	float *d;
	const uint32_t *a, *b;
};

static inline void simt_check_whole(void *const of[32], const char *what)
{
	for (int lane = 0; lane < 32; lane++)
		if (!of[lane])
			simt_fault("%s: lane %d has ended, and all are needed", what, lane);
}

/* The sums of real tensor cores are of no stated order and precision; here they go up in k, in f32. */
static inline void simt_mma_f16(
	float d[4], const uint32_t a[4], const uint32_t b[2], int line = __builtin_LINE())
{
	struct simt_mma mine = {d, a, b};

	simt_collective("simt_mma_f16", 0xffffffffu, line, &mine, [](void *const of[32], const char *what) {
		simt_check_whole(of, what);
		float left[16][16], right[16][8];
		for (int lane = 0; lane < 32; lane++) {
			const struct simt_mma *from = static_cast<struct simt_mma *>(of[lane]);
			const int group = lane / 4, pair = lane % 4 * 2;
			for (int i = 0; i < 8; i++)
				left[group + (i & 2 ? 8 : 0)][pair + (i & 1) + (i & 4 ? 8 : 0)] =
					simt_float(static_cast<uint16_t>(from->a[i / 2] >> (i & 1 ? 16 : 0)));
			for (int i = 0; i < 4; i++)
				right[pair + (i & 1) + (i & 2 ? 8 : 0)][group] =
					simt_float(static_cast<uint16_t>(from->b[i / 2] >> (i & 1 ? 16 : 0)));
		}
		for (int lane = 0; lane < 32; lane++) {
			float *to = static_cast<struct simt_mma *>(of[lane])->d;
			const int group = lane / 4, pair = lane % 4 * 2;
			for (int i = 0; i < 4; i++)
				for (int k = 0; k < 16; k++)
					to[i] += left[group + (i & 2 ? 8 : 0)][k] * right[k][pair + (i & 1)];
		}
	});
}

struct simt_rows {
	uint32_t *r;
	const void *row;
};

static inline void simt_check_aligned(const void *address, const char *what)
{
	if (reinterpret_cast<uintptr_t>(address) % 16)
		simt_fault("%s: %p is not aligned to 16 bytes", what, address);
}

template <bool transposed> static void simt_ldmatrix(uint32_t r[4], const void *shared, int line)
{
	struct simt_rows mine = {r, shared};

	simt_collective(transposed ? "simt_ldmatrix_x4_trans" : "simt_ldmatrix_x4", 0xffffffffu, line, &mine,
		[](void *const of[32], const char *what) {
			uint16_t rows[32][8];
			simt_check_whole(of, what);
			for (int lane = 0; lane < 32; lane++) {
				const void *row = static_cast<struct simt_rows *>(of[lane])->row;
				simt_check_aligned(row, what);
				memcpy(rows[lane], row, 16);
			}
			for (int lane = 0; lane < 32; lane++)
				for (int i = 0; i < 4; i++) {
					const uint16_t(*m)[8] = rows + 8 * i;
					const int row = lane / 4, pair = lane % 4 * 2;
					const uint32_t lo = transposed ? m[pair][row] : m[row][pair];
					const uint32_t hi = transposed ? m[pair + 1][row] : m[row][pair + 1];
					static_cast<struct simt_rows *>(of[lane])->r[i] = lo | hi << 16;
				}
		});
}

static inline void simt_ldmatrix_x4(uint32_t r[4], const void *shared, int line = __builtin_LINE())
{
	simt_ldmatrix<false>(r, shared, line);
}

static inline void simt_ldmatrix_x4_trans(uint32_t r[4], const void *shared, int line = __builtin_LINE())
{
	simt_ldmatrix<true>(r, shared, line);
}

/* ---- Asynchronous copies. */

static inline void simt_copy16(void *shared, const void *global)
{
	simt_check_aligned(shared, "simt_copy16");
	simt_check_aligned(global, "simt_copy16");
	simt_copy_add(shared, global);
}

static inline void simt_copy16_to(simt_shared to, const void *global)
{
	simt_copy16(const_cast<uint8_t *>(to), global);
}

static inline void simt_copy_commit()
{
	simt_copy_close();
}

template <int N> static void simt_copy_wait()
{
	simt_copy_finish(N);
}

/* ---- Products of a warpgroup. A warp's share needs nothing of the others, nor a lane's: each computes its
 * own when it is waited for, as late as may be, from what shared memory holds then. */

#define SIMT_WARPGROUPS simt_warpgroups()

struct simt_matrix {
	const void *shared;
	uint32_t group_bytes, block_bytes;
};

/* In the background: d is the thread's own. */
struct simt_product {
	float (*d)[4];
	struct simt_matrix a, b;
	bool across;
};

enum { SIMT_PRODUCTS_MAX = 16 };

struct simt_products {
	struct simt_product of[SIMT_PRODUCTS_MAX];
	unsigned n;
	bool begun, committed;
};

static inline struct simt_matrix simt_matrix_at(
	const void *shared, uint32_t group_bytes, uint32_t block_bytes)
{
	return {shared, group_bytes, block_bytes};
}

static inline struct simt_matrix simt_matrix_on(struct simt_matrix m, uint32_t bytes)
{
	m.shared = static_cast<const char *>(m.shared) + bytes;
	return m;
}

static inline void simt_products_begin()
{
	simt_products_here()->begun = true;
}

static inline void simt_products_see()
{
}

static inline void simt_products_commit()
{
	simt_products_here()->committed = true;
}

/* Element k of row or column mn. */
static inline float simt_matrix_get(const struct simt_matrix &m, bool across, uint32_t mn, uint32_t k)
{
	const uintptr_t at =
		reinterpret_cast<uintptr_t>(m.shared) +
		(across ? mn / 64 * m.block_bytes + mn % 64 * 2 + k / 8 * m.group_bytes + k % 8 * 128
			: mn / 8 * m.group_bytes + mn % 8 * 128 + k * 2);

	return simt_float(*reinterpret_cast<const uint16_t *>(at ^ (at >> 7 & 7) << 4));
}

template <bool ACROSS>
static inline void simt_products_add(float (&d)[16][4], const simt_matrix &a, const simt_matrix &b)
{
	struct simt_products *p = simt_products_here();

	if (!p->begun || p->n == SIMT_PRODUCTS_MAX)
		simt_fault("simt_products_add: %s", p->begun ? "too many under way" : "not begun");
	simt_check_aligned(a.shared, "simt_products_add");
	simt_check_aligned(b.shared, "simt_products_add");
	p->of[p->n++] = {d, a, b, ACROSS};
	p->committed = false;
}

static inline void simt_products_wait(float (&d)[16][4])
{
	struct simt_products *p = simt_products_here();
	const unsigned lane = threadIdx.x % 32, row0 = threadIdx.x / 32 % 4 * 16 + lane / 4;

	if (p->n && !p->committed)
		simt_fault("simt_products_wait: products were not committed");
	for (unsigned n = 0; n < p->n; n++) {
		const struct simt_product &x = p->of[n];

		if (x.d != d)
			simt_fault("simt_products_wait: for other sums than those under way");
		for (unsigned k = 0; k < 16; k++) {
			const float left[2] = {simt_matrix_get(x.a, x.across, row0, k),
				simt_matrix_get(x.a, x.across, row0 + 8, k)};

			for (unsigned j = 0; j < 16; j++)
				for (unsigned i = 0; i < 2; i++) {
					const float right =
						simt_matrix_get(x.b, x.across, 8 * j + lane % 4 * 2 + i, k);

					x.d[j][i] += left[0] * right;
					x.d[j][2 + i] += left[1] * right;
				}
		}
	}
	p->n = 0;
	p->begun = false;
}

#define SIMT_UNROLL
#define SIMT_UNROLL_BY(n)

#endif
