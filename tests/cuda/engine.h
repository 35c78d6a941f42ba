/*
 * An engine whose cache lies on the GPU, for tests, and an example of how one attaches: it allocates through
 * the driver, exports what it allocated, and makes the same calls as any other engine. Its values are those
 * of tests/integration/engine.h, whose memory here is the host's copy: uploaded before a put, downloaded
 * after a get. Ends the process (99) when a call that must work does not.
 */
#ifndef TESTS_CUDA_ENGINE_H
#define TESTS_CUDA_ENGINE_H

#include "kernels/cuda/driver.h"
#include "tests/integration/engine.h"

enum { G_GROUPS = E_LAYERS }; /* events for groups of layers */

struct gpu_engine {
	struct engine host;
	struct cuda_driver *driver;
	CUcontext context;
	CUstream stream;
	uint32_t kind;    /* enum cistern_memory_kind */
	uint32_t n_parts; /* 1, or one for each layer */
	CUdeviceptr parts[E_LAYERS];
	CUmemGenericAllocationHandle handles[E_LAYERS]; /* CUDA_VMM */
	size_t part_bytes, allocation_bytes;
	CUevent ready, released, groups[G_GROUPS];
	uint32_t ready_id, released_id, groups_id; /* 0: not registered */
};

/* The driver of this process, with a context and a stream. */
void gpu_engine_begin(struct gpu_engine *g);
/* Allocates, connects, registers; with no parts connects alone. */
void gpu_engine_open(
	struct gpu_engine *g, const char *socket, uint32_t order, uint32_t kind, uint32_t n_parts);
/* The allocation alone, and its description; for tests that register it themselves. */
void gpu_engine_allocate(struct gpu_engine *g, uint32_t kind, uint32_t n_parts);
int gpu_engine_register(struct gpu_engine *g);
void gpu_engine_free_memory(struct gpu_engine *g);
/* Makes and registers events. */
void gpu_engine_events(struct gpu_engine *g);
/* Unregisters nothing: the connection ends, and then the memory. */
void gpu_engine_close(struct gpu_engine *g);

/* Between host.kv and the GPU, on the stream; does not wait. */
void gpu_engine_upload(struct gpu_engine *g);
void gpu_engine_download(struct gpu_engine *g);
void gpu_engine_wait(struct gpu_engine *g);
/* Fills the GPU's copy with a byte, on the stream. */
void gpu_engine_fill(struct gpu_engine *g, uint8_t byte);

/* The whole memory as a run of n_tokens. */
struct cistern_run gpu_engine_run(const struct gpu_engine *g, uint32_t n_tokens);

void cu_must(CUresult r, const char *what, int line);
#define CU(call) cu_must((call), #call, __LINE__)

#endif
