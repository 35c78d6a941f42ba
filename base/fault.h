/* What is wrong with an input, as a sentence for whoever gave it. Pure, any thread. */
#ifndef BASE_FAULT_H
#define BASE_FAULT_H

#include <stddef.h>

/* Where the sentence goes, for handing down through a parser. */
struct fault {
	char *why;
	size_t why_len;
};

/* Writes the sentence into why (NULL or no room: nowhere) and returns status, a negative errno value. */
__attribute__((format(printf, 4, 5))) int fault_say(
	int status, char *why, size_t why_len, const char *format, ...);

#endif
