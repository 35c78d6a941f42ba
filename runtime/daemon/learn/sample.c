#include "runtime/daemon/learn/sample.h"

#include <string.h>
#include <time.h>

#include "policy/policy.h"

/* The worker's own time: that it has to let others go first is not the copy's doing. */
static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void sample_fill(struct sample *s, const struct kernels *kernels, const struct codec_chunk *chunk,
	const uint8_t *classes)
{
	const uint64_t start = now_ns();

	chunk_copy_take(s->copy, kernels, chunk);
	memcpy(s->classes, classes, chunk->n_tokens);
	s->n_coded = 0;
	for (uint32_t t = 0; t < chunk->n_tokens; t++)
		s->n_coded += !token_class_is_raw(classes[t]);
	s->copy_ns = now_ns() - start;
	s->filled = true;
}
