#include "runtime/daemon/governor/attention.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct attention {
	struct {
		struct index_key id;
		float *drawing; /* then asked: [2, n_tokens]; NULL: empty */
		uint32_t n_tokens;
	} ring[ATTENTION_KEPT];
	size_t next;
};

struct attention *attention_new(void)
{
	return calloc(1, sizeof(struct attention));
}

struct attention *attention_free(struct attention *a)
{
	for (size_t i = 0; a && i < ATTENTION_KEPT; i++)
		free(a->ring[i].drawing);
	free(a);
	return NULL;
}

static size_t find(const struct attention *a, const struct index_key *id)
{
	size_t i = 0;

	while (i < ATTENTION_KEPT && (!a->ring[i].drawing || memcmp(&a->ring[i].id, id, sizeof *id)))
		i++;
	return i;
}

int attention_set(struct attention *a, const struct index_key *id, const float *drawing, const float *asked,
	uint32_t n_tokens)
{
	float *copy = malloc(2 * (size_t)n_tokens * sizeof *copy);
	size_t at = find(a, id);

	if (!copy)
		return -ENOMEM;
	memcpy(copy, drawing, n_tokens * sizeof *copy);
	memcpy(copy + n_tokens, asked, n_tokens * sizeof *copy);
	if (at == ATTENTION_KEPT) {
		at = a->next;
		a->next = (a->next + 1) % ATTENTION_KEPT;
	}
	free(a->ring[at].drawing);
	a->ring[at].id = *id;
	a->ring[at].drawing = copy;
	a->ring[at].n_tokens = n_tokens;
	return 0;
}

const float *attention_seen(const struct attention *a, const struct index_key *id, uint32_t n_tokens)
{
	const size_t at = find(a, id);

	return at < ATTENTION_KEPT && a->ring[at].n_tokens == n_tokens ? a->ring[at].drawing : NULL;
}
