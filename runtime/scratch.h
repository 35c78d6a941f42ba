/* Memory that grows and is kept between calls, aligned to a cache line. One owner. Zeroed: none. */
#ifndef RUNTIME_SCRATCH_H
#define RUNTIME_SCRATCH_H

#include <stddef.h>

struct scratch {
	void *data;
	size_t len_bytes;
};

/* At least so many bytes; what was there does not survive growth. NULL: out of memory. */
void *scratch_get(struct scratch *s, size_t len_bytes);
void scratch_free(struct scratch *s);

#endif
