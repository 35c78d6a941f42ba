#include "tools/plot.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

/* Pixels. */
enum { LEFT = 90, WIDTH = 1024, TOP = 50, SCORES = 180, ROW = 26, GAP = 34, STRIP = 26, BITS = 90 };

struct canvas {
	FILE *out;
	size_t n;     /* tokens */
	double y;     /* top of the panel at hand */
	double first; /* position of the first token */
};

static double x_of(const struct canvas *c, size_t t)
{
	return LEFT + (double)t * WIDTH / (double)c->n;
}

static void label(const struct canvas *c, double x, double y, const char *anchor, const char *text)
{
	fprintf(c->out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, text);
}

static double at(const json_t *array, size_t i)
{
	const json_t *value = json_array_get(array, i);

	return json_is_number(value) ? json_number_value(value) : 0;
}

/* ---- scores ---- */

static void scores_panel(struct canvas *c, const json_t *decision)
{
	const json_t *scores = json_object_get(decision, "scores"), *sink;
	const double threshold = json_number_value(json_object_get(decision, "threshold"));
	double low = fmin(0, threshold), high = fmax(threshold, 1), span;
	char text[32];
	size_t i;

	for (size_t t = 0; t < c->n; t++) {
		low = fmin(low, at(scores, t));
		high = fmax(high, at(scores, t));
	}
	span = high - low;
	label(c, LEFT, c->y - 6, "start",
		json_is_true(json_object_get(decision, "trained"))
			? "sink score: log of the attention foretold, in multiples of the uniform share"
			: "sink score: deviations from the mean token (no attention was seen yet)");
	for (size_t t = 0; t < c->n; t++) {
		const double s = at(scores, t), y = c->y + SCORES * (high - s) / span;
		const double zero = c->y + SCORES * (high - fmax(low, 0)) / span;

		fprintf(c->out, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\"/>\n",
			x_of(c, t), fmin(y, zero), WIDTH / (double)c->n, fabs(zero - y) + 0.2,
			s >= threshold ? "#c0392b" : "#7f8c8d");
	}
	fprintf(c->out,
		"<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#c0392b\" "
		"stroke-dasharray=\"4 3\"/>\n",
		LEFT, LEFT + WIDTH, c->y + SCORES * (high - threshold) / span,
		c->y + SCORES * (high - threshold) / span);
	snprintf(text, sizeof text, "%.1f", high);
	label(c, LEFT - 6, c->y + 10, "end", text);
	snprintf(text, sizeof text, "%.1f", low);
	label(c, LEFT - 6, c->y + SCORES, "end", text);
	json_array_foreach(json_object_get(decision, "sinks"), i, sink)
	{
		const double p = json_number_value(json_object_get(sink, "position")) - c->first;

		fprintf(c->out,
			"<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"#2c3e50\"><title>position %.0f: "
			"%s</title>"
			"</circle>\n",
			x_of(c, (size_t)p) + 0.5 * WIDTH / (double)c->n, c->y + SCORES + 8, p + c->first,
			json_string_value(json_object_get(sink, "reason")));
	}
	c->y += SCORES + GAP;
}

static void layers_panel(struct canvas *c, const json_t *layers)
{
	const json_t *layer;
	size_t i;

	label(c, LEFT, c->y - 6, "start", "what each layer looked at adds to it");
	json_array_foreach(layers, i, layer)
	{
		const json_t *scores = json_object_get(layer, "scores");
		double low = INFINITY, high = -INFINITY;
		char text[32];

		for (size_t t = 0; t < c->n; t++) {
			low = fmin(low, at(scores, t));
			high = fmax(high, at(scores, t));
		}
		for (size_t t = 0; t < c->n; t++) {
			const double part = high > low ? (at(scores, t) - low) / (high - low) : 0;

			fprintf(c->out,
				"<rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%d\" "
				"fill=\"rgb(%.0f,%.0f,%.0f)\"/>\n",
				x_of(c, t), c->y, WIDTH / (double)c->n + 0.3, ROW - 4, 245 - 53 * part,
				245 - 188 * part, 245 - 202 * part);
		}
		snprintf(text, sizeof text, "layer %lld",
			(long long)json_integer_value(json_object_get(layer, "layer")));
		label(c, LEFT - 6, c->y + 15, "end", text);
		c->y += ROW;
	}
	c->y += GAP - 8;
}

/* ---- classes and bits ---- */

static const struct {
	const char *name, *colour;
} classes_drawn[] = {{"sink", "#c0392b"}, {"window", "#2980b9"}, {"exact", "#8e44ad"}, {"salient", "#e67e22"},
	{"plain", "#bdc3c7"}, {"redundant", "#ecf0f1"}};

enum { N_CLASSES = sizeof classes_drawn / sizeof *classes_drawn };

static const char *colour_of(const char *name)
{
	for (size_t i = 0; i < N_CLASSES; i++)
		if (!strcmp(classes_drawn[i].name, name))
			return classes_drawn[i].colour;
	return "#000000";
}

