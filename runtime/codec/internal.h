/*
 * What encoder, decoder and transcoder share: the scratch of one thread, the planes' tables made ready, and a
 * view of "the parts of a chunk" that is the same with a transform (a part is a layer group) and without (the
 * plain codec: a part is a layer).
 */
#ifndef RUNTIME_CODEC_INTERNAL_H
#define RUNTIME_CODEC_INTERNAL_H

#include <zlib.h>

#include "policy/policy.h"
#include "runtime/codec.h"
#include "runtime/scratch.h"

enum {
	SCRATCH_X,       /* [n, p] f32 */
	SCRATCH_C,       /* [r, n] f32 */
	SCRATCH_ROPE,    /* cos, then sin: [n, rope_dim / 2] f32 each */
	SCRATCH_TOKENS,  /* lists of token indices: uint16_t */
	SCRATCH_SUMS,    /* f32 arrays over tokens */
	SCRATCH_CLASSES, /* [n_tokens] */
	SCRATCH_LEVELS,  /* codes of all parts, [n_tokens] int16_t a component */
	SCRATCH_CODES,   /* codes of one part and class */
	SCRATCH_ROWS,    /* struct levels_row [r], twice */
	SCRATCH_WORK,    /* of kernels, and of the entropy stages */
	SCRATCH_BODY,    /* of a section, decoded */
	SCRATCH_STEPS,   /* uint16_t [r] */
	SCRATCH_SECTIONS,
	SCRATCH_RAW, /* raw tokens of one plane */
	SCRATCHES,
};

struct codec {
	const struct kernels *kernels;
	size_t scratch_max_bytes;
	struct scratch scratch[SCRATCHES];
	/* The tables of one transform, made ready. */
	uint8_t coders_id[16];
	struct levels_coder *coders; /* [GEOMETRY_PLANES_MAX]; NULL: none yet */
	z_stream deflater, inflater;
	int deflater_ready, inflater_ready;
	struct codec_times times;
	uint64_t stamp_ns;
};

/* One part: features p = n_layers * width of its plane. transform NULL: the plain codec, r = p. */
struct codec_part {
	const struct transform_part *transform;
	uint32_t plane;
	uint32_t index; /* within the plane */
	uint32_t first_layer;
	uint32_t n_layers;
	size_t p;
};

/* Of the codec's scratch; contents do not survive growth. NULL: out of memory. */
void *codec_scratch(struct codec *c, int which, size_t len_bytes);

/* Tokens of a class that is coded come in this order. */
enum { CODED_CLASSES = 3 };
extern const uint8_t codec_coded_classes[CODED_CLASSES];

/* The rungs of a class's tokens, from options or header: which of the three. */
uint32_t codec_rung(uint8_t token_class, uint32_t plain, uint32_t salient, uint32_t redundant);
/* What a coded token of a class moves to when its error is over the bound. */
uint8_t codec_finer(const struct codec_options *o, uint8_t token_class);
/* -EINVAL: the transform does not fit, or a rung is not on its ladder. */
int codec_check_options(const struct geometry *g, const struct codec_options *o);

uint32_t codec_n_parts(const struct geometry *g, const struct transform *t);
void codec_part(const struct geometry *g, const struct transform *t, uint32_t i, struct codec_part *out);
/* One layer of one plane of the chunk. */
const struct kv_pages *codec_pages(const struct codec_chunk *chunk, uint32_t layer, uint32_t plane);

/* Makes c->coders those of the transform. -ENOMEM. */
int codec_coders(struct codec *c, const struct transform *t);
/* The rows of the first r components at a step, as the quantiser wants them. */
void codec_rows(const struct transform_part *part, float step, size_t r, struct levels_row *rows);

/* The rotation of one plane's tokens, kept while part after part of that plane is worked on. Zeroed: none.
 * Lies in the codec's scratch, so one at a time. */
struct codec_rope {
	const struct plane *plane;
	struct rope_table table; /* NULLs for a plane without RoPE */
};

/* Fills cos and sin for the given tokens of the chunk, unless *rope has this plane's already: it must be
 * zeroed when the tokens change. */
int codec_rope_fill(struct codec *c, const struct plane *plane, uint64_t position, const uint16_t *tokens,
	size_t n_tokens, struct codec_rope *rope);

/* A section's body: DEFLATE if that is shorter, else as it is. section: kind, plane, part, class are set. */
int codec_put_body(
	struct codec *c, struct frame_writer *w, struct frame_section *section, const void *body, size_t len);
/* The section's body, full_bytes long, checked: in the frame, or inflated into out. NULL: damaged. */
const uint8_t *codec_get_body(
	struct codec *c, const uint8_t *frame, const struct frame_section *section, uint8_t *out);
/* The next section from *at on that is of this kind, plane, part and class; NULL: none. Sections of a part
 * lie in order, so one pass over the table finds everything. */
const struct frame_section *codec_next_section(const struct frame_section *sections, uint32_t n, uint32_t *at,
	uint8_t kind, uint32_t plane, uint32_t part, uint8_t token_class);

/* Codes [r, stride] of n tokens to a section and back; the part's components at this step. */
struct codec_levels {
	const struct transform_part *part;
	const struct levels_coder *coder;
	float step;
	size_t r, n;
	int16_t *codes;
	size_t stride;
};
int codec_put_levels(struct codec *c, struct frame_writer *w, struct frame_section *section,
	const struct codec_levels *levels, enum codec_entropy entropy);
/* -EBADMSG, -ENOMEM. */
int codec_get_levels(struct codec *c, const uint8_t *frame, const struct frame_section *section,
	const struct codec_levels *levels);

/* Reads header, section table and class map, and sees that they are for this geometry and transform. sections
 * are scratch; classes: [FRAME_TOKENS_MAX]. -ESTALE, -EBADMSG, -ENOTSUP, -ENOMEM. */
int codec_open_frame(struct codec *c, const struct geometry *g, const struct transform *t,
	const uint8_t *data, size_t len, struct frame_info *info, struct frame_section **sections,
	uint8_t *classes);
/* A plane's raw tokens as they lay in memory: [n_layers, n_raw, heads, dim]. NULL: damaged, or no memory. */
const uint8_t *codec_read_raw(struct codec *c, const struct geometry *g, const uint8_t *data,
	const struct frame_info *info, const struct frame_section *sections, uint32_t plane);

/* Adds the time since the last stamp to one of the codec's times. */
void codec_stamp(struct codec *c, uint64_t *sum);
/* Gives scratch back when there is more of it than is to be kept. */
void codec_settle(struct codec *c);

#endif
