/* cistern policy simulate: what a policy would do to captured KV, to be tried before it is set. */
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "policy/fields.h"
#include "tools/cistern.h"
#include "tools/simulate.h"

static const char usage[] =
	"Usage: cistern policy simulate --capture FILE|FOLDER... [--transform FILE] [--set FIELD=VALUE]...\n"
	"                               [--fill SHARE] [--json]\n"
	"\n"
	"Runs a policy over captured KV without a daemon, and says what it would protect, the ratio and the "
	"error.\n"
	"The policy is the default one but for what is set; \"preset=NAME\" sets several fields.\n"
	"\n"
	"  --capture PATH    .safetensors captures, or folders of them; may be given several times\n"
	"  --transform FILE  made by \"cistern calibrate\"; without one, the plain 8-bit codec\n"
	"  --set FIELD=VALUE as in \"cistern policy set\"\n"
	"  --fill SHARE      how full the pool is, 0 to 1, for mode=pressure (default 0)\n";

enum { PATHS_MAX = 4096 };

struct call {
	struct policy policy;
	char *paths[PATHS_MAX];
	size_t n_paths;
	struct transform *transform;
	double fill;
	bool json;
};

static int complain(const char *what)
{
	fprintf(stderr, "cistern policy simulate: %s\n", what);
	return EXIT_FAILURE;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int add_path(struct call *c, const char *path)
{
	DIR *folder = opendir(path);
	const struct dirent *entry;
	const size_t first = c->n_paths;

	if (!folder) {
		if (c->n_paths == PATHS_MAX)
			return -E2BIG;
		c->paths[c->n_paths] = strdup(path);
		return c->paths[c->n_paths++] ? 0 : -ENOMEM;
	}
	while ((entry = readdir(folder))) {
		const size_t len = strlen(entry->d_name);

		if (len < 12 || strcmp(entry->d_name + len - 12, ".safetensors") || c->n_paths == PATHS_MAX)
			continue;
		if (asprintf(&c->paths[c->n_paths], "%s/%s", path, entry->d_name) >= 0)
			c->n_paths++;
	}
	closedir(folder);
	qsort(c->paths + first, c->n_paths - first, sizeof *c->paths, by_name);
	return c->n_paths == first ? -ENOENT : 0;
}

static int set_field(struct call *c, char *assignment, char *why, size_t why_len)
{
	char *equals = strchr(assignment, '=');
	int preset;

	if (!equals) {
		snprintf(why, why_len, "\"%s\" is not FIELD=VALUE", assignment);
		return -EINVAL;
	}
	*equals = 0;
	if (strcmp(assignment, "preset"))
		return policy_set(&c->policy, assignment, equals + 1, why, why_len);
	preset = policy_preset_of(equals + 1);
	if (preset < 0) {
		snprintf(why, why_len, "preset: \"%s\" is none of archival, balanced, compact", equals + 1);
		return -EINVAL;
	}
	policy_apply_preset(&c->policy, (enum policy_preset)preset);
	return 0;
}

static int load_transform(struct call *c, const char *path, char *why, size_t why_len)
{
	void *data;
	size_t len;
	int r = file_read(path, &data, &len);

	if (r) {
		snprintf(why, why_len, "%s: %s", path, strerror(-r));
		return r;
	}
	r = transform_parse(data, len, &c->transform, why, why_len);
	free(data);
	return r;
}

static double share(double part, double whole)
{
	return whole > 0 ? part / whole : 0;
}

static void print_json_result(const struct call *c, const struct simulation *s)
{
	json_t *classes = json_object(), *rungs = json_array(), *o;

	for (uint8_t i = 0; i < SIMULATE_CLASSES; i++)
		json_object_set_new(classes, token_class_name(i), json_integer((json_int_t)s->n_class[i]));
	for (uint32_t i = 0; c->transform && i < c->transform->n_rungs; i++)
		json_array_append_new(
			rungs, json_pack("{s:f, s:I}", "ratio", (double)c->transform->rung_ratio[i], "chunks",
				       (json_int_t)s->n_rung[i]));
	o = json_pack("{s:I, s:I, s:o, s:I, s:f, s:f, s:[f, f], s:[f, f], s:f, s:o}", "chunks",
		(json_int_t)s->n_chunks, "tokens", (json_int_t)s->n_tokens, "classes", classes, "sinks_found",
		(json_int_t)s->n_found, "ratio", share(s->raw_bytes, s->frame_bytes), "coded_ratio",
		share(s->coded_raw_bytes, s->coded_bytes), "mean_error", s->error[0], s->error[1],
		"worst_error", s->worst[0], s->worst[1], "achieved", s->achieved, "rungs", rungs);
	print_json(o);
}

static void print_result(const struct call *c, const struct simulation *s)
{
	printf("%llu tokens in %llu chunks\n", (unsigned long long)s->n_tokens,
		(unsigned long long)s->n_chunks);
	for (uint8_t i = 0; i < SIMULATE_CLASSES; i++)
		if (s->n_class[i])
			printf("  %-10s %8llu  %5.2f%%\n", token_class_name(i),
				(unsigned long long)s->n_class[i],
				100 * share((double)s->n_class[i], (double)s->n_tokens));
	printf("sinks found beside the first ones: %llu\n", (unsigned long long)s->n_found);
	printf("ratio    %.2f of the coded tokens, %.2f in all\n", share(s->coded_raw_bytes, s->coded_bytes),
		share(s->raw_bytes, s->frame_bytes));
	printf("error    mean %.4f, %.4f (k, v), worst token %.4f, %.4f\n", s->error[0], s->error[1],
		s->worst[0], s->worst[1]);
	for (uint32_t i = 0; c->transform && i < c->transform->n_rungs; i++)
		if (s->n_rung[i])
			printf("rung %2.0fx %llu chunks\n", (double)c->transform->rung_ratio[i],
				(unsigned long long)s->n_rung[i]);
}

static int parse(struct call *c, int argc, char **argv, char *why, size_t why_len)
{
	static const struct option options[] = {{"capture", required_argument, NULL, 'c'},
		{"transform", required_argument, NULL, 't'}, {"set", required_argument, NULL, 's'},
		{"fill", required_argument, NULL, 'f'}, {"json", no_argument, NULL, 'j'},
		{"help", no_argument, NULL, 'h'}, {0}};
	int option, r = 0;
	char *end;

	optind = 1;
	while (!r && (option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 'c':
			r = add_path(c, optarg);
			if (r)
				snprintf(why, why_len, "%s: %s", optarg,
					r == -ENOENT ? "no captures there" : strerror(-r));
			break;
		case 't': r = load_transform(c, optarg, why, why_len); break;
		case 's': r = set_field(c, optarg, why, why_len); break;
		case 'f':
			c->fill = strtod(optarg, &end);
			if (*end || !(c->fill >= 0 && c->fill <= 1))
				return 1;
			break;
		case 'j': c->json = true; break;
		case 'h': fputs(usage, stdout); exit(EXIT_SUCCESS);
		default: return 1;
		}
	/* Captures may follow each other without the option. */
	for (; !r && optind < argc; optind++) {
		r = add_path(c, argv[optind]);
		if (r)
			snprintf(why, why_len, "%s: %s", argv[optind], strerror(-r));
	}
	return r ? r : c->n_paths ? policy_check(&c->policy, why, why_len) : 1;
}

int cmd_policy_simulate(int argc, char **argv)
{
	const struct capture_options options = {0};
	struct call *c = calloc(1, sizeof *c);
	struct simulation s;
	char why[400] = "";
	int r, status = EXIT_FAILURE;

	if (!c)
		return complain("out of memory");
	policy_init(&c->policy);
	r = parse(c, argc, argv, why, sizeof why);
	if (r > 0) {
		fputs(usage, stderr);
		status = EXIT_USAGE;
		goto out;
	}
	if (!r)
		r = simulate(kernels_cpu(), &c->policy, c->transform, c->fill, &options, c->paths, c->n_paths,
			&s, why, sizeof why);
	if (r) {
		complain(why);
		goto out;
	}
	if (c->json)
		print_json_result(c, &s);
	else
		print_result(c, &s);
	status = EXIT_SUCCESS;
out:
	for (size_t i = 0; i < c->n_paths; i++)
		free(c->paths[i]);
	transform_unref(c->transform);
	free(c);
	return status;
}
