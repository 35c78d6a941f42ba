#include "tools/bench-evict/trace.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

enum {
	PROMPTS = 6,       /* of each tenant */
	TALKS_AT_ONCE = 8, /* of each tenant, on average: how many are between two turns */
	THINK_MEAN = 1,    /* time between two turns of a conversation, the unit of time */
};

struct talk {
	double at; /* of its next turn */
	uint32_t leaf;
};

struct maker {
	struct trace *t;
	size_t chunks_capacity;
	uint64_t random;
	uint32_t *prompts; /* [n_tenants][PROMPTS]: their last chunks */
	struct talk *talks;
	size_t n_talks, talks_capacity;
	bool failed;
};

/* SplitMix64 (G. Steele et al., OOPSLA 2014). */
static uint64_t next_random(struct maker *m)
{
	uint64_t z = m->random += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static double uniform(struct maker *m)
{
	return (double)(next_random(m) >> 11) * 0x1p-53;
}

static uint32_t between(struct maker *m, uint32_t low, uint32_t high)
{
	return low + (uint32_t)(uniform(m) * (high - low + 1));
}

static double exponential(struct maker *m, double mean)
{
	return -mean * log(1 - uniform(m));
}

/* 0 to n - 1, the k-th as often as 1 / (k + 1). */
static uint32_t zipf(struct maker *m, uint32_t n)
{
	double sum = 0, at;
	uint32_t k = 0;

	for (uint32_t i = 1; i <= n; i++)
		sum += 1.0 / i;
	for (at = uniform(m) * sum; k + 1 < n && (at -= 1.0 / (k + 1)) >= 0; k++)
		;
	return k;
}

/* A chain of n more chunks behind parent; its last. */
static uint32_t grow(struct maker *m, uint32_t parent, uint32_t n)
{
	struct trace *t = m->t;

	for (; n && !m->failed; n--) {
		if (t->n_chunks + 1 >= m->chunks_capacity) {
			const size_t more = m->chunks_capacity * 2 + 1024;
			struct trace_chunk *chunks = reallocarray(t->chunks, more, sizeof *chunks);

			if (!chunks) {
				m->failed = true;
				return parent;
			}
			t->chunks = chunks;
			m->chunks_capacity = more;
		}
		t->chunks[++t->n_chunks] = (struct trace_chunk){
			.parent = parent, .depth = parent ? t->chunks[parent].depth + 1 : 1};
		parent = t->n_chunks;
	}
	return parent;
}

static void ask(struct maker *m, uint32_t leaf)
{
	struct trace *t = m->t;

	t->requests[t->n_requests++] = leaf;
	t->n_wanted += t->chunks[leaf].depth;
}

static void add_talk(struct maker *m, double at, uint32_t leaf)
{
	if (m->n_talks == m->talks_capacity) {
		const size_t more = m->talks_capacity * 2 + 64;
		struct talk *talks = reallocarray(m->talks, more, sizeof *talks);

		if (!talks) {
			m->failed = true;
			return;
		}
		m->talks = talks;
		m->talks_capacity = more;
	}
	m->talks[m->n_talks++] = (struct talk){.at = at, .leaf = leaf};
}

/* The conversation whose turn is next; there is one. There are few enough to look at all. */
static size_t next_talk(const struct maker *m)
{
	size_t best = 0;

	for (size_t i = 1; i < m->n_talks; i++)
		if (m->talks[i].at < m->talks[best].at)
			best = i;
	return best;
}

static void take_turn(struct maker *m)
{
	const size_t i = next_talk(m);
	struct talk *talk = &m->talks[i];

	talk->leaf = grow(m, talk->leaf, between(m, 1, 6));
	ask(m, talk->leaf);
	/* Six turns on average; now and then somebody leaves for a long while and comes back. */
	if (uniform(m) < 1.0 / 6)
		m->talks[i] = m->talks[--m->n_talks];
	else
		talk->at += exponential(m, uniform(m) < 0.1 ? 10 * THINK_MEAN : THINK_MEAN);
}

int trace_make(const struct trace_options *options, struct trace *out)
{
	struct trace t = {0};
	struct maker m = {.t = &t, .random = options->seed};
	const uint32_t n_prompts = options->n_tenants * PROMPTS;
	double now = 0;

	t.requests = calloc(options->n_requests, sizeof *t.requests);
	m.prompts = calloc(n_prompts, sizeof *m.prompts);
	m.failed = !t.requests || !m.prompts;
	for (uint32_t i = 0; !m.failed && i < n_prompts; i++)
		m.prompts[i] = grow(&m, 0, between(&m, 2, 16));
	while (!m.failed && t.n_requests < options->n_requests) {
		if (uniform(&m) < options->document_share) {
			const uint32_t leaf = grow(&m, 0, between(&m, 16, 64));

			t.n_documents++;
			if (!m.failed)
				ask(&m, leaf);
			continue;
		}
		if (m.n_talks < (size_t)options->n_tenants * TALKS_AT_ONCE) {
			const uint32_t tenant = zipf(&m, options->n_tenants);

			t.n_conversations++;
			add_talk(&m, now + exponential(&m, THINK_MEAN),
				m.prompts[tenant * PROMPTS + zipf(&m, PROMPTS)]);
			continue;
		}
		now = m.talks[next_talk(&m)].at;
		take_turn(&m);
	}
	free(m.prompts);
	free(m.talks);
	if (m.failed) {
		trace_free(&t);
		return -ENOMEM;
	}
	*out = t;
	return 0;
}

void trace_free(struct trace *t)
{
	free(t->chunks);
	free(t->requests);
	*t = (struct trace){0};
}
