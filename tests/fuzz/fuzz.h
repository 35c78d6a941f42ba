/* What the fuzzers share: input taken apart byte by byte; what is missing reads as zero. Each fuzzer is a
 * file with LLVMFuzzerTestOneInput: built for libFuzzer with -Dfuzz=true, and otherwise with replay.c, which
 * runs it over its corpus as a test. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct input {
	const uint8_t *at;
	size_t left;
};

static inline void take(struct input *in, void *out, size_t len)
{
	const size_t n = len < in->left ? len : in->left;

	memset(out, 0, len);
	if (n)
		memcpy(out, in->at, n);
	in->at += n;
	in->left -= n;
}

static inline uint8_t take_u8(struct input *in)
{
	uint8_t v;

	take(in, &v, sizeof v);
	return v;
}

static inline uint16_t take_u16(struct input *in)
{
	uint16_t v;

	take(in, &v, sizeof v);
	return v;
}

static inline uint32_t take_u32(struct input *in)
{
	uint32_t v;

	take(in, &v, sizeof v);
	return v;
}

/* What must hold, whatever the input. */
#define REQUIRE(condition)                                                                                   \
	do {                                                                                                 \
		if (!(condition)) {                                                                          \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                      \
			abort();                                                                             \
		}                                                                                            \
	} while (0)

#endif
