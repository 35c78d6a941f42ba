#include "tools/bench-rate/codecs/kvtc.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"

static const size_t sizes[] = {1, 16, 64, 256, 1024};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static const unsigned type_bits[KVTC_TYPES] = {0, 2, 4, 8};

static const float E4M3_MAX = 448, E4M3_LEAST_NORMAL = 0x1p-6f;

/* To the nearest integer, to even on a tie, for |x| under 2^22: the sum has no room for a fraction. */
static inline float round_even(float x)
{
	return (x + 0x1.8p23f) - 0x1.8p23f;
}

static inline float round_e4m3(float x)
{
	float magnitude = fabsf(x), power;
	uint32_t bits;

	magnitude = magnitude < E4M3_MAX ? magnitude : E4M3_MAX;
	power = magnitude > E4M3_LEAST_NORMAL ? magnitude : E4M3_LEAST_NORMAL;
	/* The power of two below: three bits of mantissa follow it. */
	memcpy(&bits, &power, sizeof bits);
	bits &= 0x7f800000;
	memcpy(&power, &bits, sizeof power);
	power *= 0.125f;
	return copysignf(round_even(magnitude / power) * power, x);
}

float kvtc_round_e4m3(float x)
{
	return round_e4m3(x);
}

uint8_t kvtc_e4m3_from_float(float rounded)
{
	uint32_t bits;
	uint8_t sign;

	memcpy(&bits, &rounded, sizeof bits);
	sign = (uint8_t)(bits >> 24 & 0x80);
	bits &= 0x7fffffff;
	if (bits < 0x3c800000) /* subnormal: a multiple of 2^-9 */
		return sign | (uint8_t)(fabsf(rounded) * 0x1p9f);
	return sign | (uint8_t)((bits - 0x3c000000) >> 20);
}

/* ---- one group of one token ---- */

/* Of many tokens, [n_tokens] each. scale and shift are what f16 holds of them. */
struct scaling {
	float *min, *max, *shift, *scale;
	float *divisor; /* scale, or infinity where that is 0: all codes 0 then */
	double *lost;
};

static int scaling_init(struct scaling *s, size_t n_tokens)
{
	float *memory = malloc(n_tokens * (5 * sizeof *memory + sizeof(double)));

	if (!memory)
		return -ENOMEM;
	s->lost = (double *)memory;
	s->min = (float *)(s->lost + n_tokens);
	s->max = s->min + n_tokens;
	s->shift = s->max + n_tokens;
	s->scale = s->shift + n_tokens;
	s->divisor = s->scale + n_tokens;
	return 0;
}

static void scaling_fini(struct scaling *s)
{
	free(s->lost);
}

static void find_range(
	const float *c, size_t stride, size_t n_components, size_t n_tokens, const struct scaling *s)
{
	float *restrict min = s->min, *restrict max = s->max;

	memcpy(min, c, n_tokens * sizeof *min);
	memcpy(max, c, n_tokens * sizeof *max);
	for (size_t i = 1; i < n_components; i++)
		for (size_t t = 0; t < n_tokens; t++) {
			const float x = c[i * stride + t];

			min[t] = x < min[t] ? x : min[t];
			max[t] = x > max[t] ? x : max[t];
		}
}

/* Integers count from the least value up; an e4m3 is finest at 0, so it counts from the middle. */
static void find_scales(enum kvtc_type type, size_t n_tokens, const struct scaling *s)
{
	const float steps = type == KVTC_FP8 ? 2 * E4M3_MAX : (float)((1u << type_bits[type]) - 1);

	for (size_t t = 0; t < n_tokens; t++) {
		const float shift = type == KVTC_FP8 ? (s->min[t] + s->max[t]) * 0.5f : s->min[t];

		s->shift[t] = half_to_float(half_from_float(shift));
		s->scale[t] = half_to_float(half_from_float((s->max[t] - s->min[t]) / steps));
		s->divisor[t] = s->scale[t] > 0 ? s->scale[t] : INFINITY;
	}
}

/* The code's value, before scale and shift. */
static inline float code_of(enum kvtc_type type, float x, float shift, float divisor)
{
	const float top = (float)((1u << type_bits[type]) - 1);
	float v = (x - shift) / divisor;

	if (type == KVTC_FP8)
		return round_e4m3(v);
	v = round_even(v);
	v = v > 0 ? v : 0;
	return v < top ? v : top;
}

/* ---- allocation ---- */

struct choice {
	uint8_t size;
	uint8_t type;
};

struct kvtc_allocation {
	size_t n_components, max_bits;
	double *error;         /* [n_components + 1][max_bits + 1]: of the first so many components */
	struct choice *choice; /* the same: the group that ends there */
};

