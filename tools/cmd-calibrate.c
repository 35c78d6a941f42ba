#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cblas.h>

#include "base/file.h"
#include "tools/calibration.h"
#include "tools/cistern.h"

static const char usage[] =
	"Usage: cistern calibrate --out FILE [options] CAPTURE...\n"
	"\n"
	"Learns a transform from captured KV and writes it to FILE, a .safetensors file. A capture is one "
	"sequence: a\n"
	".safetensors file as an engine writes it, or numpy's arrays: one [layers, 2, tokens, heads, dim], "
	"or X.k.npy\n"
	"and X.v.npy, each [layers, tokens, heads, dim] (name the first). A folder stands for all captures "
	"in it.\n"
	"\n"
	"  -o, --out FILE            where the transform goes\n"
	"      --note TEXT           kept in the file\n"
	"      --layers-per-group N  layers that are decorrelated together (default: as many as have up to "
	"2048\n"
	"                            features)\n"
	"      --skip N              leave out positions below N, the attention sinks (default: 4)\n"
	"      --json                the report as a JSON object\n"
	"\n"
	"What numpy's arrays do not say:\n"
	"      --model NAME          the model's name, as the engine registers it\n"
	"      --rope KIND           how keys were rotated: none, half or interleaved (default: none)\n"
	"      --theta X             base of the rotation's frequencies (default: 10000)\n"
	"      --rope-dim N          rotated features of a head (default: all, from --rope-offset on)\n"
	"      --rope-offset N       the first of them (default: 0)\n"
	"      --rope-scale X        factor on cos and sin (default: 1)\n"
	"      --first-position N    position of the first token (default: 0)\n"
	"\n"
	"Exit status: 0 done, 1 failed, 2 wrong usage.\n";

struct arguments {
	struct calibration_options options;
	const char *out;
	int json;
};

static int parse_natural(const char *text, uint64_t max, uint64_t *out)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || end == text || *end || text[0] < '0' || text[0] > '9' || value > max)
		return -EINVAL;
	*out = value;
	return 0;
}

static int parse_u32(const char *text, uint32_t *out)
{
	uint64_t value;

	if (parse_natural(text, UINT32_MAX, &value) < 0)
		return -EINVAL;
	*out = (uint32_t)value;
	return 0;
}

static int parse_positive(const char *text, double *out)
{
	double value;
	char *end;

	value = strtod(text, &end);
	if (end == text || *end || !isfinite(value) || value <= 0)
		return -EINVAL;
	*out = value;
	return 0;
}

static int parse_rope(const char *text, uint32_t *out)
{
	static const char *const names[] = {"none", "half", "interleaved"};

	for (uint32_t i = 0; i < 3; i++) {
		if (strcmp(text, names[i]) == 0) {
			*out = i;
			return 0;
		}
	}
	return -EINVAL;
}

enum {
	OPTION_NOTE = 256,
	OPTION_LAYERS,
	OPTION_SKIP,
	OPTION_JSON,
	OPTION_MODEL,
	OPTION_ROPE,
	OPTION_THETA,
	OPTION_ROPE_DIM,
	OPTION_ROPE_OFFSET,
	OPTION_ROPE_SCALE,
	OPTION_FIRST_POSITION,
};

static const struct option options[] = {
	{"out", required_argument, NULL, 'o'},
	{"note", required_argument, NULL, OPTION_NOTE},
	{"layers-per-group", required_argument, NULL, OPTION_LAYERS},
	{"skip", required_argument, NULL, OPTION_SKIP},
	{"json", no_argument, NULL, OPTION_JSON},
	{"model", required_argument, NULL, OPTION_MODEL},
	{"rope", required_argument, NULL, OPTION_ROPE},
	{"theta", required_argument, NULL, OPTION_THETA},
	{"rope-dim", required_argument, NULL, OPTION_ROPE_DIM},
	{"rope-offset", required_argument, NULL, OPTION_ROPE_OFFSET},
	{"rope-scale", required_argument, NULL, OPTION_ROPE_SCALE},
	{"first-position", required_argument, NULL, OPTION_FIRST_POSITION},
	{"help", no_argument, NULL, 'h'},
	{0},
};

