/*
 * What the operator wants, and what follows from it for one chunk. Pure functions over plain data: no I/O, no
 * clock, no thread. struct policy is immutable once published; a change makes a new one with the next
 * version.
 */
#ifndef POLICY_H
#define POLICY_H

#include <stddef.h>
#include <stdint.h>

enum token_class {
	TOKEN_PLAIN = 0,  /* coded at the policy's rung */
	TOKEN_SINK = 1,   /* raw */
	TOKEN_WINDOW = 2, /* raw, until the window has moved on */
	TOKEN_EXACT =
		3, /* raw: its error at the rung was over max_error, or it holds values that are not finite */
};

struct policy {
	uint32_t version;
	uint32_t sink_tokens;   /* the first so many positions of a sequence are sinks; default 4 */
	uint32_t window_tokens; /* the last so many tokens known are the window; default 128 */
	double ratio;           /* wanted ratio of the coded tokens; default 16 */
	double max_error;       /* bound on a coded token's relative L2 error per plane; 0: none; default 0 */
};

void policy_init(struct policy *p);
/* 0 or -EINVAL with a sentence in why. */
int policy_check(const struct policy *p, char *why, size_t why_len);

/* Classifies a chunk's tokens: position of its first token, n_tokens, and seq_end, the position just after
 * the last token known of the sequence (>= position + n_tokens). classes: [n_tokens]. */
void policy_classify(
	const struct policy *p, uint64_t position, uint32_t n_tokens, uint64_t seq_end, uint8_t *classes);

static inline int token_class_is_raw(uint8_t token_class)
{
	return token_class != TOKEN_PLAIN;
}

#endif
