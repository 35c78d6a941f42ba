/*
 * Plain KVTC (arXiv 2511.01815), the codec that Cistern is measured against: bit allocation by dynamic
 * programming over groups of components, and the quantiser with a scale and a shift for every active group
 * of every token. For the bench alone; tests/reference/kvtc.py is the same in numpy, tells what is the
 * paper's and what was chosen here, and is what this is checked against. Pure functions over memory.
 *
 * Coefficients are component-major, as everywhere: c[i * stride + t].
 */
#ifndef BENCH_RATE_KVTC_H
#define BENCH_RATE_KVTC_H

#include <stddef.h>
#include <stdint.h>

/* Two bits a coefficient, four, or an e4m3; KVTC_NONE: the group is left out. */
enum kvtc_type { KVTC_NONE, KVTC_INT2, KVTC_INT4, KVTC_FP8, KVTC_TYPES };

enum { KVTC_SIDE_BITS = 32 }; /* scale and shift of one active group of one token, f16 each */

struct kvtc_group {
	uint16_t n_components;
	uint8_t type;
};

/* Groups in the order of the components, which they cover up to the last active group. */
struct kvtc_plan {
	size_t n_groups;
	struct kvtc_group *groups;
	size_t n_components; /* covered: what has to be projected */
};

struct kvtc_allocation;

/* Solves for every budget up to max_bits a token at once, on these coefficients [n_components, n_tokens]: the
 * least squared error that the quantiser makes on them. Memory: 9 bytes for each component and bit. -ENOMEM.
 */
int kvtc_allocate(const float *c, size_t stride, size_t n_components, size_t n_tokens, size_t max_bits,
	struct kvtc_allocation **out);
struct kvtc_allocation *kvtc_allocation_free(struct kvtc_allocation *a);
/* The best plan for a budget (at most max_bits), and its squared error over all given tokens. -ENOMEM. */
int kvtc_plan_new(const struct kvtc_allocation *a, size_t bits, struct kvtc_plan *out, double *squared_error);
/* That error alone. */
double kvtc_allocation_error(const struct kvtc_allocation *a, size_t bits);
void kvtc_plan_fini(struct kvtc_plan *p);
size_t kvtc_plan_bits(const struct kvtc_plan *p);

/* The streams of one part of a chunk. Codes of one kind lie together, group after group, component after
 * component, each padded to whole bytes; so do shifts and scales, low bytes of a group before its high
 * bytes. */
enum kvtc_stream { KVTC_STREAM_SIDE, KVTC_STREAM_INT2, KVTC_STREAM_INT4, KVTC_STREAM_FP8, KVTC_STREAMS };

struct kvtc_streams {
	uint8_t *data[KVTC_STREAMS]; /* room: kvtc_stream_bytes */
	size_t len[KVTC_STREAMS];
};

size_t kvtc_stream_bytes(const struct kvtc_plan *p, enum kvtc_stream stream, size_t n_tokens);

/* Quantises n_tokens columns of c, which become what a decoder makes of the streams. -ENOMEM. */
int kvtc_quantise(
	const struct kvtc_plan *p, float *c, size_t stride, size_t n_tokens, struct kvtc_streams *out);

/* e4m3 (OCP 8-bit floating point: no infinities, largest 448): rounding to nearest even, saturating. */
float kvtc_round_e4m3(float x);
uint8_t kvtc_e4m3_from_float(float rounded);

#endif
