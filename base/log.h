/*
 * Log lines to stderr, one event a line, as key=value pairs: time, level, msg (quoted; what could break a
 * line or obey a terminal is escaped). Where stderr is the journal (log_open finds out), time and level are
 * left to it: the line begins with the level as sd-daemon(3) wants it. Level and form are the one piece of
 * global state; set at start-up. Any thread.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stddef.h>

enum log_level { LOG_LEVEL_ERROR = 0, LOG_LEVEL_WARNING = 1, LOG_LEVEL_INFO = 2, LOG_LEVEL_DEBUG = 3 };

/* Once, before there are threads: looks whether stderr is the journal ($JOURNAL_STREAM, systemd.exec(5)). */
void log_open(void);
void log_set_level(enum log_level level);

void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The line for a message, with its newline, cut to size. time_ns: since 1970; 0: for the journal. Returns its
 * length. */
size_t log_compose(
	char *line, size_t size, enum log_level level, unsigned long long time_ns, const char *message);

#endif