static void classes_panel(struct canvas *c, const json_t *runs)
{
	const json_t *run;
	double x = LEFT + 200;
	size_t i, t = 0;

	label(c, LEFT, c->y - 6, "start", "class of each token");
	for (size_t k = 0; k < N_CLASSES; k++, x += 90) {
		fprintf(c->out, "<rect x=\"%.0f\" y=\"%.0f\" width=\"10\" height=\"10\" fill=\"%s\"/>\n", x,
			c->y - 15, classes_drawn[k].colour);
		label(c, x + 14, c->y - 6, "start", classes_drawn[k].name);
	}
	json_array_foreach(runs, i, run)
	{
		const size_t n = (size_t)json_integer_value(json_array_get(run, 1));

		fprintf(c->out, "<rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%d\" fill=\"%s\"/>\n",
			x_of(c, t), c->y, x_of(c, t + n) - x_of(c, t), STRIP,
			colour_of(json_string_value(json_array_get(run, 0))));
		t += n;
	}
	c->y += STRIP + GAP;
}

static bool is_raw(const char *name)
{
	return !strcmp(name, "sink") || !strcmp(name, "window") || !strcmp(name, "exact");
}

/* Bits for each value of a token: of the raw ones what their sections take, of the coded ones the rest. */
static void bits_panel(struct canvas *c, const json_t *frame)
{
	const json_t *runs = json_object_get(frame, "classes"), *run;
	const double tokens = json_number_value(json_object_get(frame, "tokens"));
	const double raw_tokens = json_number_value(json_object_get(frame, "raw_tokens"));
	const double values = json_number_value(json_object_get(frame, "raw_bytes")) / 2 / tokens;
	const double raw_bytes = json_number_value(json_object_get(frame, "raw_section_bytes"));
	const double bytes = json_number_value(json_object_get(frame, "bytes"));
	const double bits[2] = {
		tokens > raw_tokens ? 8 * (bytes - raw_bytes) / (tokens - raw_tokens) / values : 0,
		raw_tokens > 0 ? 8 * raw_bytes / raw_tokens / values : 0};
	const double top = 16;
	char text[100];
	size_t i, t = 0;

	snprintf(text, sizeof text,
		"bits for each value: %.2f coded, %.2f kept bit-exact; side information counted", bits[0],
		bits[1]);
	label(c, LEFT, c->y - 6, "start", text);
	json_array_foreach(runs, i, run)
	{
		const size_t n = (size_t)json_integer_value(json_array_get(run, 1));
		const char *name = json_string_value(json_array_get(run, 0));
		const double height = BITS * fmin(1, bits[is_raw(name)] / top);

		fprintf(c->out, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\"/>\n",
			x_of(c, t), c->y + BITS - height, x_of(c, t + n) - x_of(c, t), height,
			colour_of(name));
		t += n;
	}
	label(c, LEFT - 6, c->y + 10, "end", "16");
	label(c, LEFT - 6, c->y + BITS, "end", "0");
	c->y += BITS + GAP;
}

static void axis(struct canvas *c)
{
	for (int i = 0; i <= 8; i++) {
		char text[32];

		snprintf(text, sizeof text, "%.0f", c->first + (double)c->n * i / 8);
		label(c, LEFT + WIDTH * i / 8.0, c->y - 12, "middle", text);
	}
	label(c, LEFT + WIDTH / 2.0, c->y + 6, "middle", "position in the sequence");
}

static void draw(struct canvas *c, const json_t *decision, const json_t *frame)
{
	if (json_is_array(json_object_get(decision, "scores")))
		scores_panel(c, decision);
	if (json_array_size(json_object_get(decision, "layers")))
		layers_panel(c, json_object_get(decision, "layers"));
	classes_panel(c, json_object_get(json_is_object(frame) ? frame : decision, "classes"));
	if (json_is_object(frame))
		bits_panel(c, frame);
	axis(c);
}

static size_t count_tokens(const json_t *runs)
{
	const json_t *run;
	size_t i, n = 0;

	json_array_foreach(runs, i, run) n += (size_t)json_integer_value(json_array_get(run, 1));
	return n;
}

int plot_inspection(const json_t *inspection, const char *path)
{
	const json_t *frame = json_object_get(inspection, "frame");
	const json_t *decision = json_object_get(inspection, "decision");
	const json_t *runs = json_object_get(json_is_object(frame) ? frame : decision, "classes");
	struct canvas c = {.n = count_tokens(runs), .y = TOP};
	char *body = NULL, *whole = NULL;
	size_t len;
	int r;

	if (!c.n)
		return -ENODATA;
	c.first = json_number_value(json_object_get(json_is_object(frame) ? frame : decision, "position"));
	c.out = open_memstream(&body, &len);
	if (!c.out)
		return -ENOMEM;
	draw(&c, decision, frame);
	if (fclose(c.out) || asprintf(&whole,
				     "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" "
				     "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%%\" "
				     "height=\"100%%\" "
				     "fill=\"#ffffff\"/>\n%s</svg>\n",
				     LEFT + WIDTH + 30, c.y + 20, body) < 0) {
		free(body);
		return -ENOMEM;
	}
	r = file_write(path, whole, strlen(whole));
	free(body);
	free(whole);
	return r;
}
