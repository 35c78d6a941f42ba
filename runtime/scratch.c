#include "runtime/scratch.h"

#include <stdlib.h>

void *scratch_get(struct scratch *s, size_t len_bytes)
{
	const size_t wanted = (len_bytes + 4095) & ~(size_t)4095;

	if (s->len_bytes < len_bytes || !s->data) {
		free(s->data);
		s->data = aligned_alloc(64, wanted ? wanted : 4096);
		s->len_bytes = s->data ? (wanted ? wanted : 4096) : 0;
	}
	return s->data;
}

void scratch_free(struct scratch *s)
{
	free(s->data);
	*s = (struct scratch){0};
}
