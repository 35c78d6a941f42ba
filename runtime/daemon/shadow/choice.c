#include "runtime/daemon/shadow/choice.h"

#include <math.h>
#include <sys/random.h>
#include <xxhash.h>

uint64_t choice_seed(void)
{
	uint64_t seed;

	/* 8 bytes are given whole; before the kernel has any to give, a fixed seed is as good as none. */
	return getrandom(&seed, sizeof seed, GRND_NONBLOCK) == sizeof seed ? seed : 0;
}

uint64_t choice_hash(uint64_t seed, const struct index_key *id)
{
	return XXH3_64bits_withSeed(id, sizeof *id, seed);
}

bool choice_falls(uint64_t hash, double share)
{
	/* Of the 53 highest bits, which a double holds. */
	return (double)(hash >> 11) < ldexp(share, 53);
}
