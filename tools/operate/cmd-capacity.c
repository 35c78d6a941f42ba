/* cistern plan capacity: how much fits, and how often it will be there. */
#include <ctype.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "tools/cistern.h"
#include "tools/operate/ask.h"
#include "tools/operate/capacity.h"
#include "tools/plan.h"

static const char usage[] =
	"Usage: cistern plan capacity [options]\n"
	"\n"
	"How many sessions a pool and a store hold at each rung, and how often the next one will be there.\n"
	"\n"
	"      --model NAME         Llama-3.1-8B (default) or Llama-3.3-70B; or instead\n"
	"      --layers N --kv-heads N --dim N\n"
	"      --pool SIZE          memory for the pool (default: 64G)\n"
	"      --store SIZE         disk for the store (default: 2T; 0: none)\n"
	"      --sessions N         sessions that go on in turns (default: 1000)\n"
	"      --turns N            turns of each (default: 8)\n"
	"      --turn-tokens N      new tokens a turn, question and answer (default: 1000)\n"
	"      --kept N             tokens kept whole, sinks and window (default: 132)\n"
	"      --json               one JSON object\n"
	"\n"
	"Sessions take turns by chance, all alike; then the share of them that lies in a tier is the chance "
	"to find\n"
	"the next one there: hit = min(1, tier / (sessions x mean session)). Before turn k a session has (k "
	"- 1) x\n"
	"turn-tokens tokens, on average (turns - 1) / 2 x turn-tokens; of them --kept take all their bytes "
	"and the\n"
	"others 1 / rung. The store holds what the pool holds too. Of all prompt tokens (turns - 1) / (turns "
	"+ 1) can be\n"
	"there at all. Some sessions more alive than others do better than this, long pauses in step do "
	"worse.\n";

static const double rungs[] = {1, 2, 4, 6, 8, 12, 16, 20, 32, 40};
enum { RUNGS = sizeof rungs / sizeof *rungs };

struct arguments {
	struct capacity_load load;
	struct plan_model model;
	bool json;
};

/* A size with K, M, G or T, or (units false) a plain number; from min on. */
static bool parse(const char *option, const char *text, bool units, double min, double *out)
{
	static const char letters[] = "KMGT";
	char *end;
	double value = strtod(text, &end);
	const char *letter = *end ? strchr(letters, toupper((unsigned char)*end)) : NULL;

	if (units && letter) {
		value *= pow(1024, (double)(letter - letters + 1));
		end++;
	}
	if (end == text || *end || !(value >= min) || value > 1e18) {
		fprintf(stderr, "cistern plan capacity: --%s %s: not a %s from %g on\n", option, text,
			units ? "size" : "number", min);
		return false;
	}
	*out = value;
	return true;
}

static bool parse_u32(const char *option, const char *text, uint32_t *out)
{
	double value;

	if (!parse(option, text, false, 1, &value) || value > 100000 || value != floor(value))
		return false;
	*out = (uint32_t)value;
	return true;
}

static bool find_model(const char *name, struct plan_model *out)
{
	for (const struct plan_model *m = plan_models; m->name; m++)
		if (!strcasecmp(m->name, name)) {
			*out = *m;
			return true;
		}
	fprintf(stderr, "cistern plan capacity: no such model: %s\n", name);
	return false;
}

static bool take_option(struct arguments *a, int option, const char *name, const char *value)
{
	switch (option) {
	case 'm': return find_model(value, &a->model);
	case 'l': return parse_u32(name, value, &a->model.n_layers);
	case 'H': return parse_u32(name, value, &a->model.n_kv_heads);
	case 'd': return parse_u32(name, value, &a->model.head_dim);
	case 'p': return parse(name, value, true, 1 << 20, &a->load.pool_bytes);
	case 's': return parse(name, value, true, 0, &a->load.store_bytes);
	case 'n': return parse(name, value, false, 1, &a->load.n_sessions);
	case 't': return parse(name, value, false, 2, &a->load.n_turns);
	case 'T': return parse(name, value, false, 1, &a->load.turn_tokens);
	case 'k': return parse(name, value, false, 0, &a->load.kept_tokens);
	case 'j': a->json = true; return true;
	default: return false;
	}
}

