#include "tools/bench-rate/results/report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char head[] =
	"codec            rung   ratio   total   error k   error v      attn        kl    nll %  "
	"recall     bits    bound  over\n";

static void print_row(const struct figures *f)
{
	printf("%-15s %5g %7.2f %7.2f %9.4f %9.4f %9.5f %9.6f %8.3f %7.4f %8.3f %8.3f %5.2f\n", f->codec,
		f->rung, f->ratio_coded, f->ratio_total, f->error[0], f->error[1], f->attn_error, f->kl,
		f->nll_delta_pct, f->recall, f->bits_per_value, f->bound_bits_per_value,
		f->bits_per_value / f->bound_bits_per_value);
}

static void print_answers(const struct rate_results *r, const char *codec)
{
	struct answer answers[ANSWERS_MAX];
	const size_t n = answers_of(r->points, r->n_points, codec, answers);

	printf("\n%s\n", codec);
	for (size_t i = 0; i < n; i++) {
		const struct answer *a = &answers[i];

		printf("  %-72s ", a->text);
		if (isfinite(a->value))
			printf("%9.4f", a->value);
		else
			printf("%9s", "(off)");
		if (isfinite(a->goal))
			printf("   goal %s %-5g %s", a->at_least ? ">=" : "<=", a->goal,
				!isfinite(a->value) ? "the curves do not reach"
				: answer_met(a)     ? "met"
						    : "NOT met");
		putchar('\n');
	}
}

void rate_table(const struct rate_results *r)
{
	const struct learning *l = r->learning;

	printf("%s: %u texts and %u recall prompts, %llu tokens cached, %llu next-token distributions of "
	       "text "
	       "compared\n",
		l->geometry.name, r->n_texts, r->n_recalls, (unsigned long long)r->prompt_tokens,
		(unsigned long long)r->text_tokens);
	printf("protected: the first %u and the last %u tokens of each prompt; calibrated on %llu tokens, "
	       "%zu "
	       "layer groups\n\n%s",
		r->sink_tokens, r->window_tokens, (unsigned long long)l->n_tokens, l->n_groups, head);
	for (size_t i = 0; i < r->n_points; i++) {
		if (i && strcmp(r->points[i].codec, r->points[i - 1].codec))
			putchar('\n');
		print_row(&r->points[i]);
	}
	printf("\nrecall of the original cache: %.4f; its loss: %.4f nats a token\n",
		r->points[0].recall_original, r->points[0].nll_original);
	for (size_t i = 0; r->codecs[i]; i++)
		print_answers(r, r->codecs[i]);
	if (r->n_unprotected)
		printf("\nAt the 16x rung, without protection of:\n%s", head);
	for (size_t i = 0; i < r->n_unprotected; i++) {
		struct figures f = r->unprotected[i].figures;
		char name[64];

		snprintf(name, sizeof name, "%.7s-%s", f.codec, r->unprotected[i].without);
		f.codec = name;
		print_row(&f);
	}
	printf("\n%.0f seconds\n", r->seconds);
}

/* JSON has no NAN. */
static json_t *number(double x)
{
	return isfinite(x) ? json_real(x) : json_null();
}

static json_t *figures_json(const struct figures *f)
{
	json_t *layers = json_array();

	for (uint32_t i = 0; i < f->n_layers; i++)
		json_array_append_new(layers, number(f->attn_error_layers[i]));
	return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, "
			 "s:o, s:o, s:o}",
		"codec", f->codec, "rung", f->rung, "ratio_coded", f->ratio_coded, "ratio_total",
		f->ratio_total, "error_k_p99", f->error_p99[0], "error_v_p99", f->error_p99[1], "error_k",
		number(f->error[0]), "error_v", number(f->error[1]), "attn_error", number(f->attn_error),
		"attn_error_recall", number(f->attn_error_recall), "attn_error_layers", layers, "kl",
		number(f->kl), "kl_recall", number(f->kl_recall), "nll_delta_pct", number(f->nll_delta_pct),
		"recall", number(f->recall), "recall_original", number(f->recall_original), "bits_per_value",
		number(f->bits_per_value), "bound_bits_per_value", number(f->bound_bits_per_value),
		"rate_over_bound", number(f->bits_per_value / f->bound_bits_per_value));
}

static json_t *answers_json(const struct rate_results *r, const char *codec)
{
	struct answer answers[ANSWERS_MAX];
	const size_t n = answers_of(r->points, r->n_points, codec, answers);
	json_t *object = json_object();

	for (size_t i = 0; i < n; i++)
		json_object_set_new(object, answers[i].key,
			json_pack("{s:s, s:o, s:o, s:s, s:o}", "text", answers[i].text, "value",
				number(answers[i].value), "goal", number(answers[i].goal), "sense",
				answers[i].at_least ? ">=" : "<=", "met",
				isfinite(answers[i].goal) ? json_boolean(answer_met(&answers[i]))
							  : json_null()));
	return object;
}

json_t *rate_json(const struct rate_results *r)
{
	json_t *points = json_array(), *summary = json_object(), *protection = json_array();

	for (size_t i = 0; i < r->n_points; i++)
		json_array_append_new(points, figures_json(&r->points[i]));
	for (size_t i = 0; r->codecs[i]; i++)
		json_object_set_new(summary, r->codecs[i], answers_json(r, r->codecs[i]));
	for (size_t i = 0; i < r->n_unprotected; i++) {
		json_t *object = figures_json(&r->unprotected[i].figures);

		json_object_set_new(object, "without", json_string(r->unprotected[i].without));
		json_array_append_new(protection, object);
	}
	return json_pack("{s:s, s:i, s:i, s:i, s:i, s:I, s:I, s:I, s:i, s:i, s:I, s:f, s:f, s:o, s:o, s:o}",
		"model", r->learning->geometry.name, "sink_tokens", (int)r->sink_tokens, "window_tokens",
		(int)r->window_tokens, "texts", (int)r->n_texts, "recalls", (int)r->n_recalls,
		"prompt_tokens", (json_int_t)r->prompt_tokens, "text_tokens", (json_int_t)r->text_tokens,
		"calibration_tokens", (json_int_t)r->learning->n_tokens, "layer_groups",
		(int)(r->learning->n_groups / r->learning->geometry.n_planes), "layers",
		(int)r->learning->geometry.n_layers, "transform_bytes",
		(json_int_t)r->learning->transform_bytes, "nll_original", r->points[0].nll_original,
		"seconds", r->seconds, "points", points, "protection", protection, "summary", summary);
}
