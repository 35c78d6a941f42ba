/* What an engine's pages hold comes back from a capture, and the same from numpy's arrays. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "kernels/kernels.h"
#include "tools/capture.h"

enum { LAYERS = 3, HEADS = 2, DIM = 8, TOKENS = 21, BLOCK = 4, BLOCKS = 6, WIDTH = HEADS * DIM };

static const uint32_t blocks[BLOCKS] = {4, 0, 5, 2, 1, 3};

struct example {
	char directory[32], path[64];
	struct geometry geometry;
	uint64_t positions[TOKENS];
	float pool[LAYERS][2][BLOCKS * BLOCK * WIDTH];
	struct kv_pages pages[LAYERS * 2];
	struct kv_run run;
};

/* Values say where they belong. */
static float value(uint32_t layer, uint32_t plane, uint32_t token, uint32_t feature)
{
	return (float)(((layer * 2 + plane) * TOKENS + token) * WIDTH + feature);
}

static int example_init(void **state)
{
	struct example *e = calloc(1, sizeof *e);
	struct plane *k = &e->geometry.planes[0];

	strcpy(e->directory, "/tmp/test-capture-XXXXXX");
	if (!mkdtemp(e->directory))
		return -1;
	snprintf(e->path, sizeof e->path, "%s/x.safetensors", e->directory);
	e->geometry =
		(struct geometry){.name = "m", .n_layers = LAYERS, .n_planes = 2, .tp_rank = 1, .tp_size = 2};
	*k = (struct plane){.n_heads = HEADS, .dim = DIM, .dtype = DTYPE_F32};
	e->geometry.planes[1] = *k;
	k->rope_kind = ROPE_INTERLEAVED;
	k->rope_offset = 2;
	k->rope_dim = 4;
	k->rope_scale = 1.1f;
	k->inv_freq[0] = 1;
	k->inv_freq[1] = 0.01f;
	e->run = (struct kv_run){.blocks = blocks, .block_tokens = BLOCK, .offset = 2};
	/* Head by head inside a block, so that strides are not the obvious ones. */
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		for (uint32_t plane = 0; plane < 2; plane++) {
			float *pool = e->pool[layer][plane];

			e->pages[2 * layer + plane] = (struct kv_pages){.base = (uint8_t *)pool,
				.block_stride = BLOCK * WIDTH * sizeof(float),
				.token_stride = DIM * sizeof(float),
				.head_stride = BLOCK * DIM * sizeof(float)};
			for (uint32_t t = 0; t < TOKENS; t++)
				for (uint32_t i = 0; i < WIDTH; i++)
					pool[blocks[(t + 2) / BLOCK] * BLOCK * WIDTH + i / DIM * BLOCK * DIM +
						(t + 2) % BLOCK * DIM + i % DIM] = value(layer, plane, t, i);
		}
	}
	for (uint32_t t = 0; t < TOKENS; t++)
		e->positions[t] = 100 + t;
	*state = e;
	return 0;
}

static int example_fini(void **state)
{
	static const char *const names[] = {
		"x.safetensors", "a.npy", "b.k.npy", "b.v.npy", "c.npy", "d.k.npy", "d.v.npy"};
	struct example *e = *state;
	char path[64];

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		snprintf(path, sizeof path, "%s/%s", e->directory, names[i]);
		unlink(path);
	}
	rmdir(e->directory);
	free(e);
	return 0;
}

/* Reads two runs of tokens with the kernels' gather, without undoing a rotation. */
static void check_values(const struct capture *c)
{
	static const uint16_t tokens[] = {0, 1, 6, 9};
	const struct kernels *kernels = kernels_cpu();
	struct kv_run run = capture_run(c, 11);
	float x[4 * WIDTH];

	assert_int_equal(c->n_tokens, TOKENS);
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		for (uint32_t plane = 0; plane < 2; plane++) {
			struct plane as_it_is = c->geometry.planes[plane];

			as_it_is.rope_kind = ROPE_NONE;
			kernels->gather(&as_it_is, &c->pages[2 * layer + plane], &run, tokens, 4, NULL, NULL,
				NULL, x, WIDTH);
			for (uint32_t i = 0; i < 4 * WIDTH; i++)
				assert_true(x[i] == value(layer, plane, 11 + tokens[i / WIDTH], i % WIDTH));
		}
	}
}

