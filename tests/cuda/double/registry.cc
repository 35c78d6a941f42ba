/* Our kernels, compiled for the emulation, and where to find them by name. */
#include <string.h>

#include "kernels/cuda/kernels.cu"
#include "tests/cuda/kernels.cu"

#include "tests/cuda/double/simt.h"

namespace
{

template <class A> struct simt_kernel entry(const char *name, void (*)(A), void (*call)(const void *))
{
	return {name, sizeof(A), call};
}

template <class A> void call(void (*kernel)(A), const void *args)
{
	A copy;

	memcpy(&copy, args, sizeof copy);
	kernel(copy);
}

#define KERNEL(name) entry(#name, name, [](const void *args) { call(name, args); }),
const struct simt_kernel registry[] = {
#include "kernels/cuda/list.h"
#include "tests/cuda/list.h"
};
#undef KERNEL

} // namespace

const struct simt_kernel *simt_find(const char *name)
{
	for (const struct simt_kernel &k : registry)
		if (strcmp(k.name, name) == 0)
			return &k;
	return nullptr;
}
