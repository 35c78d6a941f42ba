/*
 * Chunk keys: 32 bytes that name a run of tokens and all that stood before it. Pure functions, any thread.
 * The definition is part of the protocol (docs/protocol.md), so that clients in other languages find the
 * same chunks: XXH3-128 with seed KEY_SEED_A in its canonical form (what XXH libraries call the digest), then
 * the same with KEY_SEED_B, over
 *   for the root: the salt's bytes;
 *   for a chunk: the parent key's 32 bytes, then the token ids as little-endian uint32.
 * The root has seeds of its own, so that no salt can look like a chunk. Not cryptographic, see
 * docs/decisions.md.
 */
#ifndef SHM_KEY_H
#define SHM_KEY_H

#include <stddef.h>
#include <stdint.h>

#define KEY_SEED_A UINT64_C(0x6369737465726e41) /* "cisternA" */
#define KEY_SEED_B UINT64_C(0x6369737465726e42)
#define KEY_SEED_ROOT_A UINT64_C(0x6369737465726e52)
#define KEY_SEED_ROOT_B UINT64_C(0x6369737465726e53)

void key_root(const void *salt, size_t salt_len, uint8_t out[32]);
void key_next(const uint8_t parent[32], const uint32_t *tokens, size_t n_tokens, uint8_t out[32]);

#endif
