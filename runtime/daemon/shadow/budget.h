/* Memory that several things share under one limit. Front thread. */
#ifndef RUNTIME_DAEMON_SHADOW_BUDGET_H
#define RUNTIME_DAEMON_SHADOW_BUDGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct budget {
	uint64_t limit_bytes, used_bytes;
	uint64_t n_refused;
};

/* False, and counted: there is no room. */
static inline bool budget_take(struct budget *b, size_t bytes)
{
	if (bytes > b->limit_bytes - b->used_bytes) {
		b->n_refused++;
		return false;
	}
	b->used_bytes += bytes;
	return true;
}

static inline void budget_give(struct budget *b, size_t bytes)
{
	b->used_bytes -= bytes;
}

#endif
