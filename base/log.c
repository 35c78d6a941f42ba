#include "base/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE_MAX = 1024, LINE_MAX_BYTES = 2 * MESSAGE_MAX };

static enum log_level log_level = LOG_LEVEL_INFO;
static bool to_journal;

void log_set_level(enum log_level level)
{
	log_level = level;
}

void log_open(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long device, inode;
	struct stat st;

	to_journal = stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
		     !fstat(STDERR_FILENO, &st) && st.st_dev == device && st.st_ino == inode;
}

size_t log_compose(
	char *line, size_t size, enum log_level level, unsigned long long time_ns, const char *message)
{
	static const char *const words[] = {"error", "warning", "info", "debug"};
	static const int priorities[] = {3, 4, 6, 7}; /* syslog(3) */
	const time_t seconds = (time_t)(time_ns / 1000000000);
	struct tm utc;
	size_t len;

	if (time_ns) {
		gmtime_r(&seconds, &utc);
		len = strftime(line, size, "time=%Y-%m-%dT%H:%M:%S", &utc);
		len += (size_t)snprintf(line + len, size - len, ".%03lluZ level=%s msg=\"",
			time_ns / 1000000 % 1000, words[level]);
	} else {
		len = (size_t)snprintf(line, size, "<%d>msg=\"", priorities[level]);
	}
	for (; *message && len + 7 < size; message++) {
		const unsigned char c = (unsigned char)*message;

		if (c == '"' || c == '\\') {
			line[len++] = '\\';
			line[len++] = (char)c;
		} else if (c < ' ' || c == 127) {
			len += (size_t)snprintf(line + len, size - len, "\\x%02x", c);
		} else {
			line[len++] = (char)c;
		}
	}
	line[len++] = '"';
	line[len++] = '\n';
	line[len] = 0;
	return len;
}

static void log_line(enum log_level level, const char *format, va_list args)
{
	char message[MESSAGE_MAX], line[LINE_MAX_BYTES];
	struct timespec now;
	size_t len;

	if (level > log_level)
		return;
	vsnprintf(message, sizeof message, format, args);
	clock_gettime(CLOCK_REALTIME, &now);
	len = log_compose(line, sizeof line, level,
		to_journal ? 0
			   : (unsigned long long)now.tv_sec * 1000000000 + (unsigned long long)now.tv_nsec,
		message);
	/* One write a line, so that lines of several threads do not mix. Nothing can be done when it fails.
	 */
	if (write(STDERR_FILENO, line, len) < 0)
		return;
}

#define LOG_FUNCTION(name, level)                                                                            \
	void name(const char *format, ...)                                                                   \
	{                                                                                                    \
		va_list args;                                                                                \
		va_start(args, format);                                                                      \
		log_line(level, format, args);                                                               \
		va_end(args);                                                                                \
	}

LOG_FUNCTION(log_error, LOG_LEVEL_ERROR)
LOG_FUNCTION(log_warning, LOG_LEVEL_WARNING)
LOG_FUNCTION(log_info, LOG_LEVEL_INFO)
LOG_FUNCTION(log_debug, LOG_LEVEL_DEBUG)
