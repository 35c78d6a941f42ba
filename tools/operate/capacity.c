#include "tools/operate/capacity.h"

#include <math.h>

void capacity_at(const struct capacity_load *load, double ratio, struct capacity *out)
{
	/* Before turn k a session has (k - 1) turns' tokens: on average half of what it ends with, less half
	 * a turn. */
	const double tokens = load->turn_tokens * (load->n_turns - 1) / 2;
	const double kept = fmin(tokens, load->kept_tokens);
	const double bytes = load->token_bytes * (kept + (tokens - kept) / ratio);
	const double live = bytes * load->n_sessions;
	const double held = fmax(load->pool_bytes, load->store_bytes);

	*out = (struct capacity){.ratio = ratio,
		.session_bytes = bytes,
		.total_ratio = bytes > 0 ? load->token_bytes * tokens / bytes : 0,
		.pool_sessions = bytes > 0 ? load->pool_bytes / bytes : INFINITY,
		.store_sessions = bytes > 0 ? load->store_bytes / bytes : INFINITY,
		.pool_hit = live > 0 ? fmin(1, load->pool_bytes / live) : 1,
		.hit = live > 0 ? fmin(1, held / live) : 1};
	/* Turn k asks for k turns' tokens, of which k - 1 may be there. */
	out->token_hit = out->hit * (load->n_turns - 1) / (load->n_turns + 1);
}
