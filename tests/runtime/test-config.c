#include "runtime/config.h"

#include "base/file.h"
#include "base/log.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/test-config-XXXXXX";
static char path[64];
static const char *example;

static int load_text(const char *text, size_t len, struct config *c, char *why, size_t why_len)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, len, f), len);
	fclose(f);
	return config_load(path, c, why, why_len);
}

static void example_is_the_defaults(void **state)
{
	static const char *const lines[] = {"\nsocket = ", "\nchunk_tokens = ", "\nworkers = ",
		"\nspin_us = ", "\nmax_clients = ", "\nbackend = ", "\nlog_level = ", "\nsize = 1G",
		"\npath =\n", "\nsize = 16G",
		"\n# segment_size = ", "\n# path = ", "\nsink_tokens = ", "\nwindow_tokens = ",
		"\ntarget_ratio = ", "\nmax_error = ", "\n# uids = ", "\n[namespace default]\n"};
	struct config loaded, defaults;
	char why[256] = "";
	void *text;
	size_t len;

	(void)state;
	memset(&loaded, 0xff, sizeof loaded);
	assert_int_equal(config_load(example, &loaded, why, sizeof why), 0);
	config_init(&defaults);
	assert_string_equal(loaded.path, example);
	memset(loaded.path, 0, sizeof loaded.path);
	/* What [policy default] would say, nothing says. */
	defaults.namespaces[0].policy = defaults.policy;
	assert_memory_equal(&loaded, &defaults, sizeof loaded);
	assert_string_equal(why, "");

	assert_int_equal(file_read(example, &text, &len), 0);
	for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
		if (!strstr(text, lines[i]))
			fail_msg("the example lacks%s", lines[i]);
	for (size_t i = 0, n; i < (policy_fields(&n), n); i++) {
		char line[80];

		snprintf(line, sizeof line, "\n%s = ", policy_fields(&n)[i].name);
		if (!strstr(text, line))
			fail_msg("the example lacks%s", line);
	}
	free(text);
}

static void every_key(void **state)
{
	static const char text[] =
		"\xef\xbb\xbf[daemon]\r\n"
		"socket = /tmp/a b.sock ; a comment\r\n"
		"chunk_tokens=64\n"
		"   workers = 3\n"
		"\tspin_us: 50\n"
		"max_clients = 8\nupkeep_percent = 40\nbackend = host\ndevice = 3\ndevice_pool = "
		"2G\ndevice_staging = 64M\ndevice_share = 35\n"
		"log_level = debug\n"
		"[pool] # sizes\n"
		"size = 3m\n"
		"[store]\npath = /var/lib/x\nsize = 2T\nsegment_size = 8192K\n"
		"[metrics]\nlisten = unix:/run/m.sock\n"
		"[transforms]\npath = /a\npath = /b\n"
		"[learn]\nenabled = yes\nfirst_tokens = 1000\ncpu_percent = 50\nonly_idle = "
		"no\ndrift_percent = 10\nmemory = "
		"1G\n"
		"versions = 3\n"
		"[policy]\nsink_tokens = 0\nwindow_tokens = 256\ntarget_ratio = 8.5\nmax_error = 1e-2\n"
		"[namespace default]\nuids = any\n"
		"[namespace team/a]\nuids = 1000, 1001 0\n"
		"[namespace empty]";
	struct config c;
	char why[256];

	(void)state;
	assert_int_equal(load_text(text, sizeof text - 1, &c, why, sizeof why), 0);
	assert_string_equal(c.socket, "/tmp/a b.sock");
	assert_int_equal(c.chunk_tokens, 64);
	assert_int_equal(c.workers, 3);
	assert_int_equal(c.spin_us, 50);
	assert_int_equal(c.max_clients, 8);
	assert_int_equal(c.upkeep_percent, 40);
	assert_string_equal(c.backend, "host");
	assert_int_equal(c.device, 3);
	assert_int_equal(c.device_pool, 2ull << 30);
	assert_int_equal(c.device_staging, 64 << 20);
	assert_int_equal(c.device_share, 35);
	assert_int_equal(c.log_level, LOG_LEVEL_DEBUG);
	assert_int_equal(c.pool_bytes, 3 << 20);
	assert_string_equal(c.store_dir, "/var/lib/x");
	assert_int_equal(c.store_bytes, 2ull << 40);
	assert_int_equal(c.segment_bytes, 8 << 20);
	assert_string_equal(c.metrics_listen, "unix:/run/m.sock");
	assert_int_equal(c.n_transforms, 2);
	assert_string_equal(c.transforms[0], "/a");
	assert_string_equal(c.transforms[1], "/b");
	assert_true(c.learn.enabled);
	assert_int_equal(c.learn.first_tokens, 1000);
	assert_int_equal(c.learn.cpu_percent, 50);
	assert_false(c.learn.only_idle);
	assert_int_equal(c.learn.drift_percent, 10);
	assert_int_equal(c.learn.memory_bytes, 1 << 30);
	assert_int_equal(c.learn.versions, 3);
	assert_int_equal(c.policy.sink_tokens, 0);
	assert_int_equal(c.policy.window_tokens, 256);
	assert_true(c.policy.ratio == 8.5);
	assert_true(c.policy.max_error == 1e-2);
	assert_int_equal(c.n_namespaces, 3);
	assert_string_equal(c.namespaces[0].name, "default");
	assert_true(c.namespaces[0].any_uid);
	assert_string_equal(c.namespaces[1].name, "team/a");
	assert_false(c.namespaces[1].any_uid);
	assert_int_equal(c.namespaces[1].n_uids, 3);
	assert_int_equal(c.namespaces[1].uids[0], 1000);
	assert_int_equal(c.namespaces[1].uids[1], 1001);
	assert_int_equal(c.namespaces[1].uids[2], 0);
	assert_string_equal(c.namespaces[2].name, "empty");
	assert_int_equal(c.namespaces[2].n_uids, 0);
}

