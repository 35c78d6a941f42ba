#include "tools/bench-rate/codecs/layer-group.h"

#include <errno.h>
#include <stdlib.h>

/* cos and sin for the tokens; *memory is the caller's. A plane without rotation: NULL. */
static int rope_of(const struct kernels *k, const struct codec_chunk *chunk, const struct plane *plane,
	const uint16_t *tokens, size_t n, float **memory, struct rope_table *out)
{
	const size_t half = plane->rope_dim / 2;
	uint64_t *positions;
	float *table;

	*memory = NULL;
	if (plane->rope_kind == ROPE_NONE)
		return 0;
	positions = malloc(n * sizeof *positions);
	table = malloc(2 * n * half * sizeof *table);
	if (!positions || !table) {
		free(positions);
		free(table);
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++)
		positions[i] = chunk->position + tokens[i];
	k->rope_fill(plane, positions, n, table, table + n * half);
	free(positions);
	*memory = table;
	*out = (struct rope_table){table, table + n * half};
	return 0;
}

static const struct kv_pages *pages_of(
	const struct codec_chunk *chunk, const struct layer_group *group, uint32_t layer)
{
	return &chunk->pages[(size_t)(group->first_layer + layer) * chunk->geometry->n_planes + group->plane];
}

int layer_group_read(const struct kernels *k, const struct codec_chunk *chunk,
	const struct layer_group *group, const uint16_t *tokens, size_t n, const float *mean, float *x)
{
	const struct plane *plane = &chunk->geometry->planes[group->plane];
	const size_t width = plane_width(plane);
	struct rope_table rope;
	float *memory;
	int r = rope_of(k, chunk, plane, tokens, n, &memory, &rope);

	for (uint32_t l = 0; r == 0 && l < group->n_layers; l++)
		k->gather(plane, pages_of(chunk, group, l), &chunk->run, tokens, n, memory ? &rope : NULL,
			mean ? mean + l * width : NULL, NULL, x + l * width, group->p);
	free(memory);
	return r;
}

int layer_group_write(const struct kernels *k, const struct codec_chunk *chunk,
	const struct layer_group *group, const uint16_t *tokens, size_t n, const float *mean, const float *x)
{
	const struct plane *plane = &chunk->geometry->planes[group->plane];
	const size_t width = plane_width(plane);
	struct rope_table rope;
	float *memory;
	int r = rope_of(k, chunk, plane, tokens, n, &memory, &rope);

	for (uint32_t l = 0; r == 0 && l < group->n_layers; l++)
		k->scatter(plane, pages_of(chunk, group, l), &chunk->run, tokens, n, memory ? &rope : NULL,
			mean ? mean + l * width : NULL, NULL, x + l * width, group->p);
	free(memory);
	return r;
}
