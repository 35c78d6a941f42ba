#include "base/fault.h"

#include <stdarg.h>
#include <stdio.h>

int fault_say(int status, char *why, size_t why_len, const char *format, ...)
{
	va_list args;

	if (why && why_len) {
		va_start(args, format);
		vsnprintf(why, why_len, format, args);
		va_end(args);
	}
	return status;
}