#define LONG_50 "0123456789abcdefghijklmnopqrstuvwxyz0123456789abcd"
#define LONG_200 LONG_50 LONG_50 LONG_50 LONG_50

static void faults(void **state)
{
	static const struct {
		const char *text;
		const char *why; /* after the file's name */
	} cases[] = {
		{"workers = 3", ":1: workers: stands before the first [section]"},
		{"\n[deamon]\nworkers = 3", ":2: [deamon]: unknown section; did you mean [daemon]?"},
		{"[storage]", ":1: [storage]: unknown section; did you mean [store]?"},
		{"[namespace]\nuids = 3", ":1: [namespace]: unknown section; did you mean [namespace NAME]?"},
		{"[namespaces x]\n", ":1: [namespaces x]: unknown section; did you mean [namespace NAME]?"},
		{"[namespace  ]", ":1: [namespace  ]: a namespace's name has 1 to 63 bytes"},
		{"[metrics]\nlisten = 0.0.0.0:9464", ":2: [metrics] listen: 0.0.0.0:9464 can be reached from "
						     "other machines; only loopback addresses are taken"},
		{"[namespace a b]", ":1: [namespace a b]: a namespace's name holds no blanks"},
		{"[namespace " LONG_50 "0123456789abcd]",
			":1: [namespace " LONG_50 "0123456789abcd]: a namespace's name has 1 to 63 bytes"},
		{"[" LONG_50 LONG_50 "]", ":1: a section's name is longer than 95 bytes"},
		{"[daemon] workers = 3", ":1: nothing but a comment may follow a section's name"},
		{"[daemon\nworkers = 3", ":1: neither [section] nor KEY = VALUE"},
		{"[pool]\nsize = 1G\n\njust words\n[nonsense]", ":4: neither [section] nor KEY = VALUE"},
		{"[daemon]\n; x\nworker = 3", ":3: [daemon] worker: unknown key; did you mean workers?"},
		{"[store]\nsegment-size = 3M",
			":2: [store] segment-size: unknown key; did you mean segment_size?"},
		{"[daemon]\nworkers = 3\n# x\nworkers = 3", ":4: [daemon] workers: set already in line 2"},
		{"[pool]\nsize = 1G\n[store]\n[pool]\nsize = 1G", ":5: [pool] size: set already in line 2"},
		{"[namespace a]\nuids = 1\n[namespace b]\nuids = 1\n[namespace a]\nuids = 2",
			":6: [namespace a] uids: set already in line 2"},
		{"[daemon]\nworkers = 3x", ":2: [daemon] workers: \"3x\" is not a whole number"},
		{"[daemon]\nworkers = -1", ":2: [daemon] workers: \"-1\" is not a whole number"},
		{"[daemon]\nworkers =", ":2: [daemon] workers: \"\" is not a whole number"},
		{"[daemon]\nworkers = 1K", ":2: [daemon] workers: \"1K\" is not a whole number"},
		{"[daemon]\nworkers = 4294967296",
			":2: [daemon] workers: 4294967296 is out of range (0 to 1024)"},
		{"[daemon]\nchunk_tokens = 0", ":2: [daemon] chunk_tokens: 0 is out of range (1 to 4096)"},
		{"[daemon]\nsocket =", ":2: [daemon] socket: must not be empty"},
		{"[daemon]\nsocket = /" LONG_50 LONG_50, ":2: [daemon] socket: longer than 99 bytes"},
		{"[daemon]\nsocket = /" LONG_200, ":2: longer than 198 bytes"},
		{"[daemon]\ndevice = gpu",
			":2: [daemon] device: \"gpu\" is neither none nor auto nor a GPU's number"},
		{"[daemon]\ndevice = -1",
			":2: [daemon] device: \"-1\" is neither none nor auto nor a GPU's number"},
		{"[daemon]\ndevice_staging = 1",
			":2: [daemon] device_staging: 1 is out of range (1048576 to 1099511627776)"},
		{"[daemon]\nbackend = cpu", ":2: [daemon] backend: \"cpu\" is neither auto nor host"},
		{"[daemon]\nlog_level = 3",
			":2: [daemon] log_level: \"3\" is none of error, warning, info, debug"},
		{"[pool]\nsize = 1.5G", ":2: [pool] size: \"1.5G\" is not a size (a whole number of bytes, "
					"or with K, M, G or T "
					"after it)"},
		{"[pool]\nsize = 1GB", ":2: [pool] size: \"1GB\" is not a size (a whole number of bytes, or "
				       "with K, M, G or T "
				       "after it)"},
		{"[pool]\nsize = 99999999T", ":2: [pool] size: \"99999999T\" is not a size (a whole number "
					     "of bytes, or with K, M, G "
					     "or T after it)"},
		{"[pool]\nsize = 99999999999999999999", ":2: [pool] size: \"99999999999999999999\" is not a "
							"size (a whole number of bytes, or "
							"with K, M, G or T after it)"},
		{"[pool]\nsize = 4K", ":2: [pool] size: 4K is out of range (1048576 to 8796093022208)"},
		{"[store]\nsegment_size = 1048577\n", ":2: [store] segment_size: not a multiple of 4K"},
		{"[store]\nsegment_size = 1G\nsize = 1G\n",
			":3: [store] size: the store must hold at least four segments (size 1073741824, "
			"segment_size 1073741824)"},
		{"[transforms]\npath =\n", ":2: [transforms] path: must not be empty"},
		{"[learn]\nenabled = 1", ":2: [learn] enabled: \"1\" is neither yes nor no"},
		{"[learn]\ncpu_percent = 0", ":2: [learn] cpu_percent: 0 is out of range (1 to 100)"},
		{"[learn]\nversions = 1", ":2: [learn] versions: 1 is out of range (2 to 64)"},
		{"[learn]\nfirst_tokens = 100",
			":2: [learn] first_tokens: 100 is out of range (512 to 16777216)"},
		{"[policy]\ntarget_ratio = fast", ":2: [policy] target_ratio: \"fast\" is not a number"},
		{"[policy]\ntarget_ratio = nan", ":2: [policy] target_ratio: \"nan\" is not a number"},
		{"[policy]\nsink_tokens = 4\ntarget_ratio = 0.5\nmax_error = 0.1\n[pool]\n",
			":3: [policy] target_ratio: 0.5 is not 1 to 1000 x"},
		{"[namespace x]\nuids =", ":2: [namespace x] uids: must not be empty"},
		{"[namespace x]\nuids = 1,all",
			":2: [namespace x] uids: \"all\" is not a user id (a number), nor \"any\""},
		{"[namespace x]\nuids = 4294967295",
			":2: [namespace x] uids: \"4294967295\" is not a user id (a number), nor \"any\""},
		{"[namespace x]\nuids = 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17",
			":2: [namespace x] uids: more than 16 user ids"},
	};
	struct config c, before;

	(void)state;
	memset(&c, 0x5a, sizeof c);
	before = c;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		char why[512] = "", expected[512];

		snprintf(expected, sizeof expected, "%s%s", path, cases[i].why);
		assert_int_equal(
			load_text(cases[i].text, strlen(cases[i].text), &c, why, sizeof why), -EINVAL);
		assert_string_equal(why, expected);
		assert_memory_equal(&c, &before, sizeof c);
	}
}

