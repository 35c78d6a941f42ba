/*
 * A made-up day of a node that serves several tenants: conversations that come back turn after turn with
 * their whole history before them, system prompts that many conversations share, and documents that are read
 * once. The same seed gives the same trace. Immutable once made.
 */
#ifndef TOOLS_BENCH_EVICT_TRACE_H
#define TOOLS_BENCH_EVICT_TRACE_H

#include <stddef.h>
#include <stdint.h>

struct trace_chunk {
	uint32_t parent; /* 0: none */
	uint32_t depth;  /* of a chunk without a parent: 1 */
};

struct trace {
	struct trace_chunk
		*chunks; /* [n_chunks + 1], from 1 on; a parent's number is lower than its child's */
	uint32_t n_chunks;
	uint32_t *requests; /* the last chunk of each: it wants that and all before it in its chain */
	uint32_t n_requests;
	uint64_t n_wanted; /* chunks, over all requests */
	uint32_t n_conversations, n_documents;
};

struct trace_options {
	uint32_t seed;
	uint32_t n_requests;
	uint32_t n_tenants;
	double document_share; /* of the requests, 0 to 1 */
};

/* -ENOMEM. */
int trace_make(const struct trace_options *options, struct trace *out);
void trace_free(struct trace *t);

#endif
