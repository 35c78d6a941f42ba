#include "policy/policy.h"

void policy_init(struct policy *p)
{
	*p = (struct policy){.version = 1,
		.mode = POLICY_RATIO,
		.ratio = 16,
		.target_error = 0.1,
		/* A token that has lost half of itself is no good: a transform that does not fit what comes
		 * shows here first. */
		.max_error = 0.5,
		.pressure_from = 0.7,
		.pressure_ratio = 40,
		.pressure_rate = 100,
		.rate_window = 64,
		.sink_tokens = 4,
		.window_tokens = 128,
		.window_settle = 1,
		.sink_search = 1,
		.sink_budget = 0.01,
		.sink_multiple = 5,
		.sink_unusual = 4,
		.sink_keep = 0.5,
		/* Records that are looked up later lose half as much or less, other text hardly more:
		 * docs/policy.md has the measurement. */
		.class_by = POLICY_BY_FIT,
		.salient_share = 0.2,
		.salient_finer = 1,
		.redundant_coarser = 1,
		.shadow_seconds = 60,
		.attention_share = 0.01};
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

const char *token_class_name(uint8_t token_class)
{
	static const char *const names[] = {"plain", "sink", "window", "exact", "salient", "redundant"};

	return token_class < sizeof names / sizeof *names ? names[token_class] : "?";
}