static void too_many(void **state)
{
	char text[8192], why[512];
	struct config c;
	size_t len = (size_t)snprintf(text, sizeof text, "[transforms]\n");

	(void)state;
	for (int i = 0; i < CONFIG_TRANSFORMS_MAX + 1; i++)
		len += (size_t)snprintf(text + len, sizeof text - len, "path = /%d\n", i);
	assert_int_equal(load_text(text, len, &c, why, sizeof why), -EINVAL);
	assert_non_null(strstr(why, ":66: [transforms] path: more than 64 transforms"));

	len = 0;
	for (int i = 0; i < CONFIG_NAMESPACES_MAX; i++)
		len += (size_t)snprintf(text + len, sizeof text - len, "[namespace n%d]\n", i);
	assert_int_equal(load_text(text, len, &c, why, sizeof why), -EINVAL);
	assert_non_null(strstr(why, ":64: [namespace n63]: more than 64 namespaces"));
}

static void files(void **state)
{
	struct config c;
	char why[512];

	(void)state;
	assert_int_equal(config_load("/nonexistent/x", &c, why, sizeof why), -ENOENT);
	assert_string_equal(why, "/nonexistent/x: No such file or directory");
	assert_int_equal(config_load(folder, &c, why, sizeof why), -EISDIR);
	assert_int_equal(load_text("[pool]\nsi\0ze = 3\n", 17, &c, why, sizeof why), -EINVAL);
	assert_non_null(strstr(why, ":2: not text: the line holds a NUL byte"));
	assert_int_equal(load_text("", 0, &c, why, sizeof why), 0);
	assert_int_equal(c.n_namespaces, 1);
	/* A short buffer cuts the message and no more. */
	assert_int_equal(load_text("[x]", 3, &c, why, 6), -EINVAL);
	assert_int_equal(strlen(why), 5);
}

