#include "runtime/codec/raw-tokens.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/codec/internal.h"

static int copy_planes(struct raw_tokens *r, struct codec *c, const struct geometry *g, const uint8_t *data,
	const struct frame_section *sections)
{
	uint8_t *at = r->memory;

	for (uint32_t plane = 0; plane < g->n_planes; plane++) {
		const struct plane *of = &g->planes[plane];
		const size_t head = of->dim * dtype_bytes(of->dtype), token = of->n_heads * head;
		const size_t layer_bytes = token * r->info.n_raw, all = layer_bytes * g->n_layers;
		const uint8_t *raw = codec_read_raw(c, g, data, &r->info, sections, plane);

		if (!raw)
			return -EBADMSG;
		memcpy(at, raw, all);
		for (uint32_t layer = 0; layer < g->n_layers; layer++)
			r->pages[layer * g->n_planes + plane] =
				(struct kv_pages){at + layer * layer_bytes, layer_bytes, token, head};
		at += all;
	}
	return 0;
}

int raw_tokens_init(struct raw_tokens *r, struct codec *c, const struct geometry *g,
	const struct transform *transform, const void *data, size_t len)
{
	struct frame_section *sections;
	uint16_t n = 0;
	int status;

	r->pages = NULL;
	r->memory = NULL;
	r->block = 0;
	status = codec_open_frame(c, g, transform, data, len, &r->info, &sections, r->classes);
	if (status)
		return status;
	if (!r->info.n_raw)
		return -ENODATA;
	for (uint32_t t = 0; t < r->info.n_tokens; t++)
		r->slot[t] = token_class_is_raw(r->classes[t]) ? n++ : 0;
	r->pages = calloc((size_t)g->n_layers * g->n_planes, sizeof *r->pages);
	r->memory = malloc(geometry_token_bytes(g) * r->info.n_raw);
	status = r->pages && r->memory ? copy_planes(r, c, g, data, sections) : -ENOMEM;
	if (status)
		raw_tokens_fini(r);
	return status;
}

void raw_tokens_fini(struct raw_tokens *r)
{
	free(r->pages);
	free(r->memory);
	r->pages = NULL;
	r->memory = NULL;
}
