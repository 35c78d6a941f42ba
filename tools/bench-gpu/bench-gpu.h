/* What the parts of `cistern bench gpu` share. One thread. */
#ifndef TOOLS_BENCH_GPU_H
#define TOOLS_BENCH_GPU_H

#include <stdbool.h>

#include "tools/bench-gpu/setting.h"

enum { BENCH_GPU_ROUNDS_MAX = 101 };

/* ---- floors.c */

/* What run hands to the stream takes so long by the device's clock: the median of rounds, in ms; the first
 * one does not count. */
int bench_gpu_time(const struct cuda_driver *d, CUstream stream, uint32_t rounds, int (*run)(void *arg),
	void *arg, double *ms);

struct floors {
	double copy_gbps; /* device to device, bytes copied a second */
	double host_gbps; /* device to pinned host memory */
	/* Products of the codec's shapes: operations a second of our own kernel, and of cuBLAS (0: not to be
	 * had). */
	double own_tflops, cublas_tflops;
	double flops;            /* of one product over all tokens and parts */
	double gemm_ms, copy_ms; /* what all tokens take at these rates, of either product */
};

int floors_measure(const struct setting *s, uint32_t rounds, struct floors *out);

/* The encoder's product alone, over some chunks, again and again. */
struct products;
int products_open(const struct setting *s, struct products **out);
void products_close(struct products *p);
int products_time(struct products *p, uint32_t rounds, double *tflops);
/* By the host's clock, for so long, the stream never empty. */
int products_rate(struct products *p, uint64_t ms, double *tflops);

/* ---- profile.c: how long each kernel and copy takes, by events before and behind it: of one run, in which
 * nothing overlaps that would not otherwise. One at a time. */

enum { PROFILE_PARTS_MAX = 32 };

struct profile {
	struct {
		const char *name; /* static */
		double ms;        /* all together */
		uint32_t n;
	} parts[PROFILE_PARTS_MAX];
	uint32_t n;
};

int profile_begin(const struct device *d);
/* To be called also when what came between failed. */
int profile_end(struct profile *out);

/* ---- transfer.c */

struct transfer {
	/* All chunks, by the device's clock, from the first kernel until all images are in device memory,
	 * where a get finds them, checksums and all. Then by the host's, until frames are in host memory,
	 * too. */
	double put_ms, frames_ms;
	double get_ms;         /* images on the device to pages: until the call returns */
	double get_gpu_ms;     /* the same by the device's own clock, from the first kernel to the last */
	double first_group_ms; /* by the device's clock: until the first layer group is in the pages */
	double ratio;
	double components; /* coded, share of all */
	struct profile put, get;
};

int transfer_measure(const struct setting *s, uint32_t rounds, struct transfer *out);

/* ---- gather.c: from pages to a packed copy, behind which a put's source is free */

int gather_measure(const struct setting *s, uint32_t rounds, double *ms);

/* ---- streams.c */

struct stream_figures {
	uint32_t n_streams, bytes_each;
	double deflate_gbps, inflate_gbps; /* of symbols */
	double ratio;
	uint32_t n_checked; /* by zlib, and found right */
};

int streams_measure(const struct device *d, bool small, uint32_t rounds, struct stream_figures *out);

/* ---- neighbour.c: an engine's own work beside the codec's. */

enum { NEIGHBOUR_SHARE = 10 }; /* of the GPU's time, in percent: the daemon's default */

struct neighbour {
	double alone_tflops, beside_tflops;
	double n_puts; /* that went on meanwhile */
	/* With no limit to what is put. */
	double beside_unlimited_tflops, n_puts_unlimited;
};

/* Run in a process of its own, before that one has touched the driver: multiplies matrices without end and
 * writes a double, its TFLOP/s, for each byte that it reads on fd 0. Does not return but with an error. */
int neighbour_run(int ordinal, bool small);
int neighbour_measure(const struct setting *s, int ordinal, bool small, struct neighbour *out);

#endif
