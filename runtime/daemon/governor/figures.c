#include "runtime/daemon/governor/figures.h"

#include <math.h>

/* As the header has it, in f32. */
static bool passes(const struct policy *p, float error)
{
	return p->max_error > 0 && (double)error > p->max_error * 1.000001;
}

void figures_frame(struct figures *f, const struct policy *p, const struct frame_info *info)
{
	for (int i = 0; i < GEOMETRY_PLANES_MAX; i++) {
		f->error[i] += (f->n_chunks ? 1.0 / FIGURES_CHUNKS : 1) *
			       ((double)info->error[i].mean - f->error[i]);
		f->worst[i] = fmax(f->worst[i], (double)info->error[i].max);
		f->n_violations += passes(p, info->error[i].max);
	}
	f->n_chunks++;
	f->n_tokens += info->n_tokens;
	f->n_raw += info->n_raw;
}

void figures_remade(struct figures *f, const struct policy *p, const struct frame_info *before,
	const struct frame_info *info)
{
	for (int i = 0; i < GEOMETRY_PLANES_MAX; i++) {
		f->worst[i] = fmax(f->worst[i], (double)info->error[i].max);
		f->n_violations += info->error[i].max > before->error[i].max && passes(p, info->error[i].max);
	}
}

void figures_attention(struct figures *f, const struct attention_error *e)
{
	f->n_compared++;
	/* The mean of all until there are enough for a running one. */
	f->attention += fmax(1.0 / FIGURES_COMPARED, 1 / (double)f->n_compared) * (e->mean - f->attention);
	if (f->n_compared == 1 || e->worst > f->attention_worst) {
		f->attention_worst = e->worst;
		f->attention_layer = e->worst_layer;
		f->attention_head = e->worst_head;
	}
}

double figures_error(const struct figures *f)
{
	double error = 0;

	for (int i = 0; i < GEOMETRY_PLANES_MAX; i++)
		error = fmax(error, f->error[i]);
	return error;
}

void figures_review(
	struct figures *f, const struct policy *p, enum alarm_turn *error, enum alarm_turn *attention)
{
	*error = alarm_turn(
		&f->error_alarm, figures_error(f), p->alarm_error, f->n_chunks >= FIGURES_ALARM_CHUNKS);
	*attention = alarm_turn(&f->attention_alarm, f->attention, p->alarm_attention,
		f->n_compared >= FIGURES_ALARM_COMPARED);
}
