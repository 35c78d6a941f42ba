/* Keys and values of few dimensions, rotated as a cache holds them, in a test engine's memory: what a
 * transform can be learned from. Of several kinds, each in dimensions of its own. */
#ifndef TESTS_INTEGRATION_LOW_RANK_H
#define TESTS_INTEGRATION_LOW_RANK_H

#include "tests/integration/engine.h"

enum { LOW_RANK_FEATURES = E_LAYERS * E_WIDTH };

/* Writes the n tokens of a sequence, and their keys; kind in the sequence's number. */
void low_rank_prefill(struct engine *e, uint32_t kind, uint32_t sequence, uint32_t n_tokens);
/* The keys alone. */
void low_rank_keys(struct engine *e, uint32_t kind, uint32_t sequence, uint32_t n_tokens);
/* Tokens [first, end) against the sequence's true values: worst relative L2 error of a token of one plane; 0
 * is bit for bit. */
double low_rank_error(const struct engine *e, uint32_t kind, uint32_t sequence, uint32_t first, uint32_t end);

/* A transform for such tokens, of one kind, as a file. */
void low_rank_transform(uint32_t kind, const char *path);

#endif
