/* Which geometries are accepted, and what names them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/geometry.h"

/* A small model with grouped heads and half rotation of its keys. */
static struct geometry example(void)
{
	struct geometry g = {.name = "example", .n_layers = 6, .n_planes = 2, .tp_size = 1};

	g.planes[0] = (struct plane){.n_heads = 2, .dim = 64, .dtype = DTYPE_BF16, .rope_kind = ROPE_HALF};
	g.planes[0].rope_dim = 64;
	g.planes[0].rope_scale = 1;
	for (int k = 0; k < 32; k++)
		g.planes[0].inv_freq[k] = 1.0f / (float)(k + 1);
	g.planes[1] = (struct plane){.n_heads = 2, .dim = 64, .dtype = DTYPE_BF16};
	return g;
}

#define FAULTS(X)                                                                                            \
	X(g.name[0] = 0, "empty")                                                                            \
	X(memset(g.name, 'a', sizeof g.name), "no end")                                                      \
	X(g.name[2] = '\n', "control character")                                                             \
	X(g.n_layers = 0, "layers")                                                                          \
	X(g.n_layers = 513, "layers")                                                                        \
	X(g.n_planes = 0, "planes")                                                                          \
	X(g.n_planes = 3, "planes")                                                                          \
	X(g.tp_size = 0, "rank")                                                                             \
	X(g.tp_rank = 1, "rank")                                                                             \
	X(g.planes[1].n_heads = 0, "plane 1: 0 heads")                                                       \
	X(g.planes[1].n_heads = 1025, "heads")                                                               \
	X(g.planes[1].dim = 0, "dim")                                                                        \
	X(g.planes[1].dim = 4097, "dim")                                                                     \
	X(g.planes[1].dtype = 0, "dtype")                                                                    \
	X(g.planes[1].dtype = 4, "dtype")                                                                    \
	X(g.planes[0].rope_kind = 3, "rotation kind")                                                        \
	X(g.planes[0].rope_dim = 0, "rope_dim")                                                              \
	X(g.planes[0].rope_dim = 63, "rope_dim")                                                             \
	X(g.planes[0].rope_dim = 1026, "rope_dim")                                                           \
	X(g.planes[0].rope_dim = 66, "past dim")                                                             \
	X(g.planes[0].rope_offset = 2, "past dim")                                                           \
	X(g.planes[0].rope_offset = UINT32_MAX, "past dim")                                                  \
	X(g.planes[0].rope_scale = 0, "rope_scale")                                                          \
	X(g.planes[0].rope_scale = NAN, "rope_scale")                                                        \
	X(g.planes[0].inv_freq[31] = INFINITY, "frequency 31")

static void test_check(void **state)
{
	struct geometry g = example();
	char why[128];

	(void)state;
	assert_int_equal(geometry_check(&g, why, sizeof why), 0);
#define FAULT(change, word)                                                                                  \
	g = example();                                                                                       \
	change;                                                                                              \
	assert_true(geometry_check(&g, why, sizeof why) < 0);                                                \
	if (!strstr(why, word))                                                                              \
		fail_msg("%s: expected '%s' in '%s'", #change, word, why);                                   \
	assert_true(geometry_check(&g, NULL, 0) < 0);
	FAULTS(FAULT)
}

/* What the rotation fields hold does not matter for a plane without rotation. */
static void test_unused_fields(void **state)
{
	struct geometry g = example(), h = example();
	uint8_t a[16], b[16];

	(void)state;
	h.planes[1].rope_dim = 7;
	h.planes[1].rope_scale = NAN;
	h.planes[0].inv_freq[32] = NAN;
	memset(h.name + 9, 'x', 20);
	assert_int_equal(geometry_check(&h, NULL, 0), 0);
	geometry_fingerprint(&g, a);
	geometry_fingerprint(&h, b);
	assert_memory_equal(a, b, 16);
}

/* Fingerprints are written into transforms and frames: they may never change. */
static void test_fingerprint_is_pinned(void **state)
{
	struct geometry g = example();
	uint8_t id[16];
	char hex[33];

	(void)state;
	geometry_fingerprint(&g, id);
	for (int i = 0; i < 16; i++)
		sprintf(hex + 2 * i, "%02x", id[i]);
	assert_string_equal(hex, "b5a138be819799cc1e82ec2ce3f6f3db");
}

#define CHANGES(X)                                                                                           \
	X(g.name[0] = 'E')                                                                                   \
	X(g.n_layers = 7)                                                                                    \
	X(g.n_planes = 1)                                                                                    \
	X(g.tp_rank = 1)                                                                                     \
	X(g.tp_size = 2)                                                                                     \
	X(g.planes[0].n_heads = 3)                                                                           \
	X(g.planes[0].dim = 65)                                                                              \
	X(g.planes[0].dtype = DTYPE_F16)                                                                     \
	X(g.planes[0].rope_kind = ROPE_INTERLEAVED)                                                          \
	X(g.planes[0].rope_dim = 62)                                                                         \
	X(g.planes[0].rope_scale = 1.5f)                                                                     \
	X(g.planes[0].inv_freq[31] = 0.5f)                                                                   \
	X(g.planes[1].dim = 63)

static void test_every_field_counts(void **state)
{
	struct geometry g = example();
	uint8_t a[16], b[16];

	(void)state;
	geometry_fingerprint(&g, a);
#define CHANGE(change)                                                                                       \
	g = example();                                                                                       \
	change;                                                                                              \
	geometry_fingerprint(&g, b);                                                                         \
	if (memcmp(a, b, 16) == 0)                                                                           \
		fail_msg("%s leaves the fingerprint as it was", #change);
	CHANGES(CHANGE)
}

static void test_token_bytes(void **state)
{
	struct geometry g = example();

	(void)state;
	assert_int_equal(geometry_token_bytes(&g), 6 * (2 * 64 + 2 * 64) * 2);
	g.planes[1].dtype = DTYPE_F32;
	assert_int_equal(geometry_token_bytes(&g), 6 * (2 * 64 * 2 + 2 * 64 * 4));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_check),
		cmocka_unit_test(test_unused_fields),
		cmocka_unit_test(test_fingerprint_is_pinned),
		cmocka_unit_test(test_every_field_counts),
		cmocka_unit_test(test_token_bytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