static void test_safetensors_round_trip(void **state)
{
	struct capture_options options = {0};
	struct example *e = *state;
	uint8_t want[16], got[16];
	struct capture *c;
	char why[200] = "";

	assert_int_equal(
		capture_write(e->path, &e->geometry, e->positions, TOKENS, e->pages, &e->run, NULL), 0);
	if (capture_open(e->path, &options, &c, why, sizeof why) != 0)
		fail_msg("%s", why);
	geometry_fingerprint(&e->geometry, want);
	geometry_fingerprint(&c->geometry, got);
	assert_memory_equal(got, want, 16);
	check_values(c);
	for (uint32_t t = 0; t < TOKENS; t++)
		assert_int_equal(c->positions[t], 100 + t);
	capture_free(c);
}

/* One latent plane without rotation. */
static void test_single_plane(void **state)
{
	struct kv_pages pages[LAYERS];
	struct capture_options options = {0};
	struct example *e = *state;
	struct geometry g = e->geometry;
	struct capture *c;

	g.n_planes = 1;
	g.planes[0].rope_kind = ROPE_NONE;
	for (int i = 0; i < LAYERS; i++)
		pages[i] = e->pages[2 * i];
	assert_int_equal(capture_write(e->path, &g, e->positions, TOKENS, pages, &e->run, NULL), 0);
	assert_int_equal(capture_open(e->path, &options, &c, NULL, 0), 0);
	assert_int_equal(c->geometry.n_planes, 1);
	assert_int_equal(c->geometry.planes[0].rope_kind, ROPE_NONE);
	assert_int_equal(((float *)c->pages[2].base)[3], value(2, 0, 0, 3));
	capture_free(c);
}

static void test_writer_refuses(void **state)
{
	struct example *e = *state;
	struct geometry g = e->geometry;

	assert_int_equal(capture_write(e->path, &g, e->positions, 0, e->pages, &e->run, NULL), -EINVAL);
	assert_int_equal(capture_write("/nowhere/x", &g, e->positions, 1, e->pages, &e->run, NULL), -ENOENT);
	g.planes[1] = g.planes[0];
	assert_int_equal(capture_write(e->path, &g, e->positions, 1, e->pages, &e->run, NULL), -EINVAL);
}

/* Texts in the header, each replaced by one of the same length. */
static const struct {
	const char *from, *to, *why;
} texts[] = {
	{"cistern-capture-1", "cistern-capture-9", "format"},
	{"\"model\"", "\"mudel\"", "model"},
	{"\"tp_rank\":\"1\"", "\"tp_rank\":\"2\"", "rank"},
	{"\"tp_rank\":\"1\"", "\"tp_rank\":\"x\"", "tp_rank"},
	{"\"interleaved\"", "\"interwoven!\"", "rope_kind"},
	{"\"inv_freq\"", "\"inv_fr_q\"", "inv_freq"},
	{"\"rope_offset\":\"2\"", "\"rope_offset\":\"6\"", "past dim"},
	{"\"layers.0.k\"", "\"layers.9.k\"", "layers.0.k"},
	{"\"layers.2.v\"", "\"layers.9.v\"", "layers.2.v"},
	{"\"layers.1.v\":{\"dtype\":\"F32\"", "\"layers.1.v\":{\"dtype\":\"I32\"", "layers.1.v"},
	{"\"layers.1.k\":{\"dtype\":\"F32\",\"shape\":[21,2,8]",
		"\"layers.1.k\":{\"dtype\":\"F32\",\"shape\":[21,8,2]", "layers.1.k"},
	{"\"positions\"", "\"pusitions\"", "positions"},
};

static void test_faults(void **state)
{
	struct capture_options options = {0};
	struct example *e = *state;
	struct capture *c;

	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
		char why[200] = "", *at;
		void *data;
		size_t len;

		assert_int_equal(
			capture_write(e->path, &e->geometry, e->positions, TOKENS, e->pages, &e->run, NULL),
			0);
		assert_int_equal(file_read(e->path, &data, &len), 0);
		at = memmem(data, len, texts[i].from, strlen(texts[i].from));
		assert_non_null(at);
		memcpy(at, texts[i].to, strlen(texts[i].to));
		assert_int_equal(file_write(e->path, data, len), 0);
		assert_int_equal(capture_open(e->path, &options, &c, why, sizeof why), -EBADMSG);
		if (!strstr(why, texts[i].why))
			fail_msg("%s: expected '%s' in '%s'", texts[i].to, texts[i].why, why);
		assert_int_equal(file_write(e->path, data, len / 2), 0);
		assert_int_equal(capture_open(e->path, &options, &c, why, sizeof why), -EBADMSG);
		free(data);
	}
	e->positions[3] = UINT64_MAX;
	assert_int_equal(
		capture_write(e->path, &e->geometry, e->positions, TOKENS, e->pages, &e->run, NULL), 0);
	assert_int_equal(capture_open(e->path, &options, &c, NULL, 0), -EBADMSG);
	unlink(e->path);
	assert_int_equal(capture_open(e->path, &options, &c, NULL, 0), -ENOENT);
}

