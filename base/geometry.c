#include "base/geometry.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <xxhash.h>

#include "base/fault.h"

static int rope_check(const struct plane *p, uint32_t i, char *why, size_t why_len)
{
	if (p->rope_kind == ROPE_NONE)
		return 0;
	if (p->rope_kind > ROPE_INTERLEAVED)
		return fault_say(
			-EINVAL, why, why_len, "plane %u: unknown rotation kind %u", i, p->rope_kind);
	if (p->rope_dim == 0 || p->rope_dim % 2 || p->rope_dim > GEOMETRY_ROPE_MAX)
		return fault_say(-EINVAL, why, why_len,
			"plane %u: rope_dim %u is not an even number from 2 to %d", i, p->rope_dim,
			GEOMETRY_ROPE_MAX);
	if (p->rope_offset > p->dim || p->rope_dim > p->dim - p->rope_offset)
		return fault_say(-EINVAL, why, why_len,
			"plane %u: rotation of %u features from %u reaches past dim %u", i, p->rope_dim,
			p->rope_offset, p->dim);
	/* Rotation is undone by dividing the scale out. */
	if (!isfinite(p->rope_scale) || p->rope_scale <= 0)
		return fault_say(-EINVAL, why, why_len, "plane %u: rope_scale is not a positive number", i);
	for (uint32_t k = 0; k < p->rope_dim / 2; k++)
		if (!isfinite(p->inv_freq[k]))
			return fault_say(
				-EINVAL, why, why_len, "plane %u: inverse frequency %u is not finite", i, k);
	return 0;
}

static int name_check(const char *name, char *why, size_t why_len)
{
	size_t len = strnlen(name, GEOMETRY_NAME_MAX);

	if (len == 0)
		return fault_say(-EINVAL, why, why_len, "model name is empty");
	if (len == GEOMETRY_NAME_MAX)
		return fault_say(-EINVAL, why, why_len, "model name has no end");
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
			return fault_say(
				-EINVAL, why, why_len, "model name holds a control character at byte %zu", i);
	return 0;
}

int geometry_check(const struct geometry *g, char *why, size_t why_len)
{
	int r = name_check(g->name, why, why_len);

	if (r < 0)
		return r;
	if (g->n_layers == 0 || g->n_layers > GEOMETRY_LAYERS_MAX)
		return fault_say(
			-EINVAL, why, why_len, "%u layers, not 1 to %d", g->n_layers, GEOMETRY_LAYERS_MAX);
	if (g->n_planes == 0 || g->n_planes > GEOMETRY_PLANES_MAX)
		return fault_say(
			-EINVAL, why, why_len, "%u planes, not 1 to %d", g->n_planes, GEOMETRY_PLANES_MAX);
	if (g->tp_rank >= g->tp_size)
		return fault_say(
			-EINVAL, why, why_len, "tensor-parallel rank %u of %u", g->tp_rank, g->tp_size);
	for (uint32_t i = 0; i < g->n_planes; i++) {
		const struct plane *p = &g->planes[i];

		if (p->n_heads == 0 || p->n_heads > GEOMETRY_HEADS_MAX)
			return fault_say(-EINVAL, why, why_len, "plane %u: %u heads, not 1 to %d", i,
				p->n_heads, GEOMETRY_HEADS_MAX);
		if (p->dim == 0 || p->dim > GEOMETRY_DIM_MAX)
			return fault_say(-EINVAL, why, why_len, "plane %u: dim %u, not 1 to %d", i, p->dim,
				GEOMETRY_DIM_MAX);
		if (p->dtype < DTYPE_F16 || p->dtype > DTYPE_F32)
			return fault_say(-EINVAL, why, why_len, "plane %u: unknown dtype %u", i, p->dtype);
		r = rope_check(p, i, why, why_len);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Field by field into bytes: the struct itself has padding, host byte order and unused frequencies. */
struct bytes {
	size_t len;
	uint8_t data[512 + GEOMETRY_PLANES_MAX * (32 + 4 * GEOMETRY_ROPE_MAX / 2)];
};

static void add(struct bytes *b, const void *data, size_t len)
{
	memcpy(b->data + b->len, data, len);
	b->len += len;
}

static void add_u32(struct bytes *b, uint32_t value)
{
	uint8_t le[4] = {
		(uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16), (uint8_t)(value >> 24)};

	add(b, le, sizeof le);
}

static void add_f32(struct bytes *b, float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof bits);
	add_u32(b, bits);
}

static void add_plane(struct bytes *b, const struct plane *p)
{
	add_u32(b, p->n_heads);
	add_u32(b, p->dim);
	add_u32(b, p->dtype);
	add_u32(b, p->rope_kind);
	if (p->rope_kind == ROPE_NONE)
		return;
	add_u32(b, p->rope_offset);
	add_u32(b, p->rope_dim);
	add_f32(b, p->rope_scale);
	for (uint32_t k = 0; k < p->rope_dim / 2; k++)
		add_f32(b, p->inv_freq[k]);
}

void geometry_fingerprint(const struct geometry *g, uint8_t out[16])
{
	static const char title[] = "cistern-geometry-1";
	struct bytes b = {0};
	XXH128_canonical_t canonical;
	size_t name_len = strnlen(g->name, GEOMETRY_NAME_MAX);

	add(&b, title, sizeof title);
	add_u32(&b, (uint32_t)name_len);
	add(&b, g->name, name_len);
	add_u32(&b, g->n_layers);
	add_u32(&b, g->n_planes);
	add_u32(&b, g->tp_rank);
	add_u32(&b, g->tp_size);
	for (uint32_t i = 0; i < g->n_planes; i++)
		add_plane(&b, &g->planes[i]);
	XXH128_canonicalFromHash(&canonical, XXH3_128bits(b.data, b.len));
	memcpy(out, canonical.digest, 16);
}

size_t geometry_token_bytes(const struct geometry *g)
{
	size_t bytes = 0;

	for (uint32_t i = 0; i < g->n_planes; i++)
		bytes += plane_width(&g->planes[i]) * dtype_bytes(g->planes[i].dtype);
	return bytes * g->n_layers;
}