/* Damaged files end in an answer and one line, whatever it is. */
static void garbage(void **state)
{
	unsigned seed = (unsigned)time(NULL);
	void *text;
	size_t len;

	(void)state;
	print_message("seed %u\n", seed);
	assert_int_equal(file_read(example, &text, &len), 0);
	for (int i = 0; i < 300; i++) {
		char *copy = malloc(len), why[256] = "";
		struct config c;

		memcpy(copy, text, len);
		for (int j = rand_r(&seed) % 8; j >= 0; j--)
			copy[(size_t)rand_r(&seed) % len] = (char)rand_r(&seed);
		if (load_text(copy, (size_t)rand_r(&seed) % len, &c, why, sizeof why) < 0)
			assert_true(strncmp(why, path, strlen(path)) == 0 && !strchr(why, '\n'));
		free(copy);
	}
	free(text);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(example_is_the_defaults),
		cmocka_unit_test(every_key),
		cmocka_unit_test(faults),
		cmocka_unit_test(too_many),
		cmocka_unit_test(files),
		cmocka_unit_test(garbage),
	};
	int r;

	example = argc > 1 ? argv[1] : "docs/cistern.conf.example";
	if (!mkdtemp(folder))
		return 1;
	snprintf(path, sizeof path, "%s/conf", folder);
	r = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(path);
	rmdir(folder);
	return r;
}
