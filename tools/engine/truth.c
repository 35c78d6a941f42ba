#include "tools/engine/truth.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Marks the tokens of the chunk before `chunk` by what its queries gave them. */
static void mark(const struct model *m, struct truth *t, uint32_t chunk, const uint16_t *resting,
	const double *received, size_t stride)
{
	const uint32_t first = (chunk - 1) * FORWARD_CHUNK;
	double uniform = 0;

	for (uint32_t i = 0; i < FORWARD_CHUNK; i++)
		uniform += 1.0 / (chunk * FORWARD_CHUNK + i + 1);
	for (size_t row = 0; row < (size_t)m->n_layers * m->n_heads; row++)
		for (uint32_t i = first; i < first + FORWARD_CHUNK; i++) {
			t->sink[i] |= resting[row * stride + i] >= FORWARD_CHUNK / 2;
			t->attended[i] |= received[row * stride + i] >= FORWARD_RESTING * uniform;
		}
}

static int compute_chunk(struct engine *e, const struct kv_table *table, const uint32_t *tokens,
	uint32_t chunk, struct truth *t, float *queries, uint16_t *resting, double *received)
{
	const struct model *m = e->model;
	const size_t width = (size_t)m->n_heads * m->head_dim, rows = (size_t)m->n_layers * m->n_heads;
	int r;

	memset(resting, 0, rows * t->n_tokens * sizeof *resting);
	memset(received, 0, rows * t->n_tokens * sizeof *received);
	r = forward_run(e->forward, &(struct forward_request){
					    .cache = e->cache,
					    .table = table,
					    .tokens = tokens + (size_t)chunk * FORWARD_CHUNK,
					    .n_tokens = FORWARD_CHUNK,
					    .position = chunk * FORWARD_CHUNK,
					    .n_collect = TRUTH_QUERIES,
					    .queries = queries,
					    .received = received,
					    .resting = resting,
					    .received_stride = t->n_tokens,
				    });
	for (uint32_t l = 0; !r && l < m->n_layers; l++)
		memcpy(t->queries + ((size_t)l * t->n_chunks + chunk) * TRUTH_QUERIES * width,
			queries + (size_t)l * TRUTH_QUERIES * width, TRUTH_QUERIES * width * sizeof *queries);
	for (uint32_t i = 0; i < TRUTH_QUERIES; i++)
		t->positions[chunk * TRUTH_QUERIES + i] = (chunk + 1) * FORWARD_CHUNK - TRUTH_QUERIES + i;
	if (!r && chunk)
		mark(m, t, chunk, resting, received, t->n_tokens);
	return r;
}

int truth_compute(
	struct engine *e, const struct kv_table *table, const uint32_t *tokens, uint32_t n, struct truth *out)
{
	const struct model *m = e->model;
	const size_t width = (size_t)m->n_heads * m->head_dim, rows = (size_t)m->n_layers * m->n_heads;
	struct truth t = {.n_tokens = n, .n_chunks = n / FORWARD_CHUNK};
	float *queries = malloc((size_t)m->n_layers * TRUTH_QUERIES * width * sizeof *queries);
	uint16_t *resting = malloc(rows * n * sizeof *resting);
	double *received = malloc(rows * n * sizeof *received);
	int r = -ENOMEM;

	t.sink = calloc(n, 1);
	t.attended = calloc(n, 1);
	t.queries = malloc((size_t)m->n_layers * t.n_chunks * TRUTH_QUERIES * width * sizeof *t.queries);
	t.positions = malloc(t.n_chunks * TRUTH_QUERIES * sizeof *t.positions);
	if (queries && resting && received && t.sink && t.attended && t.queries && t.positions)
		r = n % FORWARD_CHUNK ? -EINVAL : 0;
	for (uint32_t chunk = 0; chunk < t.n_chunks && !r; chunk++)
		r = compute_chunk(e, table, tokens, chunk, &t, queries, resting, received);
	free(queries);
	free(resting);
	free(received);
	if (r)
		truth_fini(&t);
	else
		*out = t;
	return r;
}

void truth_fini(struct truth *t)
{
	free(t->sink);
	free(t->attended);
	free(t->queries);
	free(t->positions);
	*t = (struct truth){0};
}