static void print_table(const struct arguments *a)
{
	const struct capacity_load *l = &a->load;
	char token[32], pool[32], store[32], session[32];

	printf("%u layers, %u KV heads, dim %u: %s a token in 16 bits. Pool %s, store %s.\n",
		a->model.n_layers, a->model.n_kv_heads, a->model.head_dim, ask_bytes(l->token_bytes, token),
		ask_bytes(l->pool_bytes, pool), ask_bytes(l->store_bytes, store));
	printf("%.0f sessions of %.0f turns, %.0f tokens a turn: %.0f tokens in the mean session, %.0f of "
	       "them kept "
	       "whole.\n\n",
		l->n_sessions, l->n_turns, l->turn_tokens, l->turn_tokens * (l->n_turns - 1) / 2,
		fmin(l->kept_tokens, l->turn_tokens * (l->n_turns - 1) / 2));
	puts(" rung  total   a session   fit in pool   in store   hit in pool   hit   prompt tokens found");
	for (int i = 0; i < RUNGS; i++) {
		struct capacity c;

		capacity_at(l, rungs[i], &c);
		printf("%4.0fx %5.1fx  %10s  %12.0f  %9.0f  %11.1f%%  %3.0f%%  %19.0f%%\n", c.ratio,
			c.total_ratio, ask_bytes(c.session_bytes, session), c.pool_sessions, c.store_sessions,
			100 * c.pool_hit, 100 * c.hit, 100 * c.token_hit);
	}
}

static void print_object(const struct arguments *a)
{
	json_t *array = json_array();

	for (int i = 0; i < RUNGS; i++) {
		struct capacity c;

		capacity_at(&a->load, rungs[i], &c);
		json_array_append_new(
			array, json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "rung", c.ratio,
				       "total_ratio", c.total_ratio, "session_bytes", c.session_bytes,
				       "pool_sessions", c.pool_sessions, "store_sessions", c.store_sessions,
				       "pool_hit", c.pool_hit, "hit", c.hit, "token_hit", c.token_hit));
	}
	print_json(json_pack("{s:f, s:o}", "token_bytes", a->load.token_bytes, "rungs", array));
}

int cmd_plan_capacity(int argc, char **argv)
{
	static const struct option options[] = {{"model", required_argument, NULL, 'm'},
		{"layers", required_argument, NULL, 'l'}, {"kv-heads", required_argument, NULL, 'H'},
		{"dim", required_argument, NULL, 'd'}, {"pool", required_argument, NULL, 'p'},
		{"store", required_argument, NULL, 's'}, {"sessions", required_argument, NULL, 'n'},
		{"turns", required_argument, NULL, 't'}, {"turn-tokens", required_argument, NULL, 'T'},
		{"kept", required_argument, NULL, 'k'}, {"json", no_argument, NULL, 'j'},
		{"help", no_argument, NULL, 'h'}, {0}};
	struct arguments a = {.model = plan_models[0],
		.load = {.pool_bytes = 64.0 * (1ull << 30),
			.store_bytes = 2.0 * (1ull << 40),
			.n_sessions = 1000,
			.n_turns = 8,
			.turn_tokens = 1000,
			.kept_tokens = 132}};
	int option, which = 0;

	optind = 1;
	while ((option = getopt_long(argc, argv, "", options, &which)) != -1) {
		if (option == 'h') {
			fputs(usage, stdout);
			return EXIT_SUCCESS;
		}
		if (!take_option(&a, option, options[which].name, optarg)) {
			if (option == '?')
				fputs(usage, stderr);
			return EXIT_USAGE;
		}
	}
	if (optind != argc) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	a.load.token_bytes = 2.0 * 2 * a.model.n_layers * a.model.n_kv_heads * a.model.head_dim;
	if (a.json)
		print_object(&a);
	else
		print_table(&a);
	return EXIT_SUCCESS;
}
