/*
 * Levels: the integers that stand for a transform's coefficients. A component of standard deviation s,
 * quantised with step D, belongs to the class nearest to 4 log2(s / D): components of one class have levels
 * of about one distribution, whatever the component, the layer or the rung. So one set of tables, learned in
 * calibration and indexed by class, serves every component at every step, and a rung of the rate ladder is
 * nothing but a step.
 *
 * The quantiser is a trellis-coded one (dependent quantisation: Schwarz et al., "Improved quantization and
 * transform coefficient coding", DCC 2019; the idea: Marcellin and Fischer, IEEE Trans. Comm. 38, 1990). Two
 * sets of values, 0: the even multiples of the step, 1: the odd ones and zero; a state machine with four
 * states, driven by the parities of a token's levels so far, says which set the token's next level is of.
 * docs/frame-format.md has it in full. Constants and pure functions only: kernels of every backend,
 * transforms and the codec share them. Compiles as C17 and as CUDA C++.
 */
#ifndef BASE_LEVELS_H
#define BASE_LEVELS_H

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define LEVELS_FN static __host__ __device__ inline
#else
#define LEVELS_FN static inline
#endif

enum {
	LEVELS_SETS = 2,
	LEVELS_MAX = 16383, /* the largest level, by magnitude */

	/* Classes of components that are coded: from s = 0.65 D up. Quieter ones are left out. */
	LEVELS_CLASS_MIN = -2,
	LEVELS_CLASS_MAX = 52,

	/* Tables: one for each class from LEVELS_TABLE_CLASS_MIN (a coded component may turn out quieter in a
	 * chunk than it was in calibration) to LEVELS_WIDE_CLASS, and four for the classes above, whose
	 * levels lose so many low bits first that the rest is as wide as in the top four. */
	LEVELS_TABLE_CLASS_MIN = -6,
	LEVELS_WIDE_CLASS = 12,
	LEVELS_TABLES = LEVELS_WIDE_CLASS - LEVELS_TABLE_CLASS_MIN + 1 + 4,

	/* Symbols of a table: v + LEVELS_VALUE_MAX for -15 <= v <= 15, and the escape. */
	LEVELS_VALUE_MAX = 15,
	LEVELS_ESCAPE = 31,
	LEVELS_SYMBOLS = 32,
	LEVELS_ESCAPE_BITS = 16,
	LEVELS_FREQUENCY_BITS = 12, /* frequencies of a table add up to 4096, none is 0 */
};

/* What the levels of one plane are coded with. */
struct levels_tables {
	/* Of the symbols, by table and set. */
	uint16_t frequency[LEVELS_TABLES][LEVELS_SETS][LEVELS_SYMBOLS];
	/* A level k stands for the value (2 |k| - set + bias) D with k's sign: the first bias for |k| = 1,
	 * the second for the others; 0 is 0. In steps, within -1 and 1. */
	float bias[LEVELS_TABLES][LEVELS_SETS][2];
};

/* What was seen of the levels of one plane: for tables to be made of. Zeroed: nothing. */
struct levels_counts {
	double symbols[LEVELS_TABLES][LEVELS_SETS][LEVELS_SYMBOLS];
	/* Of levels |k| = 1, and of larger ones: how many, and the sum of what the coefficients' magnitudes,
	 * in steps, had over 2 |k| - set. */
	double n_biased[LEVELS_TABLES][LEVELS_SETS][2];
	double excess[LEVELS_TABLES][LEVELS_SETS][2];
	/* Of all levels: how many, and their squared error in squared steps. */
	double n[LEVELS_TABLES];
	double lost[LEVELS_TABLES];
};

/* How a component's levels are coded. */
struct levels_row {
	uint8_t table;
	uint8_t shift; /* low bits that go around the table */
};

/* The class of a component; LEVELS_CLASS_MIN - 1 for all that are not coded. The same on every machine: one
 * division and comparisons. */
LEVELS_FN int levels_class(float deviation, float step)
{
	const float ratio = deviation / step;
	int exponent, quarters;
	float mantissa;

	if (!(ratio >= 0.5f))
		return LEVELS_CLASS_MIN - 1;
	if (ratio >= 0x1p20f)
		return LEVELS_CLASS_MAX;
	mantissa = 2 * frexpf(ratio, &exponent);
	/* 2^(1/8), 2^(3/8), ... */
	quarters = 4 * (exponent - 1) + (mantissa >= 1.0905077f) + (mantissa >= 1.2968396f) +
		   (mantissa >= 1.5422108f) + (mantissa >= 1.8340081f);
	if (quarters < LEVELS_CLASS_MIN)
		return LEVELS_CLASS_MIN - 1;
	return quarters < LEVELS_CLASS_MAX ? quarters : LEVELS_CLASS_MAX;
}

/* Any class, also one that an offset has moved out of range. */
LEVELS_FN struct levels_row levels_row(int level_class)
{
	struct levels_row row;
	int shift = 0;

	if (level_class < LEVELS_TABLE_CLASS_MIN)
		level_class = LEVELS_TABLE_CLASS_MIN;
	if (level_class > LEVELS_CLASS_MAX)
		level_class = LEVELS_CLASS_MAX;
	if (level_class > LEVELS_WIDE_CLASS) {
		shift = (level_class - LEVELS_WIDE_CLASS + 3) / 4;
		level_class += 4 - 4 * shift;
	}
	row.table = (uint8_t)(level_class - LEVELS_TABLE_CLASS_MIN);
	row.shift = (uint8_t)shift;
	return row;
}

/* The state after a level. States 0 and 1 take the next level from set 0, states 2 and 3 from set 1. */
LEVELS_FN unsigned levels_next(unsigned state, unsigned parity)
{
	/* From 0: 0, 2; from 1: 2, 0; from 2: 1, 3; from 3: 3, 1. */
	return (state >> 1) | ((state ^ parity) & 1u) << 1;
}

#endif
