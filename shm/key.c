#include "shm/key.h"

#include <string.h>

/* Inlined, so that libcistern brings no library of its own into an engine's process. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire, and so this code, is little-endian"
#endif

static void write_half(XXH128_hash_t hash, uint8_t out[16])
{
	XXH128_canonical_t canonical;

	XXH128_canonicalFromHash(&canonical, hash);
	memcpy(out, canonical.digest, 16);
}

static XXH128_hash_t chunk_hash(
	uint64_t seed, const uint8_t parent[32], const uint32_t *tokens, size_t n_tokens)
{
	XXH3_state_t state;

	XXH3_INITSTATE(&state);
	XXH3_128bits_reset_withSeed(&state, seed);
	XXH3_128bits_update(&state, parent, 32);
	XXH3_128bits_update(&state, tokens, n_tokens * sizeof(tokens[0]));
	return XXH3_128bits_digest(&state);
}

void key_root(const void *salt, size_t salt_len, uint8_t out[32])
{
	if (!salt)
		salt_len = 0;
	write_half(XXH3_128bits_withSeed(salt, salt_len, KEY_SEED_ROOT_A), out);
	write_half(XXH3_128bits_withSeed(salt, salt_len, KEY_SEED_ROOT_B), out + 16);
}

void key_next(const uint8_t parent[32], const uint32_t *tokens, size_t n_tokens, uint8_t out[32])
{
	XXH128_hash_t a = chunk_hash(KEY_SEED_A, parent, tokens, n_tokens);
	XXH128_hash_t b = chunk_hash(KEY_SEED_B, parent, tokens, n_tokens);

	/* Written last: out may be parent. */
	write_half(a, out);
	write_half(b, out + 16);
}
