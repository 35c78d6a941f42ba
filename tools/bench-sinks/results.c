#include "tools/bench-sinks/results.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tools/bench.h"

/* ---- JSON ---- */

/* JSON has no NAN. */
static json_t *number_or_null(double x)
{
	return isnan(x) ? json_null() : json_real(x);
}

static double share(uint64_t part, uint64_t whole)
{
	return whole ? (double)part / (double)whole : NAN;
}

static json_t *reading_json(const struct search_tally *y, enum truth_reading reading)
{
	const struct search_count *c = &y->as_decided[reading];

	return json_pack("{s:I, s:I, s:o, s:o, s:o, s:o, s:o}", "sinks", (json_int_t)c->n_sinks, "others",
		(json_int_t)c->n_others, "recall", number_or_null(share(c->n_found, c->n_sinks)), "mistaken",
		number_or_null(share(c->n_mistaken, c->n_others)), "recall_at_2pct",
		number_or_null(search_recall_at(y, reading, 0.02)), "recall_at_1pct",
		number_or_null(search_recall_at(y, reading, 0.01)), "recall_at_half_pct",
		number_or_null(search_recall_at(y, reading, 0.005)));
}

static json_t *tally_json(const struct search_tally *y)
{
	json_t *o = json_pack("{s:I, s:I, s:I, s:o, s:o, s:o}", "tokens", (json_int_t)y->n, "planted",
		(json_int_t)y->n_planted, "planted_found", (json_int_t)y->n_planted_found,
		"planted_at_half_pct", number_or_null(search_planted_at(y, 0.005)), "planted_at_2pct",
		number_or_null(search_planted_at(y, 0.02)), "protected",
		number_or_null(share(y->n_protected, y->n)));

	for (int i = 0; i < TRUTH_READINGS && o; i++)
		json_object_set_new(
			o, truth_name((enum truth_reading)i), reading_json(y, (enum truth_reading)i));
	return o;
}

static json_t *found_json(const struct search_tally *tally)
{
	json_t *o = json_object();

	for (int way = 0; way < WAYS; way++)
		if (way_is_search((enum way)way))
			json_object_set_new(o, way_name((enum way)way), tally_json(&tally[way]));
	return o;
}

static json_t *worth_json(const struct worth *w, size_t codec, uint32_t n_layers, bool one_rung)
{
	json_t *rows = json_array();

	for (int at = one_rung; at < (one_rung ? 2 : WORTH_RUNGS); at++) {
		json_t *row = json_pack("{s:f}", "rung", worth_rungs[at]);

		for (int way = 0; way < WAYS; way++) {
			const struct evaluation *e = &w->evaluation[codec][at][way];

			if (worth_has((enum way)way))
				json_object_set_new(row, way_name((enum way)way),
					json_pack("{s:f, s:f, s:f}", "kl", e->kl / (double)e->n_tokens,
						"attention_error", evaluation_attention_error(e, 0, n_layers),
						"ratio", w->source_bytes / w->coded_bytes[codec][at][way]));
		}
		json_array_append_new(rows, row);
	}
	return rows;
}

static json_t *construction_json(const struct sinks_results *r, const struct construction_result *c)
{
	double *attention = c->attention;
	json_t *o = json_pack("{s:s, s:s, s:i, s:o, s:o}", "name", c->construction->name, "what",
		c->construction->what, "sequences", (int)c->n_sequences, "planted_multiple",
		number_or_null(c->n_attention ? bench_quantile(attention, c->n_attention, 0.5) : NAN),
		"found", found_json(c->tally));
	json_t *worth = json_object();

	for (size_t k = 0; k < r->n_codecs; k++)
		json_object_set_new(worth, r->codecs[k], worth_json(&c->worth, k, r->n_layers, r->one_rung));
	if (r->n_codecs)
		json_object_set_new(o, "worth", worth);
	else
		json_decref(worth);
	return o;
}

static json_t *heads_json(const struct sinks_results *r)
{
	json_t *layers = json_array();

	for (uint32_t l = 0; l < r->n_layers; l++) {
		json_t *heads = json_array();

		for (uint32_t h = 0; h < r->n_heads; h++)
			json_array_append_new(
				heads, json_integer((json_int_t)r->by_head[l * r->n_heads + h]));
		json_array_append_new(layers, heads);
	}
	return layers;
}

