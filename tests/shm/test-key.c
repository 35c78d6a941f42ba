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
	assert_key(root, "e5d9b08477be9b86c0c78a451b1a870f7f1a40d837ebade475e1523d2bfb726e");
	key_root("tenant", 6, key);
	assert_key(key, "098fd3554eaf8995e635c7cda3a09dc92a4d2fe54206215acfb9877bc1525d70");
	key_next(root, tokens, 256, key);
	assert_key(key, "c545b0b71882f8d6a772f291136f2112bd035d7de0dfa98f2958bcedf2a30038");
	key_next(key, tokens, 3, key); /* in place */
	assert_key(key, "64de82fcdbd68e4bfd03bc0b0a57b6d3d8453ba4826b1349d7d5a97855fe60c7");
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