/* What the quantiser leaves of a group's energy. Inlined for each type, so that the loop over tokens has no
 * branches. */
static inline __attribute__((always_inline)) double error_of(enum kvtc_type type, const float *c,
	size_t stride, size_t n_components, size_t n_tokens, const struct scaling *s)
{
	const float *restrict shift = s->shift, *restrict scale = s->scale, *restrict divisor = s->divisor;
	double *restrict lost = s->lost, sum = 0;

	memset(lost, 0, n_tokens * sizeof *lost);
	for (size_t i = 0; i < n_components; i++)
		for (size_t t = 0; t < n_tokens; t++) {
			const float x = c[i * stride + t];
			const float back =
				type ? code_of(type, x, shift[t], divisor[t]) * scale[t] + shift[t] : 0;
			const double d = (double)(x - back);

			lost[t] += d * d;
		}
	for (size_t t = 0; t < n_tokens; t++)
		sum += lost[t];
	return sum;
}

static void group_errors(const float *c, size_t stride, size_t n_components, size_t n_tokens,
	const struct scaling *s, double out[KVTC_TYPES])
{
	find_range(c, stride, n_components, n_tokens, s);
	out[KVTC_NONE] = error_of(KVTC_NONE, c, stride, n_components, n_tokens, s);
	find_scales(KVTC_INT2, n_tokens, s);
	out[KVTC_INT2] = error_of(KVTC_INT2, c, stride, n_components, n_tokens, s);
	find_scales(KVTC_INT4, n_tokens, s);
	out[KVTC_INT4] = error_of(KVTC_INT4, c, stride, n_components, n_tokens, s);
	find_scales(KVTC_FP8, n_tokens, s);
	out[KVTC_FP8] = error_of(KVTC_FP8, c, stride, n_components, n_tokens, s);
}

static void take_group(struct kvtc_allocation *a, size_t end, size_t size, const double errors[KVTC_TYPES])
{
	const size_t row = a->max_bits + 1, n = sizes[size];
	const double *before = a->error + (end - n) * row;
	double *here = a->error + end * row;
	struct choice *choice = a->choice + end * row;

	for (int type = KVTC_NONE; type < KVTC_TYPES; type++) {
		const size_t cost = type ? n * type_bits[type] + KVTC_SIDE_BITS : 0;

		for (size_t bits = cost; bits <= a->max_bits; bits++)
			if (before[bits - cost] + errors[type] < here[bits]) {
				here[bits] = before[bits - cost] + errors[type];
				choice[bits] = (struct choice){(uint8_t)size, (uint8_t)type};
			}
	}
}

static int solve(struct kvtc_allocation *a, const float *c, size_t stride, size_t n_tokens)
{
	const size_t row = a->max_bits + 1;
	struct scaling scaling;
	int r = scaling_init(&scaling, n_tokens);

	if (r < 0)
		return r;
	for (size_t end = 1; end <= a->n_components; end++) {
		for (size_t bits = 0; bits < row; bits++)
			a->error[end * row + bits] = INFINITY;
		for (size_t size = 0; size < N_SIZES && sizes[size] <= end; size++) {
			double errors[KVTC_TYPES];

			group_errors(c + (end - sizes[size]) * stride, stride, sizes[size], n_tokens,
				&scaling, errors);
			take_group(a, end, size, errors);
		}
	}
	scaling_fini(&scaling);
	return 0;
}

int kvtc_allocate(const float *c, size_t stride, size_t n_components, size_t n_tokens, size_t max_bits,
	struct kvtc_allocation **out)
{
	struct kvtc_allocation *a = calloc(1, sizeof *a);
	int r = -ENOMEM;

	if (!a)
		return r;
	a->n_components = n_components;
	a->max_bits = max_bits;
	a->error = calloc((n_components + 1) * (max_bits + 1), sizeof *a->error);
	a->choice = calloc((n_components + 1) * (max_bits + 1), sizeof *a->choice);
	if (a->error && a->choice)
		r = solve(a, c, stride, n_tokens);
	if (r < 0)
		kvtc_allocation_free(a);
	else
		*out = a;
	return r;
}

struct kvtc_allocation *kvtc_allocation_free(struct kvtc_allocation *a)
{
	if (a) {
		free(a->error);
		free(a->choice);
	}
	free(a);
	return NULL;
}

double kvtc_allocation_error(const struct kvtc_allocation *a, size_t bits)
{
	return a->error[a->n_components * (a->max_bits + 1) + bits];
}

