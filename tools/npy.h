/* Reading numpy's .npy container: one array, row-major, little-endian. A checked view over memory that the
 * caller keeps alive. Pure. Format: numpy.lib.format, versions 1.0 to 3.0. */
#ifndef TOOLS_NPY_H
#define TOOLS_NPY_H

#include <stddef.h>
#include <stdint.h>

enum { NPY_DIMS_MAX = 6 };

struct npy {
	char type;      /* 'f' float, 'i', 'u' integer, 'V' bytes without meaning (bf16 is saved as V2) */
	uint32_t bytes; /* of one element */
	uint32_t n_dims;
	uint64_t dims[NPY_DIMS_MAX];
	const void *data;
	uint64_t len_bytes;
};

/* -EBADMSG with a sentence in why: no array, cut short, column-major, big-endian, of another type. */
int npy_parse(const void *data, size_t len, struct npy *out, char *why, size_t why_len);

#endif
