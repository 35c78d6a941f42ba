/* Makes the frames that decode_frame.py reads: frame-examples FOLDER. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "policy/policy.h"
#include "tests/runtime/made-up-cache.h"

static const struct example {
	const char *name;
	enum rope_kind rope_kind;
	int with_transform;
	uint32_t rung, n_tokens, sinks, window;
	uint64_t position;
} examples[] = {
	{"plain", ROPE_HALF, 0, 0, 100, 4, 7, 0},
	{"fine", ROPE_HALF, 1, 0, 256, 4, 0, 0},
	{"coarse", ROPE_INTERLEAVED, 1, 1, 251, 0, 128, 5120},
	{"raw", ROPE_HALF, 1, 1, 20, 20, 0, 256},
};

static void put(const char *folder, const char *name, const char *suffix, const void *data, size_t len)
{
	char path[512];

	snprintf(path, sizeof path, "%s/%s%s", folder, name, suffix);
	if (file_write(path, data, len)) {
		perror(path);
		exit(EXIT_FAILURE);
	}
}

static void put_geometry(const char *folder, const struct example *e, const struct geometry *g)
{
	char text[4096];
	int n = snprintf(text, sizeof text, "{\"layers\": %u, \"planes\": [", g->n_layers);

	for (uint32_t i = 0; i < g->n_planes; i++) {
		const struct plane *p = &g->planes[i];

		n += snprintf(text + n, sizeof text - (size_t)n,
			"%s{\"heads\": %u, \"dim\": %u, \"rope_kind\": \"%s\", \"rope_offset\": %u, "
			"\"rope_dim\": %u, "
			"\"rope_scale\": %g, \"inv_freq\": [",
			i ? ", " : "", p->n_heads, p->dim,
			p->rope_kind == ROPE_HALF   ? "half"
			: p->rope_kind == ROPE_NONE ? "none"
						    : "interleaved",
			p->rope_offset, p->rope_dim, (double)p->rope_scale);
		for (uint32_t k = 0; k < p->rope_dim / 2; k++)
			n += snprintf(text + n, sizeof text - (size_t)n, "%s%.9g", k ? ", " : "",
				(double)p->inv_freq[k]);
		n += snprintf(text + n, sizeof text - (size_t)n, "]}");
	}
	n += snprintf(text + n, sizeof text - (size_t)n, "]}\n");
	put(folder, e->name, ".json", text, (size_t)n);
}

static void make(const char *folder, const struct example *e)
{
	struct world *w = world_new(e->rope_kind);
	const struct codec_chunk chunk = world_chunk(w, 3, e->n_tokens, e->position);
	uint8_t classes[TOKENS_MAX], *frame;
	const struct codec_options options = {
		.transform = e->with_transform ? w->t : NULL, .rung = e->rung, .classes = classes};
	uint16_t *decoded = malloc((size_t)2 * e->n_tokens * P * sizeof *decoded), *at = decoded;
	size_t len;

	for (uint32_t t = 0; t < e->n_tokens; t++)
		classes[t] = t < e->sinks                   ? TOKEN_SINK
			     : t >= e->n_tokens - e->window ? TOKEN_WINDOW
							    : TOKEN_PLAIN;
	if (!decoded || codec_encode(w->codec, &chunk, &options, &frame, &len, NULL) ||
		codec_decode(w->codec, frame, len, options.transform, &chunk, 0, LAYERS))
		abort();
	for (uint32_t plane = 0; plane < 2; plane++)
		for (uint32_t t = 0; t < e->n_tokens; t++)
			for (uint32_t l = 0; l < LAYERS; l++, at += WIDTH)
				memcpy(at, world_element(w, l, plane, 3, t), WIDTH * 2);
	put_geometry(folder, e, &w->g);
	put(folder, e->name, ".frame", frame, len);
	if (e->with_transform)
		put(folder, e->name, ".transform", w->transform_data, w->transform_len);
	put(folder, e->name, ".decoded", decoded, (size_t)2 * e->n_tokens * P * 2);
	free(decoded);
	free(frame);
	world_free(w);
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	for (size_t i = 0; i < sizeof examples / sizeof *examples; i++)
		make(argv[1], &examples[i]);
	return 0;
}
