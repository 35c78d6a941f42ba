#include "tools/calibration.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

enum {
	/* Of a part's chunks one in so many measures the quantiser, and so many of them at most. No power of
	 * two, as sequences often are one long. */
	MEASURE_EVERY = 7,
	MEASURE_CHUNKS_MAX = 16,
	/* Below so many rows the default table is better founded. */
	MEASURE_ROWS_MIN = 64,
	N_WIDTHS = ALLOCATE_BITS_MAX + 1,
};

/* What the rows of one width added up to. */
struct sums {
	double lost, energy, bits;
	uint64_t n_rows, n_values;
};

struct run {
	const struct kernels *kernels;
	const struct calibration_options *options;
	char *const *paths;
	size_t n_paths;
	struct geometry geometry;
	struct calibrate *calibrate;
	uint64_t n_skipped;
	uint32_t chunk_tokens;
	/* Room for one chunk of the widest part: */
	float *x, *c, *cos, *sin, *lost, *kept;
	uint16_t *tokens, *steps;
	uint8_t *packed, *deflated;
	size_t deflated_room;
	struct sums sums[N_WIDTHS];
	char *why;
	size_t why_len;
};

__attribute__((format(printf, 3, 4))) static int fail(struct run *run, int code, const char *format, ...)
{
	va_list args;

	if (run->why && run->why_len) {
		va_start(args, format);
		vsnprintf(run->why, run->why_len, format, args);
		va_end(args);
	}
	return code;
}

void calibration_options_init(struct calibration_options *o)
{
	*o = (struct calibration_options){.skip_positions = 4};
	calibrate_options_init(&o->calibrate);
}

/* Opens a capture and sees that it is of the same model as the first. */
static int open_capture(struct run *run, size_t i, struct capture **out)
{
	uint8_t want[16], got[16];
	char why[200] = "";
	int r = capture_open(run->paths[i], &run->options->capture, out, why, sizeof why);

	if (r < 0)
		return fail(run, r, "%s: %s", run->paths[i], why[0] ? why : strerror(-r));
	if (i == 0 && !run->calibrate) {
		run->geometry = (*out)->geometry;
		return 0;
	}
	geometry_fingerprint(&run->geometry, want);
	geometry_fingerprint(&(*out)->geometry, got);
	if (memcmp(want, got, sizeof want) == 0)
		return 0;
	*out = capture_free(*out);
	return fail(run, -EINVAL, "%s: not of the model that %s is of", run->paths[i], run->paths[0]);
}

static int make_room(struct run *run)
{
	size_t n = run->chunk_tokens, widest = 0;

	for (uint32_t i = 0; i < calibrate_n_parts(run->calibrate); i++) {
		struct transform_part part;

		calibrate_part(run->calibrate, i, &part);
		if (part.n_features > widest)
			widest = part.n_features;
	}
	run->x = malloc(n * widest * sizeof *run->x);
	run->c = malloc(n * widest * sizeof *run->c);
	run->cos = malloc(n * GEOMETRY_ROPE_MAX / 2 * sizeof *run->cos);
	run->sin = malloc(n * GEOMETRY_ROPE_MAX / 2 * sizeof *run->sin);
	run->lost = malloc(n * sizeof *run->lost);
	run->kept = malloc(n * sizeof *run->kept);
	run->tokens = malloc(n * sizeof *run->tokens);
	run->steps = malloc(widest * sizeof *run->steps);
	run->packed = malloc(n * widest);
	/* zlib's conservative bound for any parameters. */
	run->deflated_room = n * widest + n * widest / 8 + n * widest / 64 + 64;
	run->deflated = malloc(run->deflated_room);
	return run->x && run->c && run->cos && run->sin && run->lost && run->kept && run->tokens &&
			       run->steps && run->packed && run->deflated
		       ? 0
		       : -ENOMEM;
}

static void free_room(struct run *run)
{
	free(run->x);
	free(run->c);
	free(run->cos);
	free(run->sin);
	free(run->lost);
	free(run->kept);
	free(run->tokens);
	free(run->steps);
	free(run->packed);
	free(run->deflated);
}

