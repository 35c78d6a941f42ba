#include "runtime/cuda/statistics.h"

#include <string.h>

#include "kernels/cuda/measure/statistics.h"
#include "runtime/codec/internal.h"

enum { ALIGN = 256 };

static size_t take(size_t *used, size_t bytes)
{
	const size_t at = *used;

	*used += (bytes + ALIGN - 1) / ALIGN * ALIGN;
	return at;
}

static size_t n_angles(const struct device_statistics *s, uint32_t p)
{
	const struct plane *plane = &s->geometry->planes[p];

	return plane->rope_kind == ROPE_NONE ? 0 : (size_t)s->n_tokens * (plane->rope_dim / 2);
}

static size_t basis_floats(const struct device_statistics *s, uint32_t p)
{
	return 3 * (size_t)s->detector->view.width[p];
}

static size_t n_statistics(const struct device_statistics *s, uint32_t p)
{
	return (size_t)s->n_tokens * s->detector->view.n_heads[p];
}

void device_statistics_init(struct device_statistics *s, const struct geometry *g,
	const struct sinks_detector *detector, uint32_t n_tokens)
{
	const struct sinks_view *v = &detector->view;
	size_t used = 0;

	*s = (struct device_statistics){.geometry = g, .detector = detector, .n_tokens = n_tokens};
	take(&used, (size_t)v->n_layers * v->n_planes * sizeof(struct statistics_item));
	for (uint32_t p = 0; p < v->n_planes; p++) {
		s->table[p] = take(&used, 2 * n_angles(s, p) * sizeof(float));
		s->basis[p] = take(&used, v->n_layers * basis_floats(s, p) * sizeof(float));
	}
	s->up_bytes = used;
	for (uint32_t p = 0; p < v->n_planes; p++) {
		s->out[p] = take(&used, v->n_layers * n_statistics(s, p) * sizeof(struct token_statistic));
		s->layer_bytes +=
			(size_t)n_tokens * v->n_layers * v->width[p] * dtype_bytes(g->planes[p].dtype);
	}
	s->down_bytes = used - s->up_bytes;
}

bool device_statistics_save(const struct device_statistics *s)
{
	return s->up_bytes + s->down_bytes < s->layer_bytes;
}

size_t device_statistics_bytes(const struct device_statistics *s)
{
	return s->up_bytes + s->down_bytes;
}

/* ---- what goes up ---- */

static void fill_table(const struct device_statistics *s, const struct kernels *kernels, uint64_t position,
	uint32_t p, uint8_t *host)
{
	float *table = (float *)(void *)(host + s->table[p]);
	uint64_t positions[FRAME_TOKENS_MAX];

	if (!n_angles(s, p))
		return;
	for (uint32_t i = 0; i < s->n_tokens; i++)
		positions[i] = position + i;
	kernels->rope_fill(&s->geometry->planes[p], positions, s->n_tokens, table, table + n_angles(s, p));
}

static void fill_basis(const struct device_statistics *s, uint32_t l, uint32_t p, uint8_t *host)
{
	const size_t width = s->detector->view.width[p];
	const struct sinks_basis *b = &s->detector->basis[l][p];
	float *out = (float *)(void *)(host + s->basis[p]) + l * basis_floats(s, p);

	memcpy(out, b->centre, width * sizeof *out);
	memcpy(out + width, b->weight, width * sizeof *out);
	memcpy(out + 2 * width, b->direction, width * sizeof *out);
}

static struct statistics_item item_of(const struct device_statistics *s, const struct kv_pages *pages,
	uint32_t l, uint32_t p, CUdeviceptr device)
{
	const size_t width = s->detector->view.width[p], angles = n_angles(s, p);
	const float *table = (const float *)(uintptr_t)(device + s->table[p]);
	const float *basis = (const float *)(uintptr_t)(device + s->basis[p]) + l * basis_floats(s, p);

	return (struct statistics_item){.base = pages->base,
		.block_stride = pages->block_stride,
		.token_stride = pages->token_stride,
		.head_stride = pages->head_stride,
		.block_tokens = s->n_tokens,
		.n_tokens = s->n_tokens,
		.plane = p,
		.cos = angles ? table : NULL,
		.sin = angles ? table + angles : NULL,
		.centre = basis,
		.weight = basis + width,
		.direction = basis + 2 * width,
		.out = (float *)(uintptr_t)(device + s->out[p]) + l * n_statistics(s, p) * SINKS_SIGNALS};
}

void device_statistics_fill(const struct device_statistics *s, const struct kernels *kernels,
	const struct codec_chunk *chunk, void *host, CUdeviceptr device)
{
	const struct sinks_view *v = &s->detector->view;
	struct statistics_item *items = host;

	for (uint32_t p = 0; p < v->n_planes; p++) {
		fill_table(s, kernels, chunk->position, p, host);
		for (uint32_t l = 0; l < v->n_layers; l++) {
			fill_basis(s, l, p, host);
			*items++ = item_of(s, codec_pages(chunk, v->layers[l], p), l, p, device);
		}
	}
}

/* ---- on the device ---- */

int device_statistics_launch(const struct device_statistics *s, const struct device *d, void *host,
	CUdeviceptr device, CUstream stream)
{
	const struct cuda_driver *cu = device_driver(d);
	const struct sinks_view *v = &s->detector->view;
	struct statistics_tokens_args args = {.items = (const struct statistics_item *)(uintptr_t)device};
	uint32_t grid[3], n_heads = 0;
	int r;

	for (uint32_t p = 0; p < v->n_planes; p++) {
		const struct plane *from = &s->geometry->planes[p];

		args.planes[p] = (struct statistics_plane){from->n_heads, from->dim, from->dtype,
			from->rope_kind, from->rope_offset, from->rope_dim, from->rope_scale};
		n_heads = from->n_heads > n_heads ? from->n_heads : n_heads;
	}
	statistics_grid(v->n_layers * v->n_planes, s->n_tokens, n_heads, grid);
	r = device_status(cu->cuMemcpyHtoDAsync(device, host, s->up_bytes, stream));
	r = r ? r
	      : device_launch(d, DEVICE_KERNEL_statistics_tokens, grid, STATISTICS_THREADS, 0, stream, &args);
	return r ? r
		 : device_status(cu->cuMemcpyDtoHAsync(
			   (uint8_t *)host + s->up_bytes, device + s->up_bytes, s->down_bytes, stream));
}

struct detection_statistics device_statistics_given(const struct device_statistics *s, const void *host)
{
	const struct sinks_view *v = &s->detector->view;
	struct detection_statistics given = {0};

	for (uint32_t p = 0; p < v->n_planes; p++)
		for (uint32_t l = 0; l < v->n_layers; l++)
			given.of[l][p] =
				(const struct token_statistic *)(const void *)((const uint8_t *)host +
									       s->out[p]) +
				l * n_statistics(s, p);
	return given;
}
