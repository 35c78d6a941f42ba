#include "tools/bench-sinks/truth.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

const char *truth_name(enum truth_reading reading)
{
	static const char *const names[TRUTH_READINGS] = {"mean", "half", "lasting"};

	return names[reading];
}

/* Scratch of one sequence. Rows are heads of all layers: [rows, n_tokens]. */
struct marking {
	size_t rows;
	double *received;  /* from the chunk at hand */
	uint16_t *resting; /* the same */
	uint8_t *faded;    /* whether some chunk gave the token less, in this row */
	float *queries;    /* [n_layers, FORWARD_CHUNK, width] */
};

static double uniform_share(uint32_t chunk)
{
	double sum = 0;

	for (uint32_t i = 0; i < FORWARD_CHUNK; i++)
		sum += 1.0 / (chunk * FORWARD_CHUNK + i + 1);
	return sum;
}

/* The tokens of the chunk before `chunk`, by what its queries gave them. */
static void mark_next(struct truth *t, const struct marking *m, uint32_t chunk, uint32_t first_token)
{
	const uint32_t first = (chunk - 1) * FORWARD_CHUNK;
	const double enough = FORWARD_RESTING * uniform_share(chunk);

	for (uint32_t i = first; i < first + FORWARD_CHUNK; i++) {
		size_t most = 0;
		bool half = false;

		for (size_t row = 0; row < m->rows; row++) {
			half = half || m->resting[row * t->n_tokens + i] >= FORWARD_CHUNK / 2;
			if (m->received[row * t->n_tokens + i] > m->received[most * t->n_tokens + i])
				most = row;
		}
		if (i < first_token)
			half = false;
		else if (m->received[most * t->n_tokens + i] >= enough)
			t->by_head[most]++;
		t->marks[TRUTH_HALF][i] = half;
		t->marks[TRUTH_MEAN][i] = i >= first_token && m->received[most * t->n_tokens + i] >= enough;
	}
}

static void mark_lasting(const struct truth *t, const struct marking *m, uint32_t chunk, uint32_t first_token)
{
	const double enough = FORWARD_RESTING * uniform_share(chunk);
	const uint32_t n = chunk * FORWARD_CHUNK;

	for (size_t row = 0; row < m->rows; row++)
		for (uint32_t i = 0; i < n; i++)
			m->faded[row * t->n_tokens + i] |= m->received[row * t->n_tokens + i] < enough;
	for (uint32_t i = 0; i + FORWARD_CHUNK < n; i++) {
		bool lasting = false;

		for (size_t row = 0; row < m->rows && i >= first_token; row++)
			lasting = lasting || !m->faded[row * t->n_tokens + i];
		t->marks[TRUTH_LASTING][i] = lasting;
	}
}

static int compute_chunk(struct forward *f, const struct model *m, const struct kv_cache *cache,
	const struct kv_table *table, const uint32_t *tokens, uint32_t chunk, struct truth *t,
	struct marking *k)
{
	const size_t width = (size_t)m->n_heads * m->head_dim;
	int r;

	memset(k->resting, 0, k->rows * t->n_tokens * sizeof *k->resting);
	memset(k->received, 0, k->rows * t->n_tokens * sizeof *k->received);
	r = forward_run(f, &(struct forward_request){
				   .cache = cache,
				   .table = table,
				   .tokens = tokens + (size_t)chunk * FORWARD_CHUNK,
				   .n_tokens = FORWARD_CHUNK,
				   .position = chunk * FORWARD_CHUNK,
				   .n_collect = FORWARD_CHUNK,
				   .queries = k->queries,
				   .received = k->received,
				   .resting = k->resting,
				   .received_stride = t->n_tokens,
			   });
	for (uint32_t l = 0; !r && l < m->n_layers; l++)
		memcpy(t->queries + ((size_t)l * t->n_tokens + (size_t)chunk * FORWARD_CHUNK) * width,
			k->queries + (size_t)l * FORWARD_CHUNK * width,
			FORWARD_CHUNK * width * sizeof *k->queries);
	return r;
}

int truth_compute(struct forward *f, const struct model *m, const struct kv_cache *cache,
	const struct kv_table *table, const uint32_t *tokens, uint32_t n, uint32_t first, struct truth *out)
{
	const size_t width = (size_t)m->n_heads * m->head_dim, rows = (size_t)m->n_layers * m->n_heads;
	struct truth t = {.n_tokens = n, .n_chunks = n / FORWARD_CHUNK};
	struct marking k = {.rows = rows,
		.received = malloc(rows * n * sizeof *k.received),
		.resting = malloc(rows * n * sizeof *k.resting),
		.faded = calloc(rows, n),
		.queries = malloc((size_t)m->n_layers * FORWARD_CHUNK * width * sizeof *k.queries)};
	int r = k.received && k.resting && k.faded && k.queries ? 0 : -ENOMEM;

	for (int i = 0; i < TRUTH_READINGS; i++) {
		t.marks[i] = malloc(n);
		if (t.marks[i])
			memset(t.marks[i], TRUTH_UNKNOWN, n);
		else
			r = -ENOMEM;
	}
	t.by_head = calloc(rows, sizeof *t.by_head);
	t.queries = malloc((size_t)m->n_layers * n * width * sizeof *t.queries);
	if (!t.by_head || !t.queries)
		r = -ENOMEM;
	if (!r && n % FORWARD_CHUNK)
		r = -EINVAL;
	for (uint32_t chunk = 0; chunk < t.n_chunks && !r; chunk++) {
		r = compute_chunk(f, m, cache, table, tokens, chunk, &t, &k);
		if (!r && chunk) {
			mark_next(&t, &k, chunk, first);
			mark_lasting(&t, &k, chunk, first);
		}
	}
	free(k.received);
	free(k.resting);
	free(k.faded);
	free(k.queries);
	if (r)
		truth_fini(&t);
	else
		*out = t;
	return r;
}

void truth_fini(struct truth *t)
{
	for (int i = 0; i < TRUTH_READINGS; i++)
		free(t->marks[i]);
	free(t->queries);
	free(t->by_head);
	*t = (struct truth){0};
}
