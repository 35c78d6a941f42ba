/*
 * cistern-engine capture: keys, values and one query in sixteen of held-out text, for calibration; one file a
 * sequence, in the form of tools/capture.h. With --attention, the folder attention/ beside them gets one
 * .safetensors file a sequence: "received" [layers, query heads, tokens] f32, the mean attention that a token
 * gets from itself and the tokens after it.
 */
#include "tools/engine/engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "base/file.h"
#include "base/half.h"
#include "base/safetensors.h"
#include "tools/capture.h"

enum { RECALL_EVERY = 4, QUERY_EVERY = 16 };

/* Every so many-th query of a sequence, as the file has them. */
struct sample {
	struct capture_queries queries;
	uint64_t *positions;
	uint16_t *values;
};

static void sample_fini(struct sample *s)
{
	free(s->positions);
	free(s->values);
}

/* all: [n_layers, n, n_heads, head_dim] f32. */
static int sample_init(struct sample *s, const struct model *m, const float *all, uint32_t n)
{
	const size_t width = (size_t)m->n_heads * m->head_dim;
	const uint32_t n_sample = n / QUERY_EVERY;
	uint16_t *to;

	*s = (struct sample){.positions = calloc(n_sample + 1, sizeof *s->positions),
		.values = calloc(m->n_layers * n_sample * width + 1, sizeof *s->values)};
	if (!s->positions || !s->values)
		return -ENOMEM;
	to = s->values;
	for (uint32_t i = 0; i < n_sample; i++)
		s->positions[i] = (uint64_t)(i + 1) * QUERY_EVERY - 1;
	for (uint32_t layer = 0; layer < m->n_layers; layer++)
		for (uint32_t i = 0; i < n_sample; i++)
			for (size_t k = 0; k < width; k++)
				*to++ = half_from_float(
					all[(layer * (size_t)n + s->positions[i]) * width + k]);
	s->queries = (struct capture_queries){
		.n = n_sample, .n_heads = m->n_heads, .positions = s->positions, .values = s->values};
	return 0;
}

static int write_planes(const struct engine *e, const struct kv_table *table, uint32_t n,
	const struct capture_queries *queries, const char *path)
{
	const struct kv_run run = {.blocks = table->blocks, .block_tokens = KV_BLOCK_TOKENS};
	struct kv_pages *pages = kv_cache_pages(e->cache);
	uint64_t *positions = calloc(n, sizeof *positions);
	struct geometry g;
	int r = -ENOMEM;

	if (!pages || !positions)
		goto out;
	model_geometry(e->model, &g);
	for (uint32_t i = 0; i < n; i++)
		positions[i] = i;
	r = capture_write(path, &g, positions, n, pages, &run, queries);
out:
	free(pages);
	free(positions);
	return r;
}

/* received: sums over the queries that see a token; the last token is seen by one. */
static int write_attention(const struct model *m, const double *received, uint32_t n, const char *path)
{
	const char *const metadata[] = {"format", "cistern-attention-1", "model", m->name, NULL};
	size_t rows = (size_t)m->n_layers * m->n_heads;
	float *mean = calloc(rows * n, sizeof *mean);
	const struct safetensor tensor = {
		.name = "received",
		.type = SAFETENSORS_F32,
		.n_dims = 3,
		.dims = {m->n_layers, m->n_heads, n},
		.data = mean,
		.len_bytes = rows * n * sizeof *mean,
	};
	void *data = NULL;
	size_t len;
	int r;

	if (!mean)
		return -ENOMEM;
	for (size_t i = 0; i < rows * n; i++)
		mean[i] = (float)(received[i] / (double)(n - i % n));
	r = safetensors_write(&tensor, 1, metadata, &data, &len);
	if (r == 0)
		r = file_write(path, data, len);
	free(data);
	free(mean);
	return r;
}

static int line_print(const char *path, uint32_t n_tokens)
{
	json_t *line = json_pack("{s:s, s:i}", "file", path, "tokens", (int)n_tokens);
	int r = line && json_dumpf(line, stdout, JSON_COMPACT) == 0 && putchar('\n') == '\n' ? 0 : -EIO;

	json_decref(line);
	return r;
}

