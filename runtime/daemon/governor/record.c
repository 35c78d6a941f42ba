#include "runtime/daemon/governor/record.h"

#include <stdlib.h>
#include <string.h>

struct records {
	struct record *ring[RECORDS_KEPT];
	size_t next;
};

struct record *record_new(uint32_t n_tokens)
{
	struct record *r = calloc(1, sizeof *r);

	if (!r)
		return NULL;
	r->n_tokens = n_tokens;
	r->classes = calloc(n_tokens, 1);
	r->scores = calloc(n_tokens, sizeof *r->scores);
	r->by_layer = calloc((size_t)n_tokens * SINKS_LAYERS_MAX, sizeof *r->by_layer);
	r->findings = calloc(n_tokens, sizeof *r->findings);
	if (!r->classes || !r->scores || !r->by_layer || !r->findings)
		return record_free(r);
	return r;
}

struct record *record_free(struct record *r)
{
	if (!r)
		return NULL;
	free(r->classes);
	free(r->scores);
	free(r->by_layer);
	free(r->findings);
	free(r);
	return NULL;
}

struct records *records_new(void)
{
	return calloc(1, sizeof(struct records));
}

struct records *records_free(struct records *r)
{
	for (size_t i = 0; r && i < RECORDS_KEPT; i++)
		record_free(r->ring[i]);
	free(r);
	return NULL;
}

void records_add(struct records *r, struct record *record)
{
	/* What was found takes less than the room there was for it. */
	struct sinks_finding *less =
		realloc(record->findings, (record->n_findings + 1) * sizeof *record->findings);

	if (less)
		record->findings = less;
	for (size_t i = 0; i < RECORDS_KEPT; i++)
		if (r->ring[i] && !memcmp(&r->ring[i]->id, &record->id, sizeof record->id))
			r->ring[i] = record_free(r->ring[i]);
	record_free(r->ring[r->next]);
	r->ring[r->next] = record;
	r->next = (r->next + 1) % RECORDS_KEPT;
}

const struct record *records_find(const struct records *r, const struct index_key *id)
{
	for (size_t i = 0; i < RECORDS_KEPT; i++)
		if (r->ring[i] && !memcmp(&r->ring[i]->id, id, sizeof *id))
			return r->ring[i];
	return NULL;
}

void records_compared(struct records *r, const struct index_key *id, const struct attention_error *e)
{
	struct record *record = (struct record *)records_find(r, id);

	if (record)
		record->attention = *e;
}

static int by_token(const void *a, const void *b)
{
	const struct sinks_finding *x = a, *y = b;

	return (x->token > y->token) - (x->token < y->token);
}

void records_settle(struct records *r, const struct index_key *id, const struct settled *s)
{
	struct record *record = (struct record *)records_find(r, id);
	struct sinks_finding *more;

	if (!record || record->n_tokens != s->info.n_tokens)
		return;
	more = realloc(record->findings, ((size_t)record->n_findings + s->n_findings + 1) * sizeof *more);
	if (!more)
		return;
	record->findings = more;
	memcpy(more + record->n_findings, s->findings, s->n_findings * sizeof *more);
	record->n_findings += s->n_findings;
	qsort(more, record->n_findings, sizeof *more, by_token);
	memcpy(record->classes, s->classes, record->n_tokens);
	record->policy_version = s->info.policy_version;
	record->n_settled += s->n_left;
}

const struct record *records_at(const struct records *r, size_t i)
{
	return r->ring[(r->next + RECORDS_KEPT - 1 - i) % RECORDS_KEPT];
}

const struct record *records_find_prefix(const struct records *r, const uint8_t *key, size_t len)
{
	for (size_t i = 0; i < RECORDS_KEPT; i++) {
		const struct record *record = records_at(r, i);

		if (record && !memcmp(record->id.key, key, len))
			return record;
	}
	return NULL;
}
