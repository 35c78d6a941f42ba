/* The pool in the GPU's memory: its size, changed while the daemon runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "tests/cuda/scene.h"

enum { SLAB = 64 << 20 };

static json_t *resize(const struct private_daemon *d, long bytes)
{
	char request[100];

	snprintf(request, sizeof request, "{\"command\":\"pool-resize\",\"bytes\":%ld}", bytes);
	return scene_control(d, request);
}

static void wants(json_t *answer, long size_bytes)
{
	assert_true(json_is_true(json_object_get(answer, "ok")));
	assert_int_equal(json_integer_value(json_object_get(answer, "size_bytes")), size_bytes);
	json_decref(answer);
}

static void is_refused(json_t *answer, const char *why)
{
	assert_true(json_is_false(json_object_get(answer, "ok")));
	if (!strstr(json_string_value(json_object_get(answer, "error")), why))
		fail_msg("said: %s", json_string_value(json_object_get(answer, "error")));
	json_decref(answer);
}

static void set_total(const struct cuda_double *double_, long bytes)
{
	double_->set_total_bytes((uint64_t)bytes);
}

static void the_size_is_changed(void **state)
{
	struct private_daemon d = scene_daemon("device_pool = 130M\n");
	long empty, taken;

	(void)state;
	scene_until(&d, "pool", "size_bytes", 2 * SLAB);
	taken = scene_taken_bytes();
	empty = taken - 2 * SLAB;
	assert_int_equal(scene_number(&d, "pool", "mapped_bytes"), 2 * SLAB);
	wants(resize(&d, 3 * SLAB + 5), 3 * SLAB);
	if (taken >= 0)
		assert_int_equal(scene_taken_bytes(), empty + 3 * SLAB);
	wants(resize(&d, SLAB), SLAB);
	if (taken >= 0)
		assert_int_equal(scene_taken_bytes(), empty + SLAB);
	assert_int_equal(scene_number(&d, "pool", "mapped_bytes"), SLAB);
	is_refused(resize(&d, 1), "whole slabs");
	is_refused(resize(&d, -1), "needs");
	is_refused(resize(&d, 1l << 60), "whole slabs");
	wants(resize(&d, 0), 0);
	if (taken >= 0)
		assert_int_equal(scene_taken_bytes(), empty);
	/* The GPU has less to give: what there is stays. */
	if (taken >= 0) {
		scene_knob(set_total, empty + 2 * SLAB + 1000);
		is_refused(resize(&d, 5l * SLAB), "no more to give");
		assert_int_equal(scene_number(&d, "pool", "size_bytes"), 2 * SLAB);
		scene_knob(set_total, 1l << 32);
		wants(resize(&d, 5l * SLAB), 5l * SLAB);
	}
	private_daemon_stop(&d);
	if (taken >= 0)
		assert_int_equal(scene_taken_bytes(), 0);
}

static void without_a_gpu(void **state)
{
	struct private_daemon d = scene_daemon("device = none\n");

	(void)state;
	is_refused(resize(&d, SLAB), "uses no GPU");
	private_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_size_is_changed),
		cmocka_unit_test(without_a_gpu),
	};

	return scene_run(tests, sizeof tests / sizeof *tests);
}
