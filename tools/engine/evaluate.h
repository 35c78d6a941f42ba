/*
 * What a restored cache costs: a prompt's continuations computed over its original and over its restored
 * keys and values, and compared. Sums over the tokens seen so far; plain data, one thread.
 */
#ifndef ENGINE_EVALUATE_H
#define ENGINE_EVALUATE_H

#include <stddef.h>
#include <stdint.h>

#include "tools/engine/forward.h"
#include "tools/engine/text.h"

enum { EVALUATE_LAYERS_MAX = 64 };

/* Index 0: over the original cache, 1: over the restored one. */
struct evaluation {
	uint64_t n_tokens; /* next-token distributions compared: each probe's given text and answer */
	double kl;         /* sum of KL(original || restored), nats */
	double nll[2];     /* sum of -log p(true token), nats */
	uint64_t agree;    /* how often both find the same token most likely */

	uint64_t n_answer_tokens;
	double answer_nll[2]; /* the same over answers alone */
	double answer_kl;     /* sum over the answers' tokens */
	uint64_t asked;       /* probes with an answer */
	uint64_t exact[2];    /* of these, answered right to the last token by greedy decoding */

	double attention_error[EVALUATE_LAYERS_MAX]; /* sum of squared differences of attention outputs */
	double attention_power[EVALUATE_LAYERS_MAX]; /* sum of their squares, original */
};

/* What one probe finds over one cache. Comparing many restored caches with one original, the original's is
 * made once. */
struct view;

/* Feeds the prompt's last token and then given and answer over a table that is filled with the prompt and has
 * room for the probe; what lies behind the prompt is overwritten. -EINVAL: it does not fit the table or the
 * context; -ENOMEM. */
int view_new(struct forward *f, const struct model *m, const struct kv_cache *cache,
	const struct kv_table *table, const struct tokens *prompt, const struct probe *probe,
	struct view **out);
struct view *view_free(struct view *v);

/* Adds to e how the same probe's views differ. -ENOMEM. */
int evaluate_views(const struct model *m, const struct probe *probe, const struct view *original,
	const struct view *restored, struct evaluation *e);

/* Both in one: feeds the prompt's last token and then given and answer, first over the original, then over
 * the restored table (both filled with the prompt, both with room for the probe; what lies behind the prompt
 * is overwritten). The last token's own keys and values stay as they are. -EINVAL: it does not fit the tables
 * or the context; -ENOMEM. */
int evaluate_probe(struct forward *f, const struct model *m, const struct kv_cache *cache,
	const struct kv_table *original, const struct kv_table *restored, const struct tokens *prompt,
	const struct probe *probe, struct evaluation *e);

/* Relative L2 error of the attention outputs over layers [first, end). */
double evaluation_attention_error(const struct evaluation *e, uint32_t first, uint32_t end);

#endif