static int take_option(struct arguments *a, int option, const char *value)
{
	struct calibration_options *o = &a->options;
	double scale;
	int r = 0;

	switch (option) {
	case 'o': a->out = value; break;
	case OPTION_NOTE: o->note = value; break;
	case OPTION_LAYERS: r = parse_u32(value, &o->calibrate.layers_per_group); break;
	case OPTION_SKIP: r = parse_natural(value, UINT64_MAX, &o->skip_positions); break;
	case OPTION_JSON: a->json = 1; break;
	case OPTION_MODEL: o->capture.model = value; break;
	case OPTION_ROPE: r = parse_rope(value, &o->capture.rope_kind); break;
	case OPTION_THETA: r = parse_positive(value, &o->capture.theta); break;
	case OPTION_ROPE_DIM: r = parse_u32(value, &o->capture.rope_dim); break;
	case OPTION_ROPE_OFFSET: r = parse_u32(value, &o->capture.rope_offset); break;
	case OPTION_ROPE_SCALE:
		r = parse_positive(value, &scale);
		if (r == 0)
			o->capture.rope_scale = (float)scale;
		break;
	case OPTION_FIRST_POSITION: r = parse_natural(value, INT64_MAX, &o->capture.first_position); break;
	default: return -EINVAL; /* getopt has said what is wrong */
	}
	if (r < 0)
		fprintf(stderr, "cistern calibrate: not a value for this option: %s\n", value);
	return r;
}

static const char *plane_name(uint32_t plane)
{
	return plane ? "v" : "k";
}

static json_t *report_json(const struct arguments *a, const struct calibration *c)
{
	const struct calibrate_report *report = &c->report;
	json_t *planes = json_object(), *rungs = json_array();

	for (uint32_t plane = 0; plane < c->geometry.n_planes; plane++)
		json_object_set_new(planes, plane_name(plane),
			json_pack("{s:I, s:I, s:f}", "features", (json_int_t)report->n_features[plane],
				"components_99", (json_int_t)report->components_99[plane], "variance",
				report->variance[plane]));
	for (uint32_t i = 0; i < a->options.calibrate.n_rungs; i++) {
		json_t *components = json_object(), *errors = json_object();

		for (uint32_t plane = 0; plane < c->geometry.n_planes; plane++) {
			json_object_set_new(components, plane_name(plane),
				json_integer(report->rungs[i].components[plane]));
			json_object_set_new(
				errors, plane_name(plane), json_real(report->rungs[i].error[plane]));
		}
		json_array_append_new(rungs,
			json_pack("{s:f, s:f, s:o, s:o}", "ratio", (double)a->options.calibrate.rungs[i],
				"predicted_ratio", report->rungs[i].ratio, "predicted_error", errors,
				"components", components));
	}
	return json_pack("{s:s, s:s, s:I, s:I, s:b, s:I, s:o, s:o}", "model", c->geometry.name, "file",
		a->out, "bytes", (json_int_t)c->len, "tokens", (json_int_t)report->n_tokens, "held_out",
		report->held_out, "tokens_skipped", (json_int_t)c->n_skipped, "planes", planes, "rungs",
		rungs);
}

/* On one line: `cistern demo` reads its children line by line. */
static int print_line(json_t *object)
{
	int r = object && json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6)) == 0 ? 0 : -EIO;

	if (r == 0)
		putchar('\n');
	json_decref(object);
	return r;
}

static void report_text(const struct arguments *a, const struct calibration *c)
{
	const struct calibrate_report *report = &c->report;

	printf("%s: %llu tokens, %llu skipped\n", c->geometry.name, (unsigned long long)report->n_tokens,
		(unsigned long long)c->n_skipped);
	if (!report->held_out)
		puts("too few tokens to hold any out: expect larger errors than predicted");
	for (uint32_t plane = 0; plane < c->geometry.n_planes; plane++)
		printf("%s: 99%% of the variance in %u components of %u\n", plane_name(plane),
			report->components_99[plane], report->n_features[plane]);
	puts("\nratio  predicted       relative error k, v      components k, v");
	for (uint32_t i = 0; i < a->options.calibrate.n_rungs; i++)
		printf("%5g  %9.2f  %15.4f %8.4f  %14u %6u\n", (double)a->options.calibrate.rungs[i],
			report->rungs[i].ratio, report->rungs[i].error[0], report->rungs[i].error[1],
			report->rungs[i].components[0], report->rungs[i].components[1]);
	printf("\n%s: %zu bytes\n", a->out, c->len);
}

