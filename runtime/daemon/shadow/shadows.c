#include "runtime/daemon/shadow/shadows.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/shadow/queries.h"

enum { BUCKETS = 256 };

struct shadows {
	struct budget *budget;
	struct shadow *buckets[BUCKETS]; /* by the lowest byte of the hash */
	size_t n;
};

struct shadows *shadows_new(struct budget *b)
{
	struct shadows *s = calloc(1, sizeof *s);

	if (s)
		s->budget = b;
	return s;
}

static struct shadow **link_of(struct shadows *s, const struct shadow *shadow)
{
	struct shadow **link = &s->buckets[shadow->hash % BUCKETS];

	while (*link != shadow)
		link = &(*link)->next;
	return link;
}

static void give_back(struct shadows *s, struct shadow *shadow)
{
	budget_give(s->budget, shadow->bytes);
	query_sample_free(shadow->queries);
	chunk_copy_free(shadow->copy);
	free(shadow);
	s->n--;
}

struct shadows *shadows_free(struct shadows *s)
{
	for (size_t i = 0; s && i < BUCKETS; i++)
		for (struct shadow *shadow = s->buckets[i], *next; shadow; shadow = next) {
			next = shadow->next;
			give_back(s, shadow);
		}
	free(s);
	return NULL;
}

struct shadow *shadows_lend(struct shadows *s, const struct index_key *id, uint64_t hash,
	const struct model *model, uint32_t n_tokens)
{
	const size_t bytes = sizeof(struct shadow) + geometry_token_bytes(&model->geometry) * n_tokens;
	struct shadow *shadow;

	if (s->n == SHADOWS_MAX || shadows_find(s, id, hash) || !budget_take(s->budget, bytes))
		return NULL;
	shadow = calloc(1, sizeof *shadow);
	if (shadow)
		shadow->copy = chunk_copy_new(&model->geometry, n_tokens);
	if (!shadow || !shadow->copy) {
		budget_give(s->budget, bytes);
		free(shadow);
		return NULL;
	}
	shadow->id = *id;
	shadow->hash = hash;
	shadow->model = model;
	shadow->bytes = bytes;
	shadow->n_left = SHADOW_COMPARISONS;
	shadow->state = SHADOW_LENT;
	shadow->next = s->buckets[hash % BUCKETS];
	s->buckets[hash % BUCKETS] = shadow;
	s->n++;
	return shadow;
}

void shadow_fill(struct shadow *shadow, const struct kernels *kernels, const struct codec_chunk *chunk)
{
	chunk_copy_take(shadow->copy, kernels, chunk);
}

/* Ends what it was lent or compared for; false: it is gone. */
static bool settle(struct shadows *s, struct shadow *shadow)
{
	shadow->state = SHADOW_READY;
	if (!shadow->dropped)
		return true;
	*link_of(s, shadow) = shadow->next;
	give_back(s, shadow);
	return false;
}

bool shadows_take(struct shadows *s, struct shadow *shadow)
{
	return settle(s, shadow);
}

struct shadow *shadows_find(const struct shadows *s, const struct index_key *id, uint64_t hash)
{
	struct shadow *shadow = s->buckets[hash % BUCKETS];

	while (shadow && memcmp(&shadow->id, id, sizeof *id) != 0)
		shadow = shadow->next;
	return shadow;
}

void shadows_compared(struct shadows *s, struct shadow *shadow)
{
	if (shadow->n_left)
		shadow->n_left--;
	shadow->dropped |= !shadow->n_left;
	settle(s, shadow);
}

void shadows_drop(struct shadows *s, struct shadow *shadow)
{
	shadow->dropped = true;
	if (shadow->state == SHADOW_READY)
		settle(s, shadow);
}

size_t shadows_drop_if(struct shadows *s, bool (*fn)(const struct shadow *shadow, void *arg), void *arg)
{
	size_t n = 0;

	for (size_t i = 0; i < BUCKETS; i++)
		for (struct shadow *shadow = s->buckets[i], *next; shadow; shadow = next) {
			next = shadow->next;
			if (shadow->dropped || !fn(shadow, arg))
				continue;
			shadows_drop(s, shadow);
			n++;
		}
	return n;
}

static bool is_over(const struct shadow *shadow, void *arg)
{
	/* One that is lent has not begun to wait. */
	return shadow->state == SHADOW_READY && shadow->until_ms <= *(const uint64_t *)arg;
}

size_t shadows_expire(struct shadows *s, uint64_t now_ms)
{
	return shadows_drop_if(s, is_over, &now_ms);
}

size_t shadows_count(const struct shadows *s)
{
	return s->n;
}
