/*
 * The weights of a Llama-shaped decoder, read from a folder with a config.json and one .safetensors file in
 * the Hugging Face layout (RMSNorm, half-split rotary positions, grouped queries, SwiGLU, tied embeddings).
 * Immutable once loaded; owned by whoever loaded it; any thread may read it.
 *
 * Weights are kept in f32, row-major [out, in], and what one product can serve is stacked: q, k and v in one
 * matrix, gate and up in another.
 */
#ifndef ENGINE_MODEL_H
#define ENGINE_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "base/geometry.h"
#include "shm/cistern.h"

struct model_layer {
	const float *attention_norm; /* [hidden] */
	const float *qkv;            /* [(n_heads + 2 n_kv_heads) * head_dim, hidden]: q, then k, then v */
	const float *out;            /* [hidden, n_heads * head_dim] */
	const float *ffn_norm;       /* [hidden] */
	const float *gate_up;        /* [2 * ffn, hidden]: gate, then up */
	const float *down;           /* [hidden, ffn] */
};

struct model {
	char name[64]; /* file name and 8 digits of the weights' hash: other weights are another model */
	uint32_t n_layers;
	uint32_t hidden;
	uint32_t ffn;
	uint32_t n_heads;
	uint32_t n_kv_heads; /* divides n_heads */
	uint32_t head_dim;   /* a multiple of 16 */
	uint32_t vocab;
	uint32_t context; /* tokens in a sequence at most */
	float rms_eps;
	const float *inv_freq;  /* [head_dim / 2] */
	const float *embedding; /* [vocab, hidden], also the output projection */
	const float *norm;      /* [hidden] */
	struct model_layer *layers;
	float *memory; /* all of the above, one allocation */
};

/* Reads dir/config.json and the only .safetensors file in dir. -errno, with a sentence in why: -ENOENT no
 * such file, -EINVAL a configuration this engine cannot run, -EBADMSG weights that are damaged or do not fit
 * the configuration, -ENOMEM. */
int model_load(const char *dir, struct model **out, char *why, size_t why_len);
struct model *model_free(struct model *m);

/* What cistern_register_model wants: fills planes[2] (K and V, f16) and a description that points to them. */
void model_describe(const struct model *m, struct cistern_plane planes[2], struct cistern_model *out);

/* The same for the codec, in this process. */
void model_geometry(const struct model *m, struct geometry *g);

#endif
