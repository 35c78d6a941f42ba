/* Arguments of the kernels that test what kernels are written in. */
#ifndef TESTS_CUDA_SIMT_KERNELS_H
#define TESTS_CUDA_SIMT_KERNELS_H

#include <stdint.h>

enum { SIMT_TEST_K = 64, SIMT_TEST_BLOCK = 256, SIMT_TEST_VOTES = 12, SIMT_TEST_BITS = 18 };

struct simt_test_product_args {
	const uint16_t *a;  /* [16, K] f16 */
	const uint16_t *bt; /* [8, K] f16: B transposed */
	const uint16_t *b;  /* [K, 8] f16: the same B */
	float *d, *d_trans; /* [16, 8]: with B from bt, and from b */
};

struct simt_test_votes_args {
	uint32_t *out; /* [32, SIMT_TEST_VOTES] */
};

struct simt_test_sum_args {
	const uint32_t *in; /* [n_blocks, SIMT_TEST_BLOCK] */
	uint32_t *out;      /* [n_blocks, SIMT_TEST_BLOCK]: sums of all up to and with each */
	uint32_t *total;    /* of everything, added to */
};

struct simt_test_bits_args {
	const uint32_t *in; /* [n, 2] */
	uint32_t *out;      /* [n, SIMT_TEST_BITS] */
	uint32_t n;
};

/* Wrong in a way of one's choice. */
enum simt_test_wrong {
	WRONG_NOTHING,
	WRONG_BARRIER_LINES,   /* two barriers for two halves of a block */
	WRONG_BARRIER_MISSED,  /* a lane waits for its warp, the warp for the lane */
	WRONG_LANE_MISSING,    /* a shuffle without one of its lanes */
	WRONG_MASKS,           /* lanes that name each other in different masks */
	WRONG_NOT_NAMED,       /* a lane that its own mask leaves out */
	WRONG_SHARED_END,      /* a write just past dynamic shared memory */
	WRONG_SHARED_FAR,      /* one far past it */
	WRONG_ALIGNMENT,       /* 16 bytes from an odd place */
	WRONG_ADDRESS,         /* memory past an allocation */
	WRONG_UNINITIALISED,   /* no fault: what shared memory holds at first */
	WRONG_COPY_NOT_WAITED, /* no fault: what an asynchronous copy brings before it is waited for */
	WRONG_RACE_OF_BLOCK,   /* two warps write one word */
	WRONG_RACE_OF_WARP,    /* two lanes, a write and a read */
	WRONG_RACE_OF_BLOCKS,  /* two blocks write one word */
	WRONG_RACE_NONE,       /* no fault: what looks like races */
};

struct simt_test_wrong_args {
	uint32_t *memory; /* [64] */
	uint32_t which;
};

#endif
