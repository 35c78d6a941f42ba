#include "kernels/cuda/driver.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"

static const char library_name[] = "libcuda.so.1";

static const struct {
	const char *symbol;
	size_t offset;
} entries[] = {
#define DRIVER_ROW(name, symbol) {#symbol, offsetof(struct cuda_driver, name)},
	CUDA_ENTRIES(DRIVER_ROW)
#undef DRIVER_ROW
};

/* POSIX has dlsym's pointer stand for a function; ISO C has no cast for it. */
static int find_entries(struct cuda_driver *d, char *why, size_t why_len)
{
	for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
		void *entry = dlsym(d->library, entries[i].symbol);

		if (!entry)
			return fault_say(-ENODEV, why, why_len,
				"%s lacks %s: the driver is older than this program can use (CUDA 11.4 does)",
				library_name, entries[i].symbol);
		memcpy((char *)d + entries[i].offset, &entry, sizeof entry);
	}
	return 0;
}

const char *driver_error_name(CUresult result)
{
	switch (result) {
#define DRIVER_NAME(name, value)                                                                             \
	case name: return #name;
		CUDA_RESULTS(DRIVER_NAME)
#undef DRIVER_NAME
	}
	return "an error that has no name here";
}

int driver_load(struct cuda_driver **out, char *why, size_t why_len)
{
	struct cuda_driver *d = calloc(1, sizeof *d);
	CUresult result;
	int status;

	if (!d)
		return -ENOMEM;
	d->library = dlopen(library_name, RTLD_NOW | RTLD_LOCAL);
	if (!d->library) {
		status = fault_say(-ENODEV, why, why_len, "no NVIDIA driver: %s", dlerror());
		goto out;
	}
	status = find_entries(d, why, why_len);
	if (status)
		goto out;
	d->emulated = dlsym(d->library, "cistern_driver_double") != NULL;
	result = d->cuInit(0);
	if (result != CUDA_SUCCESS) {
		status = fault_say(-ENODEV, why, why_len,
			"the NVIDIA driver does not start: cuInit says %s (%d)", driver_error_name(result),
			(int)result);
		goto out;
	}
	if (d->cuDriverGetVersion(&d->version) != CUDA_SUCCESS)
		d->version = 0;
	*out = d;
	d = NULL;
out:
	driver_free(d);
	return status;
}

/* The library stays: the driver has threads and exit handlers of its own, and is not made to be unloaded. */
struct cuda_driver *driver_free(struct cuda_driver *d)
{
	free(d);
	return NULL;
}
