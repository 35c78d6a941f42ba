/* Tokens and prompt files. The model's folder is the first argument: its held-out prompts must read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "tools/engine/text.h"

struct file {
	char path[32];
};

static void file_make(struct file *f, const char *content)
{
	int fd;

	strcpy(f->path, "/tmp/test-text.XXXXXX");
	fd = mkstemp(f->path);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(file_write(f->path, content, strlen(content)), 0);
}

static void encodes_specials(void **state)
{
	static const char text[] = "\001a\002\n\303\244";
	static const uint32_t expected[] = {TEXT_BOS, 'a', TEXT_SEP, '\n', 0xc3, 0xa4};
	uint32_t tokens[6];
	char back[6];

	(void)state;
	text_encode(text, 6, tokens);
	assert_memory_equal(tokens, expected, sizeof expected);
	text_decode(tokens, 6, back);
	assert_memory_equal(back, text, 6);
	text_decode(&(uint32_t){260}, 1, back);
	assert_int_equal(back[0], '?');
}

static void reads_prompts(void **state)
{
	struct prompts p;
	char why[256];
	struct file f;

	(void)state;
	file_make(&f, "{\"id\": 7, \"text\": \"\\u0001ab\", \"continuation\": \"cd\", \"other\": null}\n"
		      "\n"
		      "{\"id\": \"x\", \"tokens\": [256, 97], \"continuation\": [63], \"answer\": \"yes\"}\n"
		      "{\"id\": 9, \"prompt\": \"q\", \"questions\": [{\"q\": \"?A=\", \"a\": \"1\"}, "
		      "{\"q\": \"?\", "
		      "\"a\": \"22\"}]}");
	assert_int_equal(prompts_read(f.path, &p, why, sizeof why), 0);
	assert_int_equal(p.n, 3);
	assert_string_equal(p.list[0].id, "7");
	assert_int_equal(p.list[0].tokens.n, 3);
	assert_int_equal(p.list[0].tokens.list[0], TEXT_BOS);
	assert_int_equal(p.list[0].n_probes, 1);
	assert_int_equal(p.list[0].probes[0].given.n, 2);
	assert_int_equal(p.list[0].probes[0].answer.n, 0);
	assert_string_equal(p.list[1].id, "\"x\"");
	assert_int_equal(p.list[1].tokens.list[1], 'a');
	assert_int_equal(p.list[1].probes[0].answer.n, 3);
	assert_int_equal(p.list[2].n_probes, 2);
	assert_int_equal(p.list[2].probes[1].answer.list[1], '2');
	prompts_fini(&p);
	unlink(f.path);
}

static void refuses_bad_lines(void **state)
{
	static const char *const cases[] = {
		"{\"id\": 1, \"text\": \"a\"}\n{\"id\": 2, \"text\": ",
		"\n[1]",
		"\n7",
		"\n{\"text\": \"a\"}",
		"\n{\"id\": [], \"text\": \"a\"}",
		"\n{\"id\": 1}",
		"\n{\"id\": 1, \"text\": 5}",
		"\n{\"id\": 1, \"tokens\": [-1]}",
		"\n{\"id\": 1, \"tokens\": [4294967296]}",
		"\n{\"id\": 1, \"tokens\": [\"a\"]}",
		"\n{\"id\": 1, \"text\": \"a\", \"continuation\": 5}",
		"\n{\"id\": 1, \"text\": \"a\", \"questions\": 5}",
		"\n{\"id\": 1, \"text\": \"a\", \"questions\": [{\"q\": \"b\"}]}",
		"\n{\"id\": \"0123456789012345678901234567890123456789012345678901234567890123\", \"text\": "
		"\"a\"}",
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct prompts p;
		char why[256] = "";
		struct file f;

		file_make(&f, cases[i]);
		assert_int_equal(prompts_read(f.path, &p, why, sizeof why), -EINVAL);
		assert_non_null(strstr(why, ":2: "));
		unlink(f.path);
	}
	{
		struct prompts p;
		char why[256];

		assert_int_equal(prompts_read("/nowhere/at.all", &p, why, sizeof why), -ENOENT);
	}
}

static void reads_held_out_sets(void **state)
{
	const char *dir = *state;
	struct prompts p;
	struct tokens t;
	char path[512], why[256];

	snprintf(path, sizeof path, "%s/heldout/recall.jsonl", dir);
	assert_int_equal(prompts_read(path, &p, why, sizeof why), 0);
	assert_true(p.n >= 100);
	for (size_t i = 0; i < p.n; i++) {
		assert_int_equal(p.list[i].tokens.list[0], TEXT_BOS);
		assert_true(p.list[i].n_probes > 0);
		assert_int_equal(p.list[i].probes[0].answer.n, 5);
	}
	prompts_fini(&p);
	snprintf(path, sizeof path, "%s/heldout/test.txt", dir);
	assert_int_equal(text_read(path, &t), 0);
	assert_true(t.n > 100000);
	tokens_fini(&t);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(encodes_specials),
		cmocka_unit_test(reads_prompts),
		cmocka_unit_test(refuses_bad_lines),
		cmocka_unit_test_prestate(reads_held_out_sets, argc > 1 ? argv[1] : "model"),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
