/*
 * What the tests with daemon and GPU engines share: a daemon, engines in processes of their own (a driver
 * does not survive a fork, so the test itself never loads one), what the daemon says of its GPU, and what the
 * driver double says of the device. Functions of cmocka: a failure ends the test.
 */
#ifndef TESTS_CUDA_SCENE_H
#define TESTS_CUDA_SCENE_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "tests/cuda/double/double.h"
#include "tests/cuda/engine.h"
#include "tools/private-daemon.h"

/* Sets the double's device up, says why tests are skipped, runs them. */
struct CMUnitTest;
int scene_run(const struct CMUnitTest *tests, size_t n);

/* No store; more lines for [daemon], or NULL. */
struct private_daemon scene_daemon(const char *more);

/* In a process of its own; ends well, or the test fails. */
typedef void scene_fn(const char *socket, uint32_t arg);
void scene_in_process(scene_fn *fn, const struct private_daemon *d, uint32_t arg);
/* The same, without waiting. fd: readable when the process says something (scene_say). */
pid_t scene_start(scene_fn *fn, const struct private_daemon *d, uint32_t arg, int *fd);
void scene_say(void);
void scene_await(int fd);
void scene_kill(pid_t pid);
void scene_end(pid_t pid);

json_t *scene_control(const struct private_daemon *d, const char *request);
/* device.GROUP.KEY of its status; key NULL: device.GROUP. */
long scene_number(const struct private_daemon *d, const char *group, const char *key);
/* Waits, for as long as it takes up to 20 s, until a number is as wanted. Returns how many ms it took. */
long scene_until(const struct private_daemon *d, const char *group, const char *key, long wanted);

/* Of the double, in a process of its own; -1: this is a real GPU. */
long scene_taken_bytes(void);
bool scene_has_double(void);
/* Turns a knob, in a process of its own: fn is called with the double. */
void scene_knob(void (*fn)(const struct cuda_double *d, long value), long value);

#endif
