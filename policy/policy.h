/*
 * What the operator wants, and what follows from it for one chunk. Pure functions over plain data: no I/O, no
 * clock, no thread. struct policy is immutable once published; a change makes a new one with the next
 * version. fields.h has its fields by name, with their ranges and what they mean.
 */
#ifndef POLICY_H
#define POLICY_H

#include <stddef.h>
#include <stdint.h>

enum token_class {
	TOKEN_PLAIN = 0,   /* coded at the policy's rung */
	TOKEN_SINK = 1,    /* raw */
	TOKEN_WINDOW = 2,  /* raw, until the window has moved on */
	TOKEN_EXACT = 3,   /* raw: its error at every rung was over max_error, or it holds values that are not
			      finite */
	TOKEN_SALIENT = 4, /* coded, at a rung of its own, a finer one */
	TOKEN_REDUNDANT = 5, /* coded, at a rung of its own, a coarser one */
	TOKEN_CLASSES = 6,
};

enum policy_mode {
	POLICY_RATIO = 0,    /* hold a ratio of the coded tokens over a moving window */
	POLICY_FIDELITY = 1, /* hold a mean error, let the ratio float */
	POLICY_PRESSURE = 2, /* coarser as the pool fills */
};

/* What puts coded tokens in the order whose ends are salient and redundant. */
enum policy_class_by {
	POLICY_BY_ATTENTION = 0, /* that was seen, or is foretold */
	POLICY_BY_FIT = 1,       /* how badly the basis fits them */
	POLICY_BY_NEIGHBOURS = 2 /* how badly the tokens on either side foretell them */
};

struct policy {
	uint32_t version;
	uint32_t mode;        /* enum policy_mode */
	double ratio;         /* target_ratio: of the coded tokens */
	double target_error;  /* mean relative L2 error, for POLICY_FIDELITY */
	double max_error;     /* bound on a coded token's relative error per plane; 0: none */
	double pressure_from; /* for POLICY_PRESSURE: the share of the pool that is taken when it begins */
	double pressure_ratio;
	uint32_t pressure_rate; /* chunks that are kept, made coarser in a second; 0: none */
	uint32_t rate_window;   /* chunks over which mode holds its target */

	uint32_t sink_tokens;   /* the first so many positions of a sequence are sinks */
	uint32_t window_tokens; /* the last so many tokens known are the window */
	uint32_t window_settle; /* 0: what was in it when it was put stays raw */
	uint32_t sink_search;   /* 0: no sinks but the first ones */
	double sink_budget;     /* share of a chunk that may be protected as sinks found */
	double sink_multiple;   /* attention of so many times the uniform share makes a sink */
	double sink_unusual;    /* where no attention was seen: so many standard deviations do */
	double sink_keep;       /* hysteresis */

	uint32_t class_by;      /* enum policy_class_by */
	double salient_share;   /* of coded tokens, coded finer */
	uint32_t salient_finer; /* by so many rungs */
	double redundant_share; /* at the other end, coded coarser */
	uint32_t redundant_coarser;

	double alarm_error; /* running error from which on the alarm is raised; 0: never */

	double shadow;           /* share of chunks that are kept uncompressed too, for a while */
	uint32_t shadow_seconds; /* how long */
	double attention_share;  /* share of the chunks whose queries were seen before, that are compared when
				    put */
	double alarm_attention;  /* running error of attention outputs, as alarm_error */
};

void policy_init(struct policy *p);
/* 0 or -EINVAL with a sentence in why that names the field. */
int policy_check(const struct policy *p, char *why, size_t why_len);

/* Classifies a chunk's tokens: position of its first token, n_tokens, and seq_end, the position just after
 * the last token known of the sequence (>= position + n_tokens). classes: [n_tokens]. */
void policy_classify(
	const struct policy *p, uint64_t position, uint32_t n_tokens, uint64_t seq_end, uint8_t *classes);

/* "plain", "sink", ...; "?" for a number that is none. */
const char *token_class_name(uint8_t token_class);

static inline int token_class_is_raw(uint8_t token_class)
{
	return token_class == TOKEN_SINK || token_class == TOKEN_WINDOW || token_class == TOKEN_EXACT;
}

#endif