/* Features of up to a chunk's tokens from first on: x [n, p]. *end gets where to go on. Returns n. */
static size_t gather(struct run *run, const struct capture *capture, const struct transform_part *part,
	const float *mean, uint32_t first, uint32_t *end)
{
	const struct plane *plane = &run->geometry.planes[part->plane];
	struct rope_table rope = {run->cos, run->sin};
	struct kv_run tokens = capture_run(capture, first);
	size_t n = 0, width = plane_width(plane), rope_pairs = plane->rope_dim / 2;
	uint32_t t = first;

	for (; t < capture->n_tokens && t - first < run->chunk_tokens; t++) {
		if (capture->positions[t] < run->options->skip_positions)
			continue;
		if (plane->rope_kind != ROPE_NONE)
			run->kernels->rope_fill(plane, &capture->positions[t], 1, run->cos + n * rope_pairs,
				run->sin + n * rope_pairs);
		run->tokens[n++] = (uint16_t)(t - first);
	}
	for (uint32_t layer = 0; layer < part->n_layers; layer++)
		run->kernels->gather(plane,
			&capture->pages[(part->first_layer + layer) * run->geometry.n_planes + part->plane],
			&tokens, run->tokens, n, plane->rope_kind != ROPE_NONE ? &rope : NULL,
			mean ? mean + layer * width : NULL, run->x + layer * width, part->n_features);
	*end = t;
	return n;
}

static int learn_part(struct run *run, uint32_t i)
{
	struct transform_part part;
	int r = 0;

	calibrate_part(run->calibrate, i, &part);
	for (size_t f = 0; f < run->n_paths && r == 0; f++) {
		struct capture *capture;
		uint32_t at = 0;

		r = open_capture(run, f, &capture);
		if (r < 0)
			return r;
		while (at < capture->n_tokens && r == 0) {
			uint32_t first = at;
			size_t n = gather(run, capture, &part, NULL, first, &at);

			run->n_skipped += i == 0 ? at - first - n : 0;
			r = calibrate_add(run->calibrate, i, run->x, part.n_features, n);
		}
		capture_free(capture);
	}
	if (r == 0)
		r = calibrate_learn(run->calibrate, i);
	if (r == -ENODATA)
		return fail(run, r, "fewer than two usable tokens in all captures");
	if (r == -EDOM)
		return fail(run, r, "the covariance of plane %u, layers from %u on, has no decomposition",
			part.plane, part.first_layer);
	return r;
}

/* Whether some rung gives this component so many bits. */
static int has_width(const struct transform *t, const struct transform_part *part, size_t row, unsigned bits)
{
	for (uint32_t rung = 0; rung < t->n_rungs; rung++)
		if (part->bits[rung * part->n_components + row] == bits)
			return 1;
	return 0;
}

/* Bytes that the codec's kind of stream takes: Huffman coding only, or as it is when that is less. */
static int deflated_bytes(struct run *run, size_t len, size_t *out)
{
	z_stream z = {.next_in = run->packed, .avail_in = (uInt)len, .next_out = run->deflated};
	int r;

	if (deflateInit2(&z, Z_BEST_SPEED, Z_DEFLATED, -15, 9, Z_HUFFMAN_ONLY) != Z_OK)
		return -ENOMEM;
	z.avail_out = (uInt)run->deflated_room;
	r = deflate(&z, Z_FINISH);
	*out = z.total_out < len ? z.total_out : len;
	deflateEnd(&z);
	return r == Z_STREAM_END ? 0 : -EIO;
}

/* Quantises the rows of a chunk's coefficients that some rung gives so many bits. */
static int measure_width(struct run *run, const struct transform *t, const struct transform_part *part,
	unsigned bits, size_t n)
{
	struct sums *sums = &run->sums[bits];
	size_t len = 0, deflated = 0, end;
	int r;

	memset(run->lost, 0, n * sizeof *run->lost);
	memset(run->kept, 0, n * sizeof *run->kept);
	for (size_t row = 0; row < part->n_components; row = end) {
		for (end = row; end < part->n_components && has_width(t, part, end, bits); end++)
			;
		run->kernels->quantise(run->c + row * n, n, end - row, n, bits, run->steps, run->packed + len,
			run->lost, run->kept);
		len += (end - row) * quant_row_bytes(n, bits);
		sums->n_rows += end - row;
		sums->n_values += (end - row) * n;
		end += end < part->n_components;
	}
	if (len == 0)
		return 0;
	for (size_t i = 0; i < n; i++)
		sums->lost += (double)run->lost[i];
	/* kept holds the coefficients' own energy, see kernels.h. */
	for (size_t i = 0; i < n; i++)
		sums->energy += (double)run->kept[i];
	r = deflated_bytes(run, len, &deflated);
	sums->bits += 8 * (double)deflated;
	return r;
}

