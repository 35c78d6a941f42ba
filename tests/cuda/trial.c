#include "tests/cuda/trial.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "tests/cuda/gpu.h"

enum { GUARD = 256, GUARD_BYTE = 0x5a, PIECES_MAX = 4096 };

/* An allocation: guard, offset, what was handed out, guard. */
struct piece {
	uint8_t *at;
	size_t before, len;
};

static struct device *device;
static struct piece pieces[PIECES_MAX];
static size_t n_pieces;

int trial_begin(uint64_t *seed)
{
	const char *given = getenv("CISTERN_TEST_SEED");
	const int r = gpu_begin(&device);

	*seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
	if (!r)
		printf("CISTERN_TEST_SEED=%llu\n", (unsigned long long)*seed);
	return r;
}

void trial_end(void)
{
	device_free(device);
}

const struct device *trial_device(void)
{
	return device;
}

static void *place(const void *data, size_t len, size_t offset)
{
	const size_t before = GUARD + offset, whole = before + len + GUARD;
	uint8_t *image = malloc(whole);

	assert_non_null(image);
	assert_true(n_pieces < PIECES_MAX);
	memset(image, GUARD_BYTE, whole);
	if (data)
		memcpy(image + before, data, len);
	else
		memset(image + before, TRIAL_POISON, len);
	pieces[n_pieces] = (struct piece){gpu_copy_in(device, image, whole), before, len};
	free(image);
	return pieces[n_pieces++].at + before;
}

void *trial_put(const void *data, size_t len, size_t offset)
{
	return place(data, len, offset);
}

void *trial_room(size_t len)
{
	return place(NULL, len, 0);
}

void trial_get(void *out, const void *from, size_t len)
{
	if (len)
		gpu_copy_out(device, out, from, len);
}

static void check_guard(const uint8_t *guard, size_t n, const struct piece *p, const char *where)
{
	for (size_t i = 0; i < n; i++)
		if (guard[i] != GUARD_BYTE)
			fail_msg("byte %zu of what lies %s a piece of %zu bytes was written", i, where,
				p->len);
}

int trial_release(void **state)
{
	(void)state;
	for (; n_pieces > 0; n_pieces--) {
		const struct piece *p = &pieces[n_pieces - 1];
		const size_t whole = p->before + p->len + GUARD;
		uint8_t *image = malloc(whole);

		assert_non_null(image);
		gpu_copy_out(device, image, p->at, whole);
		check_guard(image, p->before, p, "before");
		check_guard(image + p->before + p->len, GUARD, p, "behind");
		free(image);
		gpu_free(device, p->at);
	}
	return 0;
}

void trial_run(enum device_kernel kernel, const uint32_t grid[3], uint32_t block, uint32_t shared_bytes,
	const void *args)
{
	assert_int_equal(device_launch(device, kernel, grid, block, shared_bytes, NULL, args), 0);
	assert_int_equal(device_status(device_driver(device)->cuStreamSynchronize(NULL)), 0);
}
