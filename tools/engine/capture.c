/*
 * cistern-engine capture: keys and values of held-out text, for calibration. One .safetensors file a
 * sequence: layers.L.k and layers.L.v [tokens, heads, dim] f16 as cached (keys rotated), positions [tokens]
 * i64, inv_freq [dim / 2] f32; with --attention also layers.L.attention [query heads, tokens] f32, the mean
 * attention that a token gets from itself and the tokens after it.
 */
#include "tools/engine/engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "base/file.h"
#include "base/safetensors.h"

enum { RECALL_EVERY = 4, LAYERS_MAX = 64, TENSORS_MAX = 3 * LAYERS_MAX + 2, NAME_MAX_BYTES = 32 };

/* A file in the making. */
struct sheet {
	size_t n;
	struct safetensor tensors[TENSORS_MAX];
	char names[TENSORS_MAX][NAME_MAX_BYTES];
	void *owned[TENSORS_MAX];
};

/* A new tensor of up to 3 dimensions (0: not there), its memory owned by the sheet. NULL: no memory. */
static void *sheet_add(struct sheet *s, const char *name, enum safetensors_type type, const uint32_t dims[3])
{
	size_t element = type == SAFETENSORS_F16 ? 2 : type == SAFETENSORS_F32 ? 4 : 8, n = 1;
	struct safetensor *t = &s->tensors[s->n];

	*t = (struct safetensor){.name = s->names[s->n], .type = type};
	snprintf(s->names[s->n], sizeof s->names[s->n], "%s", name);
	for (; t->n_dims < 3 && dims[t->n_dims]; t->n_dims++) {
		t->dims[t->n_dims] = dims[t->n_dims];
		n *= dims[t->n_dims];
	}
	t->len_bytes = n * element;
	t->data = s->owned[s->n] = calloc(n, element);
	if (!t->data)
		return NULL;
	return s->owned[s->n++];
}

static void sheet_fini(struct sheet *s)
{
	for (size_t i = 0; i < s->n; i++)
		free(s->owned[i]);
	s->n = 0;
}

static int add_plane(struct sheet *s, const struct engine *e, const struct kv_table *table, uint32_t n,
	uint32_t layer, uint32_t plane)
{
	const struct model *m = e->model;
	char name[NAME_MAX_BYTES];
	uint16_t *at;

	snprintf(name, sizeof name, "layers.%u.%c", layer, plane == 0 ? 'k' : 'v');
	at = sheet_add(s, name, SAFETENSORS_F16, (uint32_t[]){n, m->n_kv_heads, m->head_dim});
	if (!at)
		return -ENOMEM;
	for (uint32_t t = 0; t < n; t++)
		for (uint32_t h = 0; h < m->n_kv_heads; h++, at += m->head_dim)
			memcpy(at, kv_at(e->cache, table, layer, plane, t, h), m->head_dim * sizeof *at);
	return 0;
}

static int add_attention(
	struct sheet *s, const struct engine *e, const double *received, uint32_t n, uint32_t layer)
{
	const struct model *m = e->model;
	char name[NAME_MAX_BYTES];
	float *at;

	snprintf(name, sizeof name, "layers.%u.attention", layer);
	at = sheet_add(s, name, SAFETENSORS_F32, (uint32_t[]){m->n_heads, n, 0});
	if (!at)
		return -ENOMEM;
	received += (size_t)layer * m->n_heads * n;
	for (uint32_t h = 0; h < m->n_heads; h++)
		for (uint32_t t = 0; t < n; t++)
			*at++ = (float)(*received++ / (n - t));
	return 0;
}

static int sheet_fill(struct sheet *s, const struct engine *e, const struct kv_table *table, uint32_t n,
	const double *received)
{
	const struct model *m = e->model;
	int64_t *positions;
	float *inv_freq;
	int r = m->n_layers <= LAYERS_MAX ? 0 : -EINVAL;

	for (uint32_t i = 0; i < 2 * m->n_layers && r == 0; i++)
		r = add_plane(s, e, table, n, i / 2, i % 2);
	for (uint32_t i = 0; received && i < m->n_layers && r == 0; i++)
		r = add_attention(s, e, received, n, i);
	if (r < 0)
		return r;
	positions = sheet_add(s, "positions", SAFETENSORS_I64, (uint32_t[]){n, 0, 0});
	inv_freq = sheet_add(s, "inv_freq", SAFETENSORS_F32, (uint32_t[]){m->head_dim / 2, 0, 0});
	if (!positions || !inv_freq)
		return -ENOMEM;
	for (uint32_t t = 0; t < n; t++)
		positions[t] = t;
	memcpy(inv_freq, m->inv_freq, m->head_dim / 2 * sizeof *inv_freq);
	return 0;
}

static int sheet_write(const struct sheet *s, const struct model *m, const char *path)
{
	const char *const metadata[] = {"format", "cistern-capture-1", "model", m->name, "rope_kind", "half",
		"rope_offset", "0", "rope_scale", "1", NULL};
	void *data;
	size_t len;
	int r = safetensors_write(s->tensors, s->n, metadata, &data, &len);

	if (r < 0)
		return r;
	r = file_write(path, data, len);
	free(data);
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
	double *received =
		o->attention ? calloc((size_t)m->n_layers * m->n_heads * n, sizeof *received) : NULL;
	struct sheet *s = calloc(1, sizeof *s);
	struct kv_table table = {0};
	char path[4096];
	int r = s && (received || !o->attention) ? kv_table_new(e->cache, n, &table) : -ENOMEM;

	snprintf(path, sizeof path, "%s/capture-%04zu.safetensors", o->out, number);
	if (r == 0)
		r = forward_run(e->forward, &(struct forward_request){
						    .cache = e->cache,
						    .table = &table,
						    .tokens = t->list,
						    .n_tokens = n,
						    .received = received,
						    .received_stride = n,
					    });
	if (r == 0)
		r = sheet_fill(s, e, &table, n, received);
	if (r == 0)
		r = sheet_write(s, m, path);
	if (r < 0)
		fprintf(stderr, "cistern-engine: %s, %u tokens: %s\n", path, n, strerror(-r));
	else
		r = line_print(path, n);
	if (s)
		sheet_fini(s);
	free(s);
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
	if (mkdir(o->out, 0755) < 0 && errno != EEXIST) {
		r = -errno;
		fprintf(stderr, "cistern-engine: %s: %s\n", o->out, strerror(-r));
		goto out;
	}
	r = capture_all(&e, o, &text);
out:
	tokens_fini(&text);
	engine_close(&e);
	return r;
}