static int measure_part(struct run *run, const struct transform *t, const struct transform_part *part)
{
	uint32_t n_chunks = 0, n_measured = 0;
	int r = 0;

	for (size_t f = 0; f < run->n_paths && r == 0 && n_measured < MEASURE_CHUNKS_MAX; f++) {
		struct capture *capture;
		uint32_t at = 0;

		r = open_capture(run, f, &capture);
		if (r < 0)
			return r;
		while (at < capture->n_tokens && r == 0 && n_measured < MEASURE_CHUNKS_MAX) {
			size_t n;

			if (n_chunks++ % MEASURE_EVERY != MEASURE_EVERY - 1) {
				at += run->chunk_tokens;
				continue;
			}
			n = gather(run, capture, part, part->mean, at, &at);
			if (n == 0)
				continue;
			n_measured++;
			run->kernels->project(part->basis, part->n_components, part->n_features, run->x,
				part->n_features, n, run->c, n);
			for (unsigned bits = 1; bits < N_WIDTHS && r == 0; bits++)
				r = measure_width(run, t, part, bits, n);
		}
		capture_free(capture);
	}
	return r;
}

/* Replaces what was seen often enough; the rest keeps the default. */
static void make_tables(const struct run *run, struct allocate_tables *tables)
{
	for (unsigned bits = 1; bits < N_WIDTHS; bits++) {
		const struct sums *sums = &run->sums[bits];

		if (sums->n_rows < MEASURE_ROWS_MIN || !(sums->energy > 0))
			continue;
		tables->distortion[bits] = sums->lost / sums->energy;
		tables->rate[bits] = sums->bits / (double)sums->n_values;
	}
}

static int measure(struct run *run, struct allocate_tables *tables)
{
	struct transform *t;
	void *data;
	size_t len;
	int r = calibrate_finish(run->calibrate, NULL, &data, &len, NULL);

	if (r < 0)
		return r;
	r = transform_parse(data, len, &t, run->why, run->why_len);
	free(data);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < t->n_parts && r == 0; i++)
		r = measure_part(run, t, &t->parts[i]);
	transform_unref(t);
	if (r == 0)
		make_tables(run, tables);
	return r;
}

static int learn_all(struct run *run, struct calibration *out)
{
	int r = make_room(run);

	for (uint32_t i = 0; i < calibrate_n_parts(run->calibrate) && r == 0; i++)
		r = learn_part(run, i);
	if (r < 0)
		return r;
	out->tables = run->options->calibrate.tables;
	r = measure(run, &out->tables);
	if (r < 0)
		return r;
	calibrate_set_tables(run->calibrate, &out->tables);
	r = calibrate_finish(run->calibrate, run->options->note, &out->data, &out->len, &out->report);
	if (r == -EINVAL)
		return fail(run, r, "the note is not UTF-8 text");
	return r;
}

int calibration_run(const struct kernels *kernels, const struct calibration_options *options,
	char *const *paths, size_t n_paths, struct calibration *out, char *why, size_t why_len)
{
	struct run run = {.kernels = kernels,
		.options = options,
		.paths = paths,
		.n_paths = n_paths,
		.chunk_tokens = options->calibrate.chunk_tokens,
		.why = why,
		.why_len = why_len};
	struct calibration found = {0};
	struct capture *first;
	int r;

	if (n_paths == 0)
		return fail(&run, -EINVAL, "no capture to learn from");
	r = open_capture(&run, 0, &first);
	if (r < 0)
		return r;
	capture_free(first);
	r = calibrate_new(&run.geometry, &options->calibrate, &run.calibrate, why, why_len);
	if (r == 0)
		r = learn_all(&run, &found);
	if (r == -ENOMEM)
		fail(&run, r, "out of memory");
	if (r == 0) {
		found.geometry = run.geometry;
		found.n_skipped = run.n_skipped;
		*out = found;
	}
	free_room(&run);
	calibrate_free(run.calibrate);
	return r;
}
