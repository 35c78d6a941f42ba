#include "policy/rate.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* How much of a running figure the next chunk is. */
static const double FADE = 1.0 / 64;
static const double COST_FADE = 1.0 / 32;

/* What a rung was expected to cost counts as much as so many chunks. */
static const double PRIOR_CHUNKS = 4;

/* An error that was not measured is guessed from one that was: it grows about so with the ratio. */
static const double ERROR_GROWTH = 0.6;

int rate_init(struct rate *r, uint32_t window)
{
	*r = (struct rate){.size = window};
	r->window = calloc(window, sizeof *r->window);
	return r->window ? 0 : -ENOMEM;
}

void rate_fini(struct rate *r)
{
	free(r->window);
	r->window = NULL;
}

double rate_under_pressure(const struct policy *p, double fill)
{
	double part = (fill - p->pressure_from) / (1 - p->pressure_from);

	part = part < 0 ? 0 : part > 1 ? 1 : part;
	return p->ratio * pow(p->pressure_ratio / p->ratio, part);
}

static double target_of(const struct policy *p, double fill)
{
	if (p->mode == POLICY_FIDELITY)
		return p->target_error;
	return 1 / (p->mode == POLICY_PRESSURE ? rate_under_pressure(p, fill) : p->ratio);
}

/* A changed wish starts over: what was coded for the old one is not held against the new one. Pressure
 * changes its mind all the time, and has no window. */
static int follow(struct rate *r, const struct policy *p, double target)
{
	if (r->size != p->rate_window) {
		struct rate_chunk *window = calloc(p->rate_window, sizeof *window);

		if (!window)
			return -ENOMEM;
		free(r->window);
		r->window = window;
		r->size = p->rate_window;
		r->target = -1;
	}
	if (r->mode != p->mode) {
		memset(r->cost, 0, sizeof r->cost);
		memset(r->measured, 0, sizeof r->measured);
	}
	if (r->mode != p->mode || r->target != target) {
		r->n = r->next = 0;
		r->weight = r->sum = 0;
	}
	r->mode = p->mode;
	r->target = target;
	return 0;
}

/* What a rung costs, measured or guessed. */
static double cost_of(const struct rate *r, const struct transform *t, uint32_t rung)
{
	if (r->cost[rung] > 0)
		return (double)r->cost[rung];
	if (r->mode != POLICY_FIDELITY)
		return 1 / (double)t->rung_ratio[rung];
	for (uint32_t away = 1; away < t->n_rungs; away++)
		for (int side = -1; side <= 1; side += 2) {
			const int64_t other = (int64_t)rung + side * (int64_t)away;

			if (other >= 0 && other < t->n_rungs && r->cost[other] > 0)
				return (double)r->cost[other] *
				       pow((double)(t->rung_ratio[rung] / t->rung_ratio[other]),
					       ERROR_GROWTH);
		}
	return 0;
}

/* The rung nearest to the target from the costly side, and the one from the other side; the same where there
 * is none on one side. */
static void bracket(const struct rate *r, const struct transform *t, uint32_t *dear, uint32_t *cheap)
{
	const bool rising = r->mode == POLICY_FIDELITY; /* with the rung's number */

	*dear = rising ? t->n_rungs - 1 : 0;
	*cheap = rising ? 0 : t->n_rungs - 1;
	for (uint32_t i = 0; i < t->n_rungs; i++) {
		const uint32_t rung = rising ? t->n_rungs - 1 - i : i; /* from the dearest on */

		if (cost_of(r, t, rung) >= r->target) {
			*dear = rung;
		} else {
			*cheap = rung;
			break;
		}
	}
	if (cost_of(r, t, *dear) < r->target)
		*dear = *cheap;
	if (cost_of(r, t, *cheap) > r->target)
		*cheap = *dear;
}

