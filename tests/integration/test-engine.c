/*
 * cistern-engine against a real daemon: one process computes prompts and puts their KV, another takes it back
 * into memory of another layout. Arguments: the engine's program and the model's folder; $CISTERND is the
 * daemon.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "tools/child.h"
#include "tools/private-daemon.h"

enum { LINES_MAX = 8 };

struct world {
	char *engine, *model;
	struct private_daemon daemon;
	char prompts[512], log[512];
	json_t *lines[LINES_MAX]; /* what the last run printed */
	size_t n_lines;
};

static int keep_line(void *arg, const json_t *object)
{
	struct world *w = arg;

	if (w->n_lines == LINES_MAX)
		return -E2BIG;
	w->lines[w->n_lines++] = json_deep_copy(object);
	return 0;
}

static void forget_lines(struct world *w)
{
	while (w->n_lines)
		json_decref(w->lines[--w->n_lines]);
}

/* Runs a subcommand; more: up to two further arguments, or NULL. */
static int run(struct world *w, char *command, char *more, char *value)
{
	static volatile sig_atomic_t stop;
	char *argv[] = {w->engine, command, "--socket", w->daemon.socket, "--model", w->model, "--prompts",
		w->prompts, more, value, NULL};

	forget_lines(w);
	return child_run(argv, w->log, &stop, keep_line, w);
}

static double number(const struct world *w, size_t line, const char *key)
{
	const json_t *value = json_object_get(w->lines[line], key);

	assert_true(json_is_number(value));
	return json_number_value(value);
}

/* A prompt of whole chunks, one that ends within a chunk, and one shorter than the window, which is kept
 * whole. */
static const unsigned lengths[] = {512, 700, 90};
enum { PROMPTS = 3, CHUNK = 256, PROTECTED = 4 + 128 };

static void write_prompts(const struct world *w)
{
	FILE *f = fopen(w->prompts, "w");

	assert_non_null(f);
	for (unsigned i = 0; i < PROMPTS; i++) {
		fprintf(f, "{\"id\": \"p%u\", \"text\": \"\\u0001", i);
		for (unsigned t = 1; t < lengths[i]; t++)
			fputc("abcdefgh, ijklm nopq. "[(t * t + t / 7 + i) % 22], f);
		fprintf(f, "\", \"continuation\": \" and so on\", \"answer\": \".\"}\n");
	}
	assert_int_equal(fclose(f), 0);
}

static void start(struct world *w)
{
	assert_int_equal(private_daemon_start(&w->daemon, &(struct private_daemon_options){.workers = 1}), 0);
	snprintf(w->prompts, sizeof w->prompts, "%s/prompts.jsonl", w->daemon.folder);
	snprintf(w->log, sizeof w->log, "%s/engine.log", w->daemon.folder);
	write_prompts(w);
}

static int stop(void **state)
{
	struct world *w = *state;

	forget_lines(w);
	private_daemon_stop(&w->daemon);
	return 0;
}

static void check_restored(const struct world *w)
{
	assert_int_equal(w->n_lines, PROMPTS);
	for (size_t i = 0; i < PROMPTS; i++) {
		unsigned n = lengths[i], raw = n < PROTECTED ? n : PROTECTED;

		assert_true(number(w, i, "lookup_hits") == (n + CHUNK - 1) / CHUNK);
		assert_true(number(w, i, "restored_tokens") == n);
		assert_true(number(w, i, "raw_tokens") == raw);
		assert_true(json_is_true(json_object_get(w->lines[i], "raw_exact")));
		assert_true(number(w, i, "exact_tokens") >= raw);
		assert_true(number(w, i, "continuation_tokens") == 11);
		/* No transform: the plain code keeps 8 bits. */
		assert_true(number(w, i, "attn_error") < 0.02);
		assert_true(number(w, i, "kl") < 0.01);
	}
	/* Wholly protected, so nothing may differ. */
	assert_true(number(w, 2, "kl") == 0);
	assert_true(number(w, 2, "attn_error") == 0);
	assert_true(number(w, 0, "attn_error") > 0);
}

static void another_process_goes_on(void **state)
{
	struct world *w = *state;

	start(w);
	assert_int_equal(run(w, "continue", NULL, NULL), 0);
	for (size_t i = 0; i < PROMPTS; i++) {
		assert_true(number(w, i, "restored_tokens") == 0);
		assert_true(number(w, i, "kl") == 0);
	}
	assert_int_equal(run(w, "prefill", NULL, NULL), 0);
	assert_int_equal(w->n_lines, PROMPTS + 1);
	for (size_t i = 0; i < PROMPTS; i++) {
		assert_true(number(w, i, "tokens") == lengths[i]);
		assert_true(number(w, i, "kept_chunks") == (lengths[i] + CHUNK - 1) / CHUNK);
		assert_true(number(w, i, "stored_bytes") > 0);
		assert_true(number(w, i, "stored_bytes") < 1.02 * number(w, i, "original_bytes"));
	}
	assert_true(json_is_true(json_object_get(w->lines[PROMPTS], "synced")));
	assert_int_equal(run(w, "continue", "--order", "hnd"), 0);
	check_restored(w);
}

/* What was synced outlives the daemon. */
static void a_killed_daemon_has_kept_it(void **state)
{
	struct world *w = *state;

	start(w);
	assert_int_equal(run(w, "prefill", "--order", "hnd"), 0);
	private_daemon_end(&w->daemon, SIGKILL);
	assert_int_not_equal(run(w, "continue", NULL, NULL), 0);
	assert_int_equal(private_daemon_restart(&w->daemon), 0);
	assert_int_equal(run(w, "continue", "--seed", "77"), 0);
	check_restored(w);
}

int main(int argc, char **argv)
{
	struct world w = {.engine = argc > 1 ? argv[1] : "", .model = argc > 2 ? argv[2] : "model"};
	const struct CMUnitTest tests[] = {
		{"another_process_goes_on", another_process_goes_on, NULL, stop, &w},
		{"a_killed_daemon_has_kept_it", a_killed_daemon_has_kept_it, NULL, stop, &w},
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
