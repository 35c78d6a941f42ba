#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "tools/cistern.h"
#include "tools/plan.h"

static const char usage[] =
	"Usage: cistern plan [--json] [options]\n"
	"       cistern plan capacity [options]    what fits, and how often it will be there (see its "
	"--help)\n"
	"\n"
	"What a transform will cost: its bytes beside the model's parameters at 16 bits, and the arithmetic "
	"of\n"
	"decoding a token, each beside one transform over all layers (full cross-layer PCA).\n"
	"\n"
	"      --model NAME          one of the models below only\n"
	"      --layers N --kv-heads N --dim N --parameters N    another model\n"
	"      --layers-per-group N  layers that are decorrelated together (default: as many as have up to "
	"2048\n"
	"                            features, as cistern calibrate does)\n"
	"      --kept X              share of a group's components that the finest rung uses, which "
	"calibration\n"
	"                            decides (default: 1, 0.5 and 0.25)\n"
	"      --json                one JSON object\n"
	"\n"
	"Models known: Llama-3.1-8B, Llama-3.3-70B.\n";

/* Published for KVTC, arXiv 2511.01815, with Llama-3.3-70B. */
static const double SHARE_GOAL = 0.024;

struct arguments {
	bool json;
	const char *known;
	struct plan_model model;
	uint32_t layers_per_group;
	double kept; /* 0: several */
};

static int parse_natural(const char *text, uint64_t max, uint64_t *out)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || end == text || *end || *text == '-' || value < 1 || value > max) {
		fprintf(stderr, "cistern plan: not a number from 1 to %llu: %s\n", (unsigned long long)max,
			text);
		return -EINVAL;
	}
	*out = value;
	return 0;
}

static int parse_u32(const char *text, uint32_t max, uint32_t *out)
{
	uint64_t value;
	const int r = parse_natural(text, max, &value);

	if (r == 0)
		*out = (uint32_t)value;
	return r;
}

static int parse_share(const char *text, double *out)
{
	char *end;
	const double value = strtod(text, &end);

	if (end == text || *end || !(value > 0 && value <= 1)) {
		fprintf(stderr, "cistern plan: not a share over 0 and up to 1: %s\n", text);
		return -EINVAL;
	}
	*out = value;
	return 0;
}

static int take_option(struct arguments *a, int option, const char *value)
{
	switch (option) {
	case 'j': a->json = true; return 0;
	case 'm': a->known = value; return 0;
	case 'l': return parse_u32(value, 512, &a->model.n_layers);
	case 'H': return parse_u32(value, 1024, &a->model.n_kv_heads);
	case 'd': return parse_u32(value, 4096, &a->model.head_dim);
	case 'p': return parse_natural(value, 1000000000000000, &a->model.n_parameters);
	case 'g': return parse_u32(value, 512, &a->layers_per_group);
	case 'k': return parse_share(value, &a->kept);
	default: return -EINVAL;
	}
}

/* The models to plan for: all known ones, one of them, or the one described. */
static int choose(const struct arguments *a, const struct plan_model **first, size_t *n)
{
	const bool described =
		a->model.n_layers || a->model.n_kv_heads || a->model.head_dim || a->model.n_parameters;

	*first = plan_models;
	*n = 0;
	if (described) {
		*first = &a->model;
		*n = 1;
		if (a->known || !a->model.n_layers || !a->model.n_kv_heads || !a->model.head_dim ||
			!a->model.n_parameters) {
			fprintf(stderr, "cistern plan: another model wants --layers, --kv-heads, --dim and "
					"--parameters, and no --model\n");
			return -EINVAL;
		}
		return 0;
	}
	for (const struct plan_model *m = plan_models; m->name; m++) {
		if (a->known && strcasecmp(a->known, m->name))
			continue;
		*first = a->known ? m : plan_models;
		(*n)++;
	}
	if (*n == 0)
		fprintf(stderr, "cistern plan: no such model: %s\n", a->known);
	return *n ? 0 : -EINVAL;
}

struct row {
	double kept;
	struct plan_cost grouped, full;
};

enum { ROWS_MAX = 4 };

/* The last row is the most that keeps to the goal. */
static size_t rows_of(
	const struct arguments *a, const struct plan_model *m, uint32_t layers, struct row *rows)
{
	static const double shares[] = {1, 0.5, 0.25};
	size_t n = 0;

	if (a->kept > 0)
		rows[n++].kept = a->kept;
	for (size_t i = 0; a->kept == 0 && i < sizeof shares / sizeof *shares; i++)
		rows[n++].kept = shares[i];
	rows[n++].kept = plan_kept_within(m, layers, SHARE_GOAL);
	for (size_t i = 0; i < n; i++) {
		plan_cost(m, layers, rows[i].kept, &rows[i].grouped);
		plan_cost(m, m->n_layers, rows[i].kept, &rows[i].full);
	}
	return n;
}