static uint32_t pick(const struct rate *r, const struct transform *t, double ratio, double bytes)
{
	uint32_t dear, cheap;
	double dear_cost, cheap_cost;

	bracket(r, t, &dear, &cheap);
	dear_cost = cost_of(r, t, dear);
	cheap_cost = cost_of(r, t, cheap);
	if (dear_cost <= 0 || cheap_cost <= 0)
		/* Nothing is known of errors yet: begin where the ratio would have it. */
		return transform_rung(t, ratio);
	if (r->n < r->size / 2 ||
		fabs(r->sum - r->target * r->weight) <= RATE_CLOSE * r->target * r->weight) {
		if (fabs(dear_cost / r->target - 1) < RATE_CLOSE)
			return dear;
		if (fabs(cheap_cost / r->target - 1) < RATE_CLOSE)
			return cheap;
	}
	return r->sum + r->pending_sum + dear_cost * bytes <=
			       r->target * (r->weight + r->pending_weight + bytes)
		       ? dear
		       : cheap;
}

int rate_choose(struct rate *r, const struct policy *p, const struct transform *t, double bytes, double fill,
	struct rate_plan *plan)
{
	const double target = target_of(p, fill);
	int status = follow(r, p, target);

	if (status)
		return status;
	plan->rung = p->mode == POLICY_PRESSURE ? transform_rung(t, 1 / target) : pick(r, t, p->ratio, bytes);
	plan->weight = (float)bytes;
	plan->cost = (float)cost_of(r, t, plan->rung);
	r->pending_weight += (double)plan->weight;
	r->pending_sum += (double)plan->weight * (double)plan->cost;
	return 0;
}

static void add(struct rate *r, double weight, double cost)
{
	struct rate_chunk *c = &r->window[r->next];

	if (r->n == r->size) {
		r->weight -= (double)c->weight;
		r->sum -= (double)c->weight * (double)c->cost;
	} else {
		r->n++;
	}
	*c = (struct rate_chunk){(float)weight, (float)cost};
	r->weight += (double)c->weight;
	r->sum += (double)c->weight * (double)c->cost;
	r->next = (r->next + 1) % r->size;
}

static void measure(struct rate *r, const struct rate_plan *plan, double cost)
{
	const uint32_t n = r->measured[plan->rung]++;
	const double before = n ? (double)r->cost[plan->rung] : (double)plan->cost;
	const double fade = before > 0 ? fmax(COST_FADE, 1 / (n + PRIOR_CHUNKS + 1)) : 1;

	r->cost[plan->rung] = (float)(before + fade * (cost - before));
}

void rate_note(struct rate *r, const struct rate_plan *plan, double bytes, double coded_bytes, double error)
{
	double cost;

	r->pending_weight -= (double)plan->weight;
	r->pending_sum -= (double)plan->weight * (double)plan->cost;
	if (fabs(r->pending_weight) < 0.5)
		r->pending_weight = r->pending_sum = 0; /* roundings do not pile up */
	if (!(bytes > 0) || !(coded_bytes > 0))
		return;
	cost = r->mode == POLICY_FIDELITY ? error : coded_bytes / bytes;
	add(r, bytes, cost);
	measure(r, plan, cost);
	r->ratio += (r->n_chunks ? FADE : 1) * (bytes / coded_bytes - r->ratio);
	r->error += (r->n_chunks ? FADE : 1) * (error - r->error);
	r->n_chunks++;
}

double rate_achieved(const struct rate *r)
{
	if (!(r->weight > 0) || !(r->sum > 0))
		return 0;
	return r->mode == POLICY_FIDELITY ? r->sum / r->weight : r->weight / r->sum;
}

uint32_t rate_salient_rung(const struct policy *p, uint32_t rung)
{
	return rung > p->salient_finer ? rung - p->salient_finer : 0;
}

uint32_t rate_redundant_rung(const struct policy *p, const struct transform *t, uint32_t rung)
{
	const uint32_t wanted = rung + p->redundant_coarser;

	return wanted < t->n_rungs ? wanted : t->n_rungs - 1;
}