int kvtc_plan_new(const struct kvtc_allocation *a, size_t bits, struct kvtc_plan *out, double *squared_error)
{
	const size_t row = a->max_bits + 1;
	struct kvtc_plan p = {.groups = calloc(a->n_components + 1, sizeof *p.groups)};

	if (!p.groups)
		return -ENOMEM;
	*squared_error = kvtc_allocation_error(a, bits);
	for (size_t end = a->n_components; end > 0;) {
		const struct choice choice = a->choice[end * row + bits];
		const size_t n = sizes[choice.size];

		if (choice.type || p.n_groups) /* nothing after the last active one */
			p.groups[p.n_groups++] = (struct kvtc_group){(uint16_t)n, choice.type};
		if (choice.type)
			bits -= n * type_bits[choice.type] + KVTC_SIDE_BITS;
		end -= n;
	}
	for (size_t i = 0; i < p.n_groups / 2; i++) {
		const struct kvtc_group swap = p.groups[i];

		p.groups[i] = p.groups[p.n_groups - 1 - i];
		p.groups[p.n_groups - 1 - i] = swap;
	}
	for (size_t i = 0; i < p.n_groups; i++)
		p.n_components += p.groups[i].n_components;
	*out = p;
	return 0;
}

void kvtc_plan_fini(struct kvtc_plan *p)
{
	free(p->groups);
	*p = (struct kvtc_plan){0};
}

size_t kvtc_plan_bits(const struct kvtc_plan *p)
{
	size_t sum = 0;

	for (size_t i = 0; i < p->n_groups; i++)
		if (p->groups[i].type)
			sum += p->groups[i].n_components * type_bits[p->groups[i].type] + KVTC_SIDE_BITS;
	return sum;
}

/* ---- coding ---- */

static size_t row_bytes(size_t n_tokens, enum kvtc_type type)
{
	return (n_tokens * type_bits[type] + 7) / 8;
}

size_t kvtc_stream_bytes(const struct kvtc_plan *p, enum kvtc_stream stream, size_t n_tokens)
{
	size_t sum = 0;

	for (size_t i = 0; i < p->n_groups; i++) {
		const struct kvtc_group *g = &p->groups[i];

		if (stream == KVTC_STREAM_SIDE)
			sum += g->type ? n_tokens * KVTC_SIDE_BITS / 8 : 0;
		else if (g->type == (int)stream) /* the kinds have the same numbers as the types */
			sum += g->n_components * row_bytes(n_tokens, g->type);
	}
	return sum;
}

static uint8_t *put_halves(uint8_t *out, const float *values, size_t n)
{
	for (size_t t = 0; t < n; t++) {
		const uint16_t half = half_from_float(values[t]);

		out[t] = (uint8_t)(half & 0xff);
		out[n + t] = (uint8_t)(half >> 8);
	}
	return out + 2 * n;
}

/* Quantises one component, in place, and packs its codes, least significant bit first. */
static void put_codes(enum kvtc_type type, float *c, size_t n_tokens, const struct scaling *s, uint8_t *out)
{
	const unsigned bits = type_bits[type];

	memset(out, 0, row_bytes(n_tokens, type));
	for (size_t t = 0; t < n_tokens; t++) {
		const float code = code_of(type, c[t], s->shift[t], s->divisor[t]);
		const unsigned q = type == KVTC_FP8 ? kvtc_e4m3_from_float(code) : (unsigned)code;

		out[t * bits / 8] |= (uint8_t)(q << t * bits % 8);
		c[t] = code * s->scale[t] + s->shift[t];
	}
}

int kvtc_quantise(
	const struct kvtc_plan *p, float *c, size_t stride, size_t n_tokens, struct kvtc_streams *out)
{
	struct scaling scaling;
	uint8_t *at[KVTC_STREAMS];
	int r = scaling_init(&scaling, n_tokens);

	if (r < 0)
		return r;
	memcpy(at, out->data, sizeof at);
	for (size_t i = 0; i < p->n_groups; c += p->groups[i++].n_components * stride) {
		const struct kvtc_group *g = &p->groups[i];

		if (!g->type) {
			for (size_t k = 0; k < g->n_components; k++)
				memset(c + k * stride, 0, n_tokens * sizeof *c);
			continue;
		}
		find_range(c, stride, g->n_components, n_tokens, &scaling);
		find_scales(g->type, n_tokens, &scaling);
		at[KVTC_STREAM_SIDE] = put_halves(at[KVTC_STREAM_SIDE], scaling.shift, n_tokens);
		at[KVTC_STREAM_SIDE] = put_halves(at[KVTC_STREAM_SIDE], scaling.scale, n_tokens);
		for (size_t k = 0; k < g->n_components; k++, at[g->type] += row_bytes(n_tokens, g->type))
			put_codes(g->type, c + k * stride, n_tokens, &scaling, at[g->type]);
	}
	for (int s = 0; s < KVTC_STREAMS; s++)
		out->len[s] = (size_t)(at[s] - out->data[s]);
	scaling_fini(&scaling);
	return 0;
}
