#include "runtime/daemon/shadow/queries.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/observe.h"

static uint32_t position_at(const uint8_t *positions, uint32_t i)
{
	uint32_t position;

	memcpy(&position, positions + i * sizeof position, sizeof position);
	return position;
}

/* The first query behind. */
static uint32_t first_behind(const uint8_t *positions, uint32_t n, uint64_t end)
{
	uint32_t low = 0, high = n;

	while (low < high) {
		const uint32_t middle = low + (high - low) / 2;

		if (position_at(positions, middle) >= end)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

/* No sample takes more than an eighth of the budget: of a large model fewer queries are compared. */
static uint32_t n_affordable(const struct budget *b, size_t query_bytes)
{
	const uint64_t n = b->limit_bytes / 8 / query_bytes;

	return n < QUERIES_SAMPLED ? (uint32_t)n : QUERIES_SAMPLED;
}

struct query_sample *query_sample_new(struct budget *b, const struct geometry *g,
	const struct wire_observation *head, const uint8_t *positions, uint64_t end, uint64_t draw)
{
	const struct plane *key = &g->planes[0];
	const size_t query = (size_t)head->n_layers * head->n_heads * key->dim * dtype_bytes(key->dtype);
	const uint32_t first = first_behind(positions, head->n_queries, end), n = head->n_queries - first;
	const uint32_t affordable = n_affordable(b, query), n_picked = n < affordable ? n : affordable;
	struct query_sample *s;

	if (!n_picked || !budget_take(b, sizeof *s + n_picked * query))
		return NULL;
	s = calloc(1, sizeof *s);
	if (s)
		s->data = malloc(n_picked * query);
	if (!s || !s->data) {
		budget_give(b, sizeof *s + n_picked * query);
		free(s);
		return NULL;
	}
	s->budget = b;
	s->bytes = sizeof *s + n_picked * query;
	/* One of every n / n_picked, from a start anywhere in the first of these. */
	for (uint32_t i = 0; i < n_picked; i++)
		s->picked[i] = first + (uint32_t)((i * (uint64_t)n + draw % n) / n_picked);
	s->queries = (struct attention_queries){.n_queries = n_picked,
		.n_heads = head->n_heads,
		.first_layer = head->first_layer,
		.n_layers = head->n_layers,
		.scale = observation_scale(head, key->dim),
		.values = s->data};
	return s;
}

void query_sample_fill(struct query_sample *s, const struct geometry *g, const struct wire_observation *head,
	const uint8_t *data)
{
	const struct plane *key = &g->planes[0];
	const size_t query = (size_t)head->n_heads * key->dim * dtype_bytes(key->dtype);
	const uint8_t *values = data + head->n_queries * sizeof(uint32_t);
	uint8_t *to = s->data;

	for (uint32_t l = 0; l < head->n_layers; l++)
		for (uint32_t i = 0; i < s->queries.n_queries; i++, to += query)
			memcpy(to, values + ((size_t)l * head->n_queries + s->picked[i]) * query, query);
}

struct query_sample *query_sample_free(struct query_sample *s)
{
	if (s) {
		budget_give(s->budget, s->bytes);
		free(s->data);
		free(s);
	}
	return NULL;
}

/* ---- those that wait ---- */

static struct query_sample **find(struct waiting_queries *w, const struct index_key *id)
{
	struct query_sample **link = &w->first;

	while (*link && memcmp(&(*link)->id, id, sizeof *id) != 0)
		link = &(*link)->next;
	return link;
}

bool waiting_queries_add(struct waiting_queries *w, struct query_sample *s)
{
	query_sample_free(waiting_queries_take(w, &s->id));
	if (w->n == QUERIES_WAITING_MAX) {
		query_sample_free(s);
		return false;
	}
	s->next = w->first;
	w->first = s;
	w->n++;
	return true;
}

bool waiting_queries_has(const struct waiting_queries *w, const struct index_key *id)
{
	return *find((struct waiting_queries *)w, id) != NULL;
}

struct query_sample *waiting_queries_take(struct waiting_queries *w, const struct index_key *id)
{
	struct query_sample **link = find(w, id), *s = *link;

	if (s) {
		*link = s->next;
		w->n--;
	}
	return s;
}

/* Frees those that are over by now, or of the namespace, where one is given. */
static void sweep(struct waiting_queries *w, uint64_t now_ms, const uint8_t *name_space)
{
	for (struct query_sample **link = &w->first; *link;) {
		struct query_sample *s = *link;

		if (name_space ? memcmp(s->name_space, name_space, sizeof s->name_space) != 0
			       : s->until_ms > now_ms) {
			link = &s->next;
			continue;
		}
		*link = s->next;
		query_sample_free(s);
		w->n--;
	}
}

void waiting_queries_expire(struct waiting_queries *w, uint64_t now_ms)
{
	sweep(w, now_ms, NULL);
}

void waiting_queries_forget(struct waiting_queries *w, const uint8_t name_space[16])
{
	sweep(w, 0, name_space);
}