json_t *sinks_results_json(const struct sinks_results *r)
{
	const struct sinks_detector *d = r->search->learned;
	const struct policy *p = &r->search->policy;
	json_t *constructions = json_array();
	json_t *o = json_pack("{s:i, s:{s:I, s:f, s:f, s:f, s:f}, s:{s:f, s:f, s:f}, s:o, s:o}",
		"learned_from", (int)r->n_learned_from, "detector", "observed_tokens",
		(json_int_t)d->n_observed, "correlation", (double)d->correlation, "caught", (double)d->caught,
		"mistaken", (double)d->mistaken, "threshold", (double)d->threshold, "rules", "sink_budget",
		p->sink_budget, "sink_multiple", p->sink_multiple, "sink_unusual", p->sink_unusual, "found",
		found_json(r->text), "mean_sinks_by_layer_and_head", heads_json(r));

	for (size_t i = 0; i < r->n_constructions; i++)
		json_array_append_new(constructions, construction_json(r, &r->constructions[i]));
	json_object_set_new(o, "constructions", constructions);
	if (r->encode_us > 0)
		json_object_set_new(o, "cost",
			json_pack("{s:f, s:f, s:f}", "search_us", r->search_us, "encode_us", r->encode_us,
				"share", r->search_us / r->encode_us));
	return o;
}

/* ---- text ---- */

static double number(const json_t *o, const char *key)
{
	const json_t *value = json_object_get(o, key);

	return json_is_number(value) ? json_number_value(value) : NAN;
}

static void print_found(const json_t *found)
{
	static const char *const readings[] = {"mean", "half", "lasting"};
	const char *way;
	const json_t *tally;

	for (size_t i = 0; i < sizeof readings / sizeof *readings; i++) {
		printf("\n  %-14s %6s %9s %10s %13s %13s %15s\n", readings[i], "sinks", "recall", "mistaken",
			"recall at 2%", "recall at 1%", "recall at 0.5%");
		json_object_foreach((json_t *)found, way, tally)
		{
			const json_t *o = json_object_get(tally, readings[i]);

			printf("  %-14s %6.0f %9.3f %9.2f%% %13.3f %13.3f %15.3f\n", way, number(o, "sinks"),
				number(o, "recall"), 100 * number(o, "mistaken"), number(o, "recall_at_2pct"),
				number(o, "recall_at_1pct"), number(o, "recall_at_half_pct"));
		}
	}
	printf("\n  %-14s %10s %8s\n", "", "protected", "planted");
	json_object_foreach((json_t *)found, way, tally) printf("  %-14s %9.2f%% %3.0f of %.0f\n", way,
		100 * number(tally, "protected"), number(tally, "planted_found"), number(tally, "planted"));
}

static void print_worth(const char *codec, const json_t *rows)
{
	const json_t *row;
	size_t i;

	json_array_foreach(rows, i, row)
	{
		const char *way;
		const json_t *o;

		if (i == 0) {
			printf("  %-16s", codec);
			json_object_foreach((json_t *)row, way, o) if (json_is_object(o))
				printf(" %16s", way);
			putchar('\n');
		}
		printf("  %15.0fx", number(row, "rung"));
		json_object_foreach((json_t *)row, way, o) if (json_is_object(o))
			printf(" %8.6f (%5.2f)", number(o, "kl"), number(o, "ratio"));
		putchar('\n');
	}
}

static void print_construction(const json_t *c)
{
	const json_t *found = json_object_get(c, "found"), *tally, *rows;
	const char *way, *codec;

	printf("\n%s: %s\n", json_string_value(json_object_get(c, "name")),
		json_string_value(json_object_get(c, "what")));
	if (!isnan(number(c, "planted_multiple"))) {
		printf("  planted tokens get %.0f times the uniform share of what follows (median); found:",
			number(c, "planted_multiple"));
		json_object_foreach((json_t *)found, way, tally) printf(
			" %s %.0f of %.0f", way, number(tally, "planted_found"), number(tally, "planted"));
		putchar('\n');
	}
	json_object_foreach((json_t *)json_object_get(c, "worth"), codec, rows) print_worth(codec, rows);
}

void sinks_results_print(const json_t *results)
{
	const json_t *cost = json_object_get(results, "cost"), *c;
	size_t i;

	printf("Tokens that get 10 times the uniform share of attention in some head. mean: on average over "
	       "the chunk\n"
	       "that follows theirs; half: from at least half of its queries; lasting: on average over every "
	       "chunk that\n"
	       "follows, in the same head. recall, mistaken: as decided; at 2%%: of the sinks, those that "
	       "score above all\n"
	       "but 2%% of the other tokens. The first 4 positions are left out.\n");
	print_found(json_object_get(results, "found"));
	printf("\n  cold: no attention was ever seen; learned: none of this text; observed: every sixteenth "
	       "query of each\n"
	       "  chunk was shown; observed_last: the last sixteen.\n\n"
	       "KL divergence of what follows, nats (ratio in all):\n");
	json_array_foreach(json_object_get(results, "constructions"), i, c) print_construction(c);
	if (cost)
		printf("\nSearch %.1f us a chunk, encoding %.1f us: %.1f%%\n", number(cost, "search_us"),
			number(cost, "encode_us"), 100 * number(cost, "share"));
}
