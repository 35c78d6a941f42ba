/*
 * Captured KV: what a model cached for one sequence, in a file. Two forms are read:
 *
 *   .safetensors  tensors layers.L.k and layers.L.v (MLA: only k), [tokens, heads, dim], f16, bf16 or f32, as
 *                 cached, so keys carry their rotation; positions i64 [tokens]; inv_freq f32 [rope_dim / 2]
 *                 of the keys' rotation; metadata format=cistern-capture-1, model, rope_kind (none, half,
 *                 interleaved), and if need be rope_offset, rope_scale, tp_rank, tp_size. If the model's
 * queries were kept, queries [layers, n, query heads, dim] f16, rotated, and query_positions i64 [n]. .npy
 * one array [layers, 2, tokens, heads, dim], or X.k.npy and X.v.npy side by side, each [layers, tokens,
 * heads, dim] (the first is the one to name); f2, f4, or V2 for bf16. What the array does not say comes from
 * capture_options.
 *
 * A capture is read-only once open, any thread; the file's bytes live in it.
 */
#ifndef TOOLS_CAPTURE_H
#define TOOLS_CAPTURE_H

#include <stddef.h>
#include <stdint.h>

#include "base/geometry.h"
#include "kernels/kernels.h"

/* What .npy files do not say. Zeroed: no rotation, positions from 0. */
struct capture_options {
	const char *model;  /* NULL: not known, .npy files are refused */
	uint32_t rope_kind; /* of the keys: enum rope_kind */
	double theta;       /* inv_freq[i] = theta^(-2 i / rope_dim) */
	uint32_t rope_dim;  /* 0: the whole head, from rope_offset on */
	uint32_t rope_offset;
	float rope_scale; /* 0: 1 */
	uint64_t first_position;
};

/* Some of what the model asked of its keys. */
struct capture_queries {
	uint32_t n; /* 0: none were kept */
	uint32_t n_heads;
	const uint64_t *positions; /* [n] */
	const uint16_t *values;    /* f16 [n_layers, n, n_heads, dim of keys], as they met the keys */
};

struct capture {
	struct geometry geometry;
	struct capture_queries queries; /* points into the file */
	uint32_t n_tokens;
	uint64_t *positions;    /* [n_tokens] */
	struct kv_pages *pages; /* [n_layers][n_planes], for one block of n_tokens: see capture_run */
	void *files[2];         /* what pages point into */
};

/* -errno of the file; -EBADMSG with a sentence in why: not a capture, or damaged; -ENOMEM. */
int capture_open(const char *path, const struct capture_options *options, struct capture **out, char *why,
	size_t why_len);
struct capture *capture_free(struct capture *c);

/* The run that begins at a token; tokens of a run are counted in 16 bits. The one block is number 0. */
struct kv_run capture_run(const struct capture *c, uint32_t first_token);

/* Writes the .safetensors form, with queries unless NULL: n_tokens tokens of an engine's pages
 * ([n_layers][n_planes]) that the run names, at these positions. Only the first plane may carry a rotation.
 * -EINVAL; -errno of the file. */
int capture_write(const char *path, const struct geometry *g, const uint64_t *positions, uint32_t n_tokens,
	const struct kv_pages *pages, const struct kv_run *run, const struct capture_queries *queries);

#endif