static int capture_sequence(struct engine *e, const struct options *o, const struct tokens *t, size_t number)
{
	const struct model *m = e->model;
	uint32_t n = (uint32_t)t->n;
	float *queries = malloc((size_t)m->n_layers * n * m->n_heads * m->head_dim * sizeof *queries);
	struct sample sample = {0};
	double *received =
		o->attention ? calloc((size_t)m->n_layers * m->n_heads * n, sizeof *received) : NULL;
	struct kv_table table = {0};
	char path[4096];
	int r = queries && (received || !o->attention) ? kv_table_new(e->cache, n, &table) : -ENOMEM;

	snprintf(path, sizeof path, "%s/capture-%04zu.safetensors", o->out, number);
	if (r == 0)
		r = forward_run(e->forward, &(struct forward_request){
						    .cache = e->cache,
						    .table = &table,
						    .tokens = t->list,
						    .n_tokens = n,
						    .n_collect = n,
						    .queries = queries,
						    .received = received,
						    .received_stride = n,
					    });
	if (r == 0)
		r = sample_init(&sample, m, queries, n);
	if (r == 0)
		r = write_planes(e, &table, n, &sample.queries, path);
	if (r == 0)
		r = line_print(path, n);
	if (r == 0 && received) {
		snprintf(path, sizeof path, "%s/attention/%04zu.safetensors", o->out, number);
		r = write_attention(m, received, n, path);
	}
	if (r < 0)
		fprintf(stderr, "\ncistern-engine: %s, %u tokens: %s\n", path, n, strerror(-r));
	sample_fini(&sample);
	free(queries);
	free(received);
	kv_table_free(e->cache, &table);
	return r;
}

/* Adds up to n tokens of text from about `start` on, from a word's beginning. */
static void add_passage(struct tokens *t, const struct tokens *text, size_t start, size_t n)
{
	while (start > 0 && start < text->n && text->list[start - 1] != ' ' && text->list[start - 1] != '\n')
		start++;
	for (; n > 0 && start < text->n; n--)
		t->list[t->n++] = text->list[start++];
}

/* Passages from all over the text; every other sequence holds two of them with a SEP between. */
static void compose_text(struct tokens *t, const struct tokens *text, size_t number, const struct options *o)
{
	size_t room = text->n - o->length, start = number * room / o->n_sequences;

	t->list[t->n++] = TEXT_BOS;
	if (number % 2) {
		add_passage(t, text, start, o->length / 2 - 1);
		t->list[t->n++] = TEXT_SEP;
		start = (start + room / 2) % room;
	}
	add_passage(t, text, start, o->length - t->n);
}

/* A recall prompt, and its questions with their answers as far as there is room. */
static void compose_recall(struct tokens *t, const struct prompt *p, uint32_t length)
{
	for (size_t i = 0; i < p->tokens.n && t->n < length; i++)
		t->list[t->n++] = p->tokens.list[i];
	for (size_t i = 0; i < p->n_probes; i++) {
		const struct probe *probe = &p->probes[i];

		if (probe->given.n + probe->answer.n > length - t->n)
			return;
		memcpy(t->list + t->n, probe->given.list, probe->given.n * sizeof *t->list);
		t->n += probe->given.n;
		memcpy(t->list + t->n, probe->answer.list, probe->answer.n * sizeof *t->list);
		t->n += probe->answer.n;
	}
}

static int capture_all(struct engine *e, const struct options *o, const struct tokens *text)
{
	uint32_t *list = calloc(o->length, sizeof *list);
	size_t total = 0, recalled = 0;
	int r = list ? 0 : -ENOMEM;

	for (size_t i = 0; i < o->n_sequences && r == 0; i++) {
		struct tokens t = {0, list};

		if (e->prompts.n && i % RECALL_EVERY == RECALL_EVERY - 1)
			compose_recall(&t, &e->prompts.list[recalled++ % e->prompts.n], o->length);
		else
			compose_text(&t, text, i, o);
		if (o->n_tokens && t.n > o->n_tokens - total)
			t.n = o->n_tokens - total;
		if (t.n == 0)
			break;
		total += t.n;
		r = capture_sequence(e, o, &t, i);
		fprintf(stderr, "\rcapture: sequence %zu of %u, %zu tokens", i + 1, o->n_sequences, total);
	}
	fputc('\n', stderr);
	free(list);
	return r;
}

static int folder_make(const char *path, const char *below)
{
	char whole[4096];
	int r;

	snprintf(whole, sizeof whole, "%s%s", path, below);
	r = mkdir(whole, 0755) < 0 && errno != EEXIST ? -errno : 0;
	if (r < 0)
		fprintf(stderr, "cistern-engine: %s: %s\n", whole, strerror(-r));
	return r;
}

int engine_capture(const struct options *o)
{
	struct options with_recall = *o;
	struct tokens text = {0};
	struct engine e;
	int r;

	with_recall.prompts = o->recall;
	r = engine_open(&with_recall, 1, false, &e);
	if (r < 0)
		return r;
	if (o->length < 64 || o->length > e.model->context) {
		fprintf(stderr, "cistern-engine: --length must be from 64 to %u\n", e.model->context);
		r = -EINVAL;
		goto out;
	}
	r = text_read(o->text, &text);
	if (r == 0 && text.n <= o->length)
		r = -ENODATA;
	if (r < 0) {
		fprintf(stderr, "cistern-engine: %s: %s\n", o->text, strerror(-r));
		goto out;
	}
	r = folder_make(o->out, "");
	if (r == 0 && o->attention)
		r = folder_make(o->out, "/attention");
	if (r == 0)
		r = capture_all(&e, o, &text);
out:
	tokens_fini(&text);
	engine_close(&e);
	return r;
}
