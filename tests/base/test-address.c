/* Where watchers may connect: loopback and unix sockets, nothing that another machine could reach. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/address.h"

static void texts(void **state)
{
	static const struct {
		const char *text;
		int family;      /* 0: refused */
		const char *why; /* a part of the sentence */
	} cases[] = {
		{"127.0.0.1:9464", AF_INET, NULL},
		{"127.8.9.1:1", AF_INET, NULL},
		{"localhost:65535", AF_INET, NULL},
		{"[::1]:9464", AF_INET6, NULL},
		{"unix:/run/x.sock", AF_UNIX, NULL},
		{"0.0.0.0:9464", 0, "other machines"},
		{"192.168.0.1:9464", 0, "other machines"},
		{"[::]:9464", 0, "other machines"},
		{"[2001:db8::1]:9464", 0, "other machines"},
		{"::1:9464", 0, "not an IP address"},
		{"example:9464", 0, "not an IP address"},
		{"[127.0.0.1]:80", 0, "not an IP address"},
		{"127.0.0.1", 0, "neither"},
		{"127.0.0.1:0", 0, "neither"},
		{"127.0.0.1:65536", 0, "neither"},
		{"127.0.0.1:-1", 0, "neither"},
		{"127.0.0.1:80x", 0, "neither"},
		{"9464", 0, "neither"},
		{"", 0, "neither"},
		{"unix:relative", 0, "begins with /"},
		{"unix:/"
		 "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890"
		 "123456789012345678901234567890",
			0, "begins with /"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct address a;
		char why[200] = "";
		const int r = address_parse(cases[i].text, &a, why, sizeof why);

		print_message("%s\n", cases[i].text);
		assert_int_equal(r, cases[i].family ? 0 : -EINVAL);
		if (r)
			assert_non_null(strstr(why, cases[i].why));
		else
			assert_int_equal(a.any.sa_family, cases[i].family);
	}
}

static void a_leftover_is_replaced(void **state)
{
	char folder[] = "/tmp/cistern-test-XXXXXX", text[64];
	struct address a;
	struct stat st;
	FILE *f;
	int fd, other;

	(void)state;
	assert_non_null(mkdtemp(folder));
	snprintf(text, sizeof text, "unix:%s/s", folder);
	assert_int_equal(address_parse(text, &a, NULL, 0), 0);
	assert_int_equal(address_listen(&a, 0640, &fd), 0);
	assert_int_equal(stat(text + 5, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0640);
	assert_int_equal(address_listen(&a, 0640, &other), -EADDRINUSE);
	close(fd); /* as a daemon that was killed leaves it */
	assert_int_equal(address_listen(&a, 0640, &fd), 0);
	close(fd);
	unlink(text + 5);
	f = fopen(text + 5, "w");
	assert_non_null(f);
	fclose(f);
	assert_int_equal(address_listen(&a, 0640, &fd), -EEXIST);
	unlink(text + 5);
	rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(texts),
		cmocka_unit_test(a_leftover_is_replaced),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
