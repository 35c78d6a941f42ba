#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "shm/key.h"

static void hex(const uint8_t key[32], char out[65])
{
	for (int i = 0; i < 32; i++)
		snprintf(out + 2 * i, 3, "%02x", key[i]);
}

static void assert_key(const uint8_t key[32], const char *expected)
{
	char text[65];

	hex(key, text);
	assert_string_equal(text, expected);
}

/* Pinned: keys outlive a daemon on disk, and other clients compute them too. docs/protocol.md quotes these.
 */
static void test_known_answers(void **state)
{
	uint32_t tokens[256];
	uint8_t root[32], key[32];

	(void)state;
	for (uint32_t i = 0; i < 256; i++)
		tokens[i] = i;
	key_root(NULL, 0, root);
	assert_key(root, "0f871a1b458ac7c0869bbe7784b0d9e56e72fb2b3d52e175e4adeb37d8401a7f");
	key_root("tenant", 6, key);
	assert_key(key, "c99da0a3cdc735e69589af4e55d38f09705d52c17b87b9cf5a210642e52f4d2a");
	key_next(root, tokens, 256, key);
	assert_key(key, "133f0c0dabdcfc3e0ce374f28997b036c48f688c0e48580c9ce7cfa7037ef772");
	key_next(key, tokens, 3, key); /* in place */
	assert_key(key, "aefa2bb648c654ec399b3e838298b57055da823adb90a4b514f31240e2510cb5");
}

/* Every input moves the key. */
static void test_inputs_count(void **state)
{
	uint32_t tokens[300];
	uint8_t root[32], keys[900][32];
	size_t n = 0;

	(void)state;
	for (uint32_t i = 0; i < 300; i++)
		tokens[i] = i * 7919;
	key_root(NULL, 0, root);
	memcpy(keys[n++], root, 32);
	key_root("a", 1, keys[n++]);
	key_root("\0", 1, keys[n++]);
	key_root(root, 32, keys[n++]); /* a salt that looks like the parent of an empty chunk */
	for (uint32_t i = 0; i < 300; i++) {
		key_next(root, tokens, i, keys[n++]);
		tokens[i] ^= 1u << (i % 32);
		key_next(root, tokens, 300, keys[n++]);
		tokens[i] ^= 1u << (i % 32);
	}
	for (int bit = 0; bit < 256; bit++) {
		root[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		key_next(root, tokens, 300, keys[n++]);
		root[bit / 8] ^= (uint8_t)(1u << (bit % 8));
	}
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j < i; j++)
			assert_memory_not_equal(keys[i], keys[j], 32);
}

/* The halves come from different seeds; a collision in one is none in the other. */
static void test_halves_differ(void **state)
{
	uint8_t key[32];
	uint32_t token = 1;

	(void)state;
	key_root(NULL, 0, key);
	assert_memory_not_equal(key, key + 16, 16);
	key_next(key, &token, 1, key);
	assert_memory_not_equal(key, key + 16, 16);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_known_answers),
		cmocka_unit_test(test_inputs_count),
		cmocka_unit_test(test_halves_differ),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
