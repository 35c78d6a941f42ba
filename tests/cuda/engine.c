#include "tests/cuda/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void cu_must(CUresult r, const char *what, int line)
{
	if (r == CUDA_SUCCESS)
		return;
	fprintf(stderr, "line %d: %s: %d\n", line, what, (int)r);
	_exit(99);
}

void gpu_engine_begin(struct gpu_engine *g)
{
	char why[256] = "";
	CUdevice device;

	if (driver_load(&g->driver, why, sizeof why)) {
		fprintf(stderr, "%s\n", why);
		_exit(99);
	}
	CU(g->driver->cuDeviceGet(&device, 0));
	CU(g->driver->cuDevicePrimaryCtxRetain(&g->context, device));
	CU(g->driver->cuCtxSetCurrent(g->context));
	CU(g->driver->cuStreamCreateWithPriority(&g->stream, CU_STREAM_NON_BLOCKING, 0));
}

static void allocate_shared(struct gpu_engine *g, uint32_t i)
{
	const CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
	const CUmemAccessDesc access = {
		.location = prop.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	size_t granularity;

	CU(g->driver->cuMemGetAllocationGranularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
	g->allocation_bytes = (g->part_bytes + granularity - 1) / granularity * granularity;
	CU(g->driver->cuMemCreate(&g->handles[i], g->allocation_bytes, &prop, 0));
	CU(g->driver->cuMemAddressReserve(&g->parts[i], g->allocation_bytes, 0, 0, 0));
	CU(g->driver->cuMemMap(g->parts[i], g->allocation_bytes, 0, g->handles[i], 0));
	CU(g->driver->cuMemSetAccess(g->parts[i], g->allocation_bytes, &access, 1));
}

void gpu_engine_allocate(struct gpu_engine *g, uint32_t kind, uint32_t n_parts)
{
	g->kind = kind;
	g->n_parts = n_parts;
	g->part_bytes = g->host.size_bytes / n_parts;
	for (uint32_t i = 0; i < n_parts; i++) {
		if (kind == CISTERN_MEMORY_CUDA_VMM) {
			allocate_shared(g, i);
		} else {
			g->allocation_bytes = g->part_bytes;
			CU(g->driver->cuMemAlloc(&g->parts[i], g->allocation_bytes));
		}
	}
}

int gpu_engine_register(struct gpu_engine *g)
{
	struct cistern_layout layouts[E_LAYERS * 2];
	struct cistern_device_part parts[E_LAYERS] = {0};
	struct cistern_plane planes[2];
	struct cistern_model model;
	float inv_freq[E_DIM / 2];
	struct cistern_memory memory = {.model_id = g->host.model_id,
		.fd = -1,
		.size_bytes = g->host.size_bytes,
		.block_tokens = E_BLOCK,
		.n_blocks = E_BLOCKS,
		.layouts = layouts,
		.kind = g->kind,
		.n_parts = g->n_parts,
		.parts = parts};
	int r;

	engine_describe(&model, planes, inv_freq, layouts);
	for (uint32_t i = 0; i < g->n_parts; i++) {
		parts[i].address = g->parts[i];
		parts[i].size_bytes = g->part_bytes;
		parts[i].fd = -1;
		if (g->kind == CISTERN_MEMORY_CUDA_VMM) {
			parts[i].allocation_bytes = g->allocation_bytes;
			CU(g->driver->cuMemExportToShareableHandle(
				&parts[i].fd, g->handles[i], CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
		} else {
			CUipcMemHandle handle;

			CU(g->driver->cuIpcGetMemHandle(&handle, g->parts[i]));
			memcpy(parts[i].handle, &handle, sizeof handle);
		}
	}
	r = cistern_register_memory(g->host.c, &memory, &g->host.memory_id);
	for (uint32_t i = 0; i < g->n_parts; i++)
		if (parts[i].fd >= 0)
			close(parts[i].fd);
	return r;
}

void gpu_engine_free_memory(struct gpu_engine *g)
{
	for (uint32_t i = 0; i < g->n_parts; i++) {
		if (g->kind == CISTERN_MEMORY_CUDA_VMM) {
			CU(g->driver->cuMemUnmap(g->parts[i], g->allocation_bytes));
			CU(g->driver->cuMemAddressFree(g->parts[i], g->allocation_bytes));
			CU(g->driver->cuMemRelease(g->handles[i]));
		} else {
			CU(g->driver->cuMemFree(g->parts[i]));
		}
	}
	g->n_parts = 0;
}

void gpu_engine_open(
	struct gpu_engine *g, const char *socket, uint32_t order, uint32_t kind, uint32_t n_parts)
{
	const struct cistern_options options = {.socket_path = socket};
	struct cistern_layout layouts[E_LAYERS * 2];
	struct cistern_plane planes[2];
	struct cistern_model model;
	float inv_freq[E_DIM / 2];

	*g = (struct gpu_engine){
		.host = {.fd = -1, .size_bytes = (size_t)E_LAYERS * 2 * E_BLOCKS * E_BLOCK * E_WIDTH * 2}};
	for (uint32_t i = 0; i < E_BLOCKS; i++)
		g->host.blocks[i] = (i * 37 + order * 11) % E_BLOCKS;
	gpu_engine_begin(g);
	g->host.kv = calloc(1, g->host.size_bytes);
	MUST(g->host.kv);
	if (n_parts)
		gpu_engine_allocate(g, kind, n_parts);
	MUST_EQUAL(cistern_connect(&options, &g->host.c), 0);
	MUST_EQUAL(cistern_chunk_tokens(g->host.c), E_CHUNK);
	engine_describe(&model, planes, inv_freq, layouts);
	MUST_EQUAL(cistern_register_model(g->host.c, &model, &g->host.model_id), 0);
	if (n_parts)
		MUST_EQUAL(gpu_engine_register(g), 0);
}

static CUevent make_event(struct gpu_engine *g, uint8_t handle[64])
{
	CUipcEventHandle h;
	CUevent event;

	CU(g->driver->cuEventCreate(&event, CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS));
	CU(g->driver->cuIpcGetEventHandle(&h, event));
	memcpy(handle, &h, sizeof h);
	return event;
}

void gpu_engine_events(struct gpu_engine *g)
{
	uint8_t handles[2 + G_GROUPS][64];

	g->ready = make_event(g, handles[0]);
	g->released = make_event(g, handles[1]);
	for (uint32_t i = 0; i < G_GROUPS; i++)
		g->groups[i] = make_event(g, handles[2 + i]);
	MUST_EQUAL(cistern_register_events(g->host.c, handles[0], 2, &g->ready_id), 0);
	g->released_id = g->ready_id + 1;
	MUST_EQUAL(cistern_register_events(g->host.c, handles[2], G_GROUPS, &g->groups_id), 0);
}

void gpu_engine_close(struct gpu_engine *g)
{
	cistern_close(g->host.c);
	gpu_engine_free_memory(g);
	free(g->host.kv);
	CU(g->driver->cuStreamDestroy(g->stream));
}

void gpu_engine_upload(struct gpu_engine *g)
{
	for (uint32_t i = 0; i < g->n_parts; i++)
		CU(g->driver->cuMemcpyHtoDAsync(
			g->parts[i], (uint8_t *)g->host.kv + i * g->part_bytes, g->part_bytes, g->stream));
}

void gpu_engine_download(struct gpu_engine *g)
{
	for (uint32_t i = 0; i < g->n_parts; i++)
		CU(g->driver->cuMemcpyDtoHAsync(
			(uint8_t *)g->host.kv + i * g->part_bytes, g->parts[i], g->part_bytes, g->stream));
}

void gpu_engine_wait(struct gpu_engine *g)
{
	CU(g->driver->cuStreamSynchronize(g->stream));
}

void gpu_engine_fill(struct gpu_engine *g, uint8_t byte)
{
	for (uint32_t i = 0; i < g->n_parts; i++)
		CU(g->driver->cuMemsetD8Async(g->parts[i], byte, g->part_bytes, g->stream));
}

struct cistern_run gpu_engine_run(const struct gpu_engine *g, uint32_t n_tokens)
{
	return (struct cistern_run){.memory_id = g->host.memory_id,
		.n_tokens = n_tokens,
		.keys = g->host.keys,
		.n_chunks = (n_tokens + E_CHUNK - 1) / E_CHUNK,
		.n_blocks = (n_tokens + E_BLOCK - 1) / E_BLOCK,
		.blocks = g->host.blocks};
}
