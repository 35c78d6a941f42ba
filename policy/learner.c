#include "policy/learner.h"

#include <math.h>

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void forget_energy(struct learner *l)
{
	l->inside = l->total = 0;
	l->n_window = 0;
	l->baseline = l->captured = -1;
}

/* Another version when there is enough for one that is clearly better, until there is enough for good. */
static void plan(struct learner *l, uint64_t n_rested)
{
	l->learn_at = n_rested < l->enough ? smaller(LEARNER_GROWTH * n_rested, l->enough) : UINT64_MAX;
	l->state = n_rested < l->enough ? LEARNER_COLLECTING : LEARNER_WATCHING;
}

void learner_init(struct learner *l, const struct learner_options *options, uint64_t n_rested)
{
	*l = (struct learner){.options = *options, .has_version = n_rested > 0};
	l->enough = LEARNER_ENOUGH * options->first_tokens;
	forget_energy(l);
	plan(l, n_rested);
	if (!n_rested)
		l->learn_at = options->first_tokens;
}

bool learner_offer(struct learner *l, uint32_t n_tokens)
{
	l->n_seen += n_tokens;
	if (!n_tokens || l->state == LEARNER_LEARNING)
		return false;
	if (l->state == LEARNER_COLLECTING && !l->blocked)
		return true;
	return l->n_offered++ % LEARNER_WATCH_EVERY == 0;
}

/* The old and the new count the same then: what comes may be a mixture. */
static void drift(struct learner *l)
{
	l->n_drifted++;
	l->fades = true;
	l->n_taken = smaller(l->n_taken, l->options.first_tokens);
	l->enough = l->n_taken + LEARNER_ENOUGH * l->options.first_tokens;
	l->learn_at = l->n_taken + l->options.first_tokens;
	l->state = LEARNER_COLLECTING;
	forget_energy(l);
}

void learner_take(struct learner *l, uint32_t n_tokens, double inside, double total)
{
	l->n_taken += n_tokens;
	if (!l->has_version || !(total > 0) || !isfinite(total))
		return;
	l->inside += inside;
	l->total += total;
	l->n_window += n_tokens;
	if (l->n_window < LEARNER_WINDOW_TOKENS)
		return;
	l->captured = l->inside / l->total;
	l->inside = l->total = 0;
	l->n_window = 0;
	if (l->baseline < 0)
		l->baseline = l->captured;
	else if (l->captured < l->baseline - l->options.drift && l->state != LEARNER_LEARNING && !l->fades)
		drift(l);
}

uint64_t learner_fade(struct learner *l)
{
	if (!l->fades)
		return 0;
	l->fades = false;
	return l->options.first_tokens;
}

bool learner_begin(struct learner *l, bool room)
{
	if (l->state != LEARNER_COLLECTING || l->n_taken < l->learn_at)
		return false;
	l->blocked = !room;
	if (room)
		l->state = LEARNER_LEARNING;
	return room;
}

void learner_learned(struct learner *l, bool published)
{
	if (!published) {
		l->state = LEARNER_COLLECTING;
		l->learn_at = l->n_taken + l->options.first_tokens;
		return;
	}
	l->n_learned++;
	l->has_version = true;
	forget_energy(l);
	plan(l, l->n_taken);
}