/* The captures of all arguments, folders opened. */
struct list {
	size_t n;
	char **paths;
};

static void list_fini(struct list *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->paths[i]);
	free(l->paths);
}

/* Takes path, which may be NULL: no memory. */
static int list_add(struct list *l, char *path)
{
	char **more = path ? realloc(l->paths, (l->n + 1) * sizeof *more) : NULL;

	if (!more) {
		free(path);
		return -ENOMEM;
	}
	l->paths = more;
	l->paths[l->n++] = path;
	return 0;
}

static int ends_with(const char *name, const char *end)
{
	size_t n = strlen(name), m = strlen(end);

	return n > m && strcmp(name + n - m, end) == 0;
}

/* X.v.npy comes with its X.k.npy. */
static int is_capture(const struct dirent *entry)
{
	return ends_with(entry->d_name, ".safetensors") ||
	       (ends_with(entry->d_name, ".npy") && !ends_with(entry->d_name, ".v.npy"));
}

static int list_add_folder(struct list *l, const char *folder)
{
	struct dirent **entries;
	int n = scandir(folder, &entries, is_capture, alphasort), r = 0;

	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++) {
		char *path = NULL;

		if (asprintf(&path, "%s/%s", folder, entries[i]->d_name) < 0)
			path = NULL;
		if (r == 0)
			r = list_add(l, path);
		else
			free(path);
		free(entries[i]);
	}
	free(entries);
	return r == 0 && n == 0 ? -ENOENT : r;
}

static int list_init(struct list *l, char *const *arguments, int n)
{
	*l = (struct list){0};
	for (int i = 0; i < n; i++) {
		struct stat st = {0};
		int r = stat(arguments[i], &st) < 0 ? -errno
			: S_ISDIR(st.st_mode)       ? list_add_folder(l, arguments[i])
						    : list_add(l, strdup(arguments[i]));

		if (r < 0) {
			fprintf(stderr, "cistern calibrate: %s: %s\n", arguments[i],
				r == -ENOENT && S_ISDIR(st.st_mode) ? "no captures in this folder"
								    : strerror(-r));
			return r;
		}
	}
	return 0;
}

static int learn(const struct arguments *a, const struct list *captures)
{
	struct calibration c;
	char why[400] = "";
	int r;

	/* One thread, so that the same captures give the same file. */
	openblas_set_num_threads(1);
	r = calibration_run(kernels_cpu(), &a->options, captures->paths, captures->n, &c, why, sizeof why);
	if (r < 0) {
		fprintf(stderr, "cistern calibrate: %s\n", why[0] ? why : strerror(-r));
		return r;
	}
	r = file_write(a->out, c.data, c.len);
	if (r < 0)
		fprintf(stderr, "cistern calibrate: %s: %s\n", a->out, strerror(-r));
	else if (a->json)
		r = print_line(report_json(a, &c));
	else
		report_text(a, &c);
	free(c.data);
	return r;
}

int cmd_calibrate(int argc, char **argv)
{
	struct arguments a = {0};
	struct list captures;
	int option, r;

	calibration_options_init(&a.options);
	a.options.capture.theta = 10000;
	while ((option = getopt_long(argc, argv, "o:h", options, NULL)) != -1) {
		if (option == 'h') {
			fputs(usage, stdout);
			return EXIT_SUCCESS;
		}
		if (take_option(&a, option, optarg) < 0)
			return EXIT_USAGE;
	}
	if (!a.out || optind == argc) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	r = list_init(&captures, argv + optind, argc - optind);
	if (r == 0)
		r = learn(&a, &captures);
	list_fini(&captures);
	return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
