#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

static enum log_level log_level = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
	log_level = level;
}

/* One write per line, so that lines of several threads do not mix. */
static void log_line(enum log_level level, const char *word, const char *format, va_list args)
{
	char line[1024];

	if (level > log_level)
		return;
	vsnprintf(line, sizeof line, format, args);
	fprintf(stderr, "%s: %s\n", word, line);
}

#define LOG_FUNCTION(name, level, word)                                                                      \
	void name(const char *format, ...)                                                                   \
	{                                                                                                    \
		va_list args;                                                                                \
		va_start(args, format);                                                                      \
		log_line(level, word, format, args);                                                         \
		va_end(args);                                                                                \
	}

LOG_FUNCTION(log_error, LOG_LEVEL_ERROR, "error")
LOG_FUNCTION(log_warning, LOG_LEVEL_WARNING, "warning")
LOG_FUNCTION(log_info, LOG_LEVEL_INFO, "info")
LOG_FUNCTION(log_debug, LOG_LEVEL_DEBUG, "debug")