/* An array of f4: planes first to last of every layer. */
static void write_npy(
	const struct example *e, const char *name, const char *shape, uint32_t first, uint32_t last)
{
	static float data[LAYERS * 2 * TOKENS * WIDTH];
	uint8_t file[128 + sizeof data] = "\x93NUMPY\x01";
	char path[64];
	size_t n = 0;

	for (uint32_t layer = 0; layer < LAYERS; layer++)
		for (uint32_t plane = first; plane <= last; plane++)
			for (uint32_t i = 0; i < TOKENS * WIDTH; i++)
				data[n++] = value(layer, plane, i / WIDTH, i % WIDTH);
	file[8] = 118;
	snprintf((char *)file + 10, 118, "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }", shape);
	memcpy(file + 128, data, n * sizeof(float));
	snprintf(path, sizeof path, "%s/%s", e->directory, name);
	assert_int_equal(file_write(path, file, 128 + n * sizeof(float)), 0);
}

static int open_npy(const struct example *e, const char *name, const struct capture_options *o,
	struct capture **out, char *why, size_t why_len)
{
	char path[64];

	snprintf(path, sizeof path, "%s/%s", e->directory, name);
	return capture_open(path, o, out, why, why_len);
}

static void test_npy(void **state)
{
	static const char *const names[] = {"a.npy", "b.k.npy"};
	struct capture_options o = {
		.model = "m", .rope_kind = ROPE_HALF, .theta = 10000, .rope_offset = 2, .first_position = 7};
	struct example *e = *state;

	write_npy(e, "a.npy", "3, 2, 21, 2, 8", 0, 1);
	write_npy(e, "b.k.npy", "3, 21, 2, 8", 0, 0);
	write_npy(e, "b.v.npy", "3, 21, 2, 8", 1, 1);
	for (int i = 0; i < 2; i++) {
		const struct plane *k;
		char why[200] = "";
		struct capture *c;

		if (open_npy(e, names[i], &o, &c, why, sizeof why) != 0)
			fail_msg("%s", why);
		check_values(c);
		k = &c->geometry.planes[0];
		assert_string_equal(c->geometry.name, "m");
		assert_int_equal(k->rope_kind, ROPE_HALF);
		assert_int_equal(k->rope_dim, 6);
		assert_true(k->rope_scale == 1);
		assert_true(k->inv_freq[0] == 1);
		assert_true(fabsf(k->inv_freq[1] - 0.0464159f) < 1e-6f);
		assert_int_equal(c->geometry.planes[1].rope_kind, ROPE_NONE);
		assert_int_equal(c->positions[20], 27);
		capture_free(c);
	}
}

static void test_npy_faults(void **state)
{
	static const struct {
		const char *name, *why;
		struct capture_options options;
	} cases[] = {
		{"a.npy", "no name", {0}},
		{"a.npy", "past dim", {.model = "m", .rope_kind = ROPE_HALF, .theta = 1e4, .rope_dim = 10}},
		{"a.npy", "rope_dim", {.model = "m", .rope_kind = ROPE_HALF, .theta = 1e4, .rope_offset = 9}},
		{"a.npy", "not finite", {.model = "m", .rope_kind = ROPE_HALF, .theta = -1e-39}},
		{"c.npy", "[layers, 2, tokens, heads, dim]", {.model = "m"}},
		{"b.k.npy", "b.v.npy", {.model = "m"}},
		{"d.k.npy", "differ in shape", {.model = "m"}},
	};
	struct example *e = *state;
	struct capture *c;

	write_npy(e, "a.npy", "3, 2, 21, 2, 8", 0, 1);
	write_npy(e, "c.npy", "6, 21, 2, 8", 0, 1);
	write_npy(e, "b.k.npy", "3, 21, 2, 8", 0, 0);
	write_npy(e, "d.k.npy", "3, 21, 2, 8", 0, 0);
	write_npy(e, "d.v.npy", "3, 21, 16, 1", 1, 1);
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		char why[200] = "";

		assert_true(open_npy(e, cases[i].name, &cases[i].options, &c, why, sizeof why) < 0);
		if (!strstr(why, cases[i].why))
			fail_msg("case %zu: expected '%s' in '%s'", i, cases[i].why, why);
	}
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, example_init, example_fini)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_safetensors_round_trip),
		TEST(test_single_plane),
		TEST(test_writer_refuses),
		TEST(test_faults),
		TEST(test_npy),
		TEST(test_npy_faults),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