static void print_table(const struct arguments *a, const struct plan_model *m, uint32_t layers)
{
	struct row rows[ROWS_MAX];
	const size_t n = rows_of(a, m, layers, rows);

	printf("%s: %u layers, %u KV heads of %u, %.4g parameters; groups of %u layers, %u features\n",
		m->name, m->n_layers, m->n_kv_heads, m->head_dim, (double)m->n_parameters, layers,
		rows[0].grouped.group_features);
	printf("                 in groups                            over all layers\n"
	       "  kept     bytes   share  MFLOP/token      bytes   share  MFLOP/token\n");
	for (size_t i = 0; i < n; i++)
		printf("%6.3f %7.1f MB %6.2f%% %10.1f %9.1f MB %6.2f%% %10.1f%s\n", rows[i].kept,
			(double)rows[i].grouped.transform_bytes / 1e6, 100 * rows[i].grouped.share,
			rows[i].grouped.decode_flops / 1e6, (double)rows[i].full.transform_bytes / 1e6,
			100 * rows[i].full.share, rows[i].full.decode_flops / 1e6,
			i + 1 == n ? "   <- the most within 2.4%" : "");
	printf("decoding a token with all components takes %.2f%% of what computing it takes (2 FLOP a "
	       "parameter)\n\n",
		100 * rows[0].grouped.recompute_share / rows[0].kept);
}

static json_t *cost_json(const struct plan_cost *c)
{
	return json_pack("{s:i, s:i, s:I, s:I, s:f, s:f, s:f}", "groups", (int)c->n_groups, "group_features",
		(int)c->group_features, "components", (json_int_t)c->components, "transform_bytes",
		(json_int_t)c->transform_bytes, "share", c->share, "decode_flops", c->decode_flops,
		"recompute_share", c->recompute_share);
}

static json_t *model_json(const struct arguments *a, const struct plan_model *m, uint32_t layers)
{
	struct row rows[ROWS_MAX];
	const size_t n = rows_of(a, m, layers, rows);
	json_t *costs = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(
			costs, json_pack("{s:f, s:o, s:o}", "kept", rows[i].kept, "grouped",
				       cost_json(&rows[i].grouped), "full", cost_json(&rows[i].full)));
	return json_pack("{s:s, s:i, s:i, s:i, s:I, s:i, s:f, s:f, s:o}", "model", m->name, "layers",
		(int)m->n_layers, "kv_heads", (int)m->n_kv_heads, "dim", (int)m->head_dim, "parameters",
		(json_int_t)m->n_parameters, "layers_per_group", (int)layers, "share_goal", SHARE_GOAL,
		"kept_within_goal", rows[n - 1].kept, "costs", costs);
}

int cmd_plan(int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"model", required_argument, NULL, 'm'}, {"layers", required_argument, NULL, 'l'},
		{"kv-heads", required_argument, NULL, 'H'}, {"dim", required_argument, NULL, 'd'},
		{"parameters", required_argument, NULL, 'p'},
		{"layers-per-group", required_argument, NULL, 'g'}, {"kept", required_argument, NULL, 'k'},
		{"help", no_argument, NULL, 'h'}, {0}};
	struct arguments a = {.model.name = "model"};
	const struct plan_model *first;
	json_t *models = json_array();
	size_t n;
	int option, r = 0;

	if (argc > 1 && !strcmp(argv[1], "capacity")) {
		json_decref(models);
		return cmd_plan_capacity(argc - 1, argv + 1);
	}
	while (r == 0 && (option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (option == 'h') {
			fputs(usage, stdout);
			json_decref(models);
			return EXIT_SUCCESS;
		}
		r = take_option(&a, option, optarg);
	}
	if (r == 0 && optind == argc)
		r = choose(&a, &first, &n);
	else
		r = -EINVAL;
	for (size_t i = 0; r == 0 && i < n; i++)
		if (a.layers_per_group > first[i].n_layers) {
			fprintf(stderr, "cistern plan: %s has %u layers\n", first[i].name, first[i].n_layers);
			r = -EINVAL;
		}
	if (r < 0) {
		fputs(usage, stderr);
		json_decref(models);
		return EXIT_USAGE;
	}
	for (size_t i = 0; i < n; i++) {
		const uint32_t layers =
			a.layers_per_group ? a.layers_per_group : plan_layers_per_group(&first[i]);

		if (a.json)
			json_array_append_new(models, model_json(&a, &first[i], layers));
		else
			print_table(&a, &first[i], layers);
	}
	if (a.json)
		print_json(json_pack("{s:o}", "models", models));
	else
		json_decref(models);
	return EXIT_SUCCESS;
}
