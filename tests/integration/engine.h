/* A stand-in for an inference engine, for tests: a paged cache in shared memory whose every value is known
 * from its sequence, and the calls an engine makes. Aborts the process (exit status 99, with a line) when a
 * call that must work does not. */
#ifndef TESTS_INTEGRATION_ENGINE_H
#define TESTS_INTEGRATION_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shm/cistern.h"

enum {
	E_LAYERS = 3,
	E_HEADS = 2,
	E_DIM = 16,
	E_WIDTH = E_HEADS * E_DIM,
	E_BLOCK = 16,
	E_BLOCKS = 160,
	E_TOKENS_MAX = 2048,
	E_CHUNK = 256,
};

struct engine {
	struct cistern *c;
	uint32_t model_id, memory_id;
	int fd;
	uint16_t *kv; /* [E_LAYERS][2][E_BLOCKS][E_BLOCK][E_HEADS][E_DIM] f16 */
	size_t size_bytes;
	uint32_t blocks[E_BLOCKS]; /* in the order they are used: scrambled */
	struct cistern_key keys[E_TOKENS_MAX / E_CHUNK];
};

/* The layouts of an engine's memory, and its model in the public form. inv_freq: [E_DIM / 2]. */
void engine_describe(struct cistern_model *model, struct cistern_plane planes[2], float *inv_freq,
	struct cistern_layout layouts[E_LAYERS * 2]);

/* Connects and registers; order scrambles the blocks. */
void engine_open(struct engine *e, const char *socket, uint32_t order);
void engine_close(struct engine *e);

/* Writes the n tokens of a sequence into the cache, as prefill would; and their keys. */
void engine_prefill(struct engine *e, uint32_t sequence, uint32_t n_tokens);
/* The keys alone. */
void engine_keys(struct engine *e, uint32_t sequence, uint32_t n_tokens);
/* Fills the cache with a pattern that no sequence has. */
void engine_wipe(struct engine *e);

/* One token of one layer and plane: [E_HEADS][E_DIM]. */
uint16_t *engine_token(const struct engine *e, uint32_t layer, uint32_t plane, uint32_t token);

/* Queue, submit, wait for the last completion. A negative return of the call is the status. */
struct cistern_completion engine_put(struct engine *e, uint32_t n_tokens);
struct cistern_completion engine_get(struct engine *e, uint32_t n_tokens, uint32_t flags);
struct cistern_completion engine_wait(struct engine *e, int queued);
uint32_t engine_lookup(struct engine *e, uint32_t n_tokens);

/* Tokens [first, end) against the sequence's true values. Worst relative L2 error of a token of one plane; 0
 * is bit for bit. */
double engine_error(const struct engine *e, uint32_t sequence, uint32_t first, uint32_t end);
/* Whether a token still has engine_wipe's pattern, everywhere. */
bool engine_is_wiped(const struct engine *e, uint32_t token);

void must(bool holds, const char *what, long value);
#define MUST(condition) must(condition, #condition, 0)
#define MUST_EQUAL(a, b)                                                                                     \
	do {                                                                                                 \
		const long must_value = (long)(a);                                                           \
		must(must_value == (long)(b), #a " == " #b, must_value);                                     \
	} while (0)

#endif
