#include "policy/policy.h"

#include <errno.h>
#include <stdio.h>

#include "base/fault.h"

enum {
	SINK_TOKENS_MAX = 1 << 20,
	WINDOW_TOKENS_MAX = 1 << 20,
};

void policy_init(struct policy *p)
{
	*p = (struct policy){.version = 1, .sink_tokens = 4, .window_tokens = 128, .ratio = 16};
}

int policy_check(const struct policy *p, char *why, size_t why_len)
{
	if (p->sink_tokens > SINK_TOKENS_MAX)
		return fault_say(-EINVAL, why, why_len, "sink_tokens %u is not 0 to %d", p->sink_tokens,
			SINK_TOKENS_MAX);
	if (p->window_tokens > WINDOW_TOKENS_MAX)
		return fault_say(-EINVAL, why, why_len, "window_tokens %u is not 0 to %d", p->window_tokens,
			WINDOW_TOKENS_MAX);
	/* Written so that NaN fails. */
	if (!(p->ratio >= 1 && p->ratio <= 1000))
		return fault_say(-EINVAL, why, why_len, "ratio %g is not 1 to 1000", p->ratio);
	if (!(p->max_error >= 0 && p->max_error <= 1))
		return fault_say(-EINVAL, why, why_len, "max_error %g is not 0 to 1", p->max_error);
	return 0;
}

void policy_classify(
	const struct policy *p, uint64_t position, uint32_t n_tokens, uint64_t seq_end, uint8_t *classes)
{
	for (uint32_t i = 0; i < n_tokens; i++) {
		uint64_t at = position + i;

		/* A sink stays one for ever, so it wins over the window, which moves on. */
		if (at < p->sink_tokens)
			classes[i] = TOKEN_SINK;
		else if (seq_end - at <= p->window_tokens)
			classes[i] = TOKEN_WINDOW;
		else
			classes[i] = TOKEN_PLAIN;
	}
}
