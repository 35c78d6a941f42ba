/* The event ring: order, numbers, what is lost, texts that do not fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/log.h"
#include "runtime/daemon/events.h"

static void in_order(void **state)
{
	struct events *e = events_new(4);
	struct event out[8];
	uint64_t next, lost;

	(void)state;
	assert_int_equal(events_read(e, 0, out, 8, &next, &lost), 0);
	assert_int_equal(next, 1);
	events_add(e, EVENT_POLICY, 7, "tenant", "ratio %d", 16);
	events_add(e, EVENT_DAEMON, EVENT_NOBODY, NULL, "reload");
	assert_int_equal(events_read(e, 0, out, 8, &next, &lost), 2);
	assert_int_equal(next, 3);
	assert_int_equal(lost, 0);
	assert_int_equal(out[0].number, 1);
	assert_int_equal(out[0].uid, 7);
	assert_string_equal(out[0].name_space, "tenant");
	assert_string_equal(out[0].text, "ratio 16");
	assert_int_equal(out[1].kind, EVENT_DAEMON);
	assert_int_equal(out[1].uid, EVENT_NOBODY);
	assert_true(out[0].time_ms > 1600000000000u && out[0].time_ms <= out[1].time_ms);
	/* A reader takes them piece by piece and misses none. */
	assert_int_equal(events_read(e, 1, out, 1, &next, &lost), 1);
	assert_int_equal(next, 2);
	assert_int_equal(events_read(e, next, out, 1, &next, &lost), 1);
	assert_int_equal(out[0].number, 2);
	assert_int_equal(events_read(e, next, out, 1, &next, &lost), 0);
	events_free(e);
}

static void overwritten(void **state)
{
	struct events *e = events_new(4);
	struct event out[8];
	uint64_t next, lost;

	(void)state;
	for (int i = 1; i <= 10; i++)
		events_add(e, EVENT_STORE, EVENT_NOBODY, NULL, "event %d", i);
	assert_int_equal(events_read(e, 3, out, 8, &next, &lost), 4);
	assert_int_equal(lost, 4); /* 3, 4, 5 and 6 */
	assert_int_equal(out[0].number, 7);
	assert_string_equal(out[3].text, "event 10");
	/* From the future: nothing, and no number is skipped. */
	assert_int_equal(events_read(e, 100, out, 8, &next, &lost), 0);
	assert_int_equal(next, 11);
	assert_int_equal(lost, 0);
	events_free(e);
}

static void long_text(void **state)
{
	struct events *e = events_new(2);
	struct event out;
	uint64_t next, lost;
	char text[1000];

	(void)state;
	memset(text, 'x', sizeof text - 1);
	text[sizeof text - 1] = 0;
	events_add(e, EVENT_CACHE, 0, text, "%s", text);
	assert_int_equal(events_read(e, 0, &out, 1, &next, &lost), 1);
	assert_int_equal(strlen(out.text), EVENT_TEXT_MAX - 1);
	assert_int_equal(strlen(out.name_space), EVENT_NAMESPACE_MAX - 1);
	events_free(e);
}

static void names(void **state)
{
	(void)state;
	for (int i = 0; i < EVENT_KINDS; i++)
		assert_int_equal(event_kind_of(event_kind_name((enum event_kind)i)), i);
	assert_int_equal(event_kind_of("nothing"), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(in_order), cmocka_unit_test(overwritten),
		cmocka_unit_test(long_text), cmocka_unit_test(names)};

	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
