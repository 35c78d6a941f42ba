/*
 * libcistern: the client side of a Cistern daemon.
 *
 * An inference engine connects, describes its model (once) and the memory that holds its paged KV cache
 * (once per allocation), and from then on queues requests: look up how much of a prompt is cached, put the
 * KV of computed tokens, get the KV of cached ones. Requests go through a ring in shared memory; the daemon
 * reads from and writes to the engine's memory itself, so no KV byte is copied by this library.
 *
 * Threads: a struct cistern belongs to one thread at a time; it has no lock. Different handles are
 * independent. Blocking: only the calls marked "blocks" do. Errors: calls return 0 (or a count) or a negative
 * errno value; out-parameters are written only on success; cistern_error() has a sentence about the last
 * failure. Plain structs, no macros: usable from C11, C++ and ctypes. Every struct must be zeroed before it
 * is filled in.
 */
#ifndef CISTERN_H
#define CISTERN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cistern; /* a connection, opaque */

enum cistern_dtype {
	CISTERN_F16 = 1,
	CISTERN_BF16 = 2,
	CISTERN_F32 = 3,
};

/* How positions were rotated into a plane. HALF pairs feature i with i + rope_dim/2 (Llama, Qwen, as Hugging
 * Face does), INTERLEAVED pairs 2i with 2i+1 (GPT-J, the original RoFormer). */
enum cistern_rope {
	CISTERN_ROPE_NONE = 0,
	CISTERN_ROPE_HALF = 1,
	CISTERN_ROPE_INTERLEAVED = 2,
};

/* Flags of a request. */
enum cistern_request_flag {
	CISTERN_LAYERWISE =
		1, /* get: a completion with CISTERN_MORE after each layer group, in layer order */
};

/* How a put wants its chunks kept: as the namespace's policy says, or with one of the policy's presets laid
 * over it for this request. */
enum cistern_preset {
	CISTERN_PRESET_NONE = 0,
	CISTERN_PRESET_ARCHIVAL = 1, /* close to the original, larger */
	CISTERN_PRESET_BALANCED = 2,
	CISTERN_PRESET_COMPACT = 3, /* small, less close */
};

/* Flags of a completion. */
enum cistern_completion_flag {
	CISTERN_MORE = 1, /* further completions of the same request follow */
};

/* ---- connection ---------------------------------------------------------------------------------------- */

struct cistern_options {
	const char *socket_path; /* NULL: $CISTERN_SOCKET, else /run/cistern/cistern.sock */
	const char *name_space;  /* the tenant; NULL: "default" */
	uint32_t n_entries;      /* depth of the submission ring, a power of two; 0: 256 */
	uint64_t arena_bytes;    /* shared memory for keys and block tables in flight; 0: 1 MiB */
	uint32_t spin_us;        /* how long cistern_wait() polls the ring before it sleeps; 0: not at all */
};

/* Connects and sets up the shared segment. options may be NULL. Blocks for the handshake (at most 5 s).
 * -ENOENT, -ECONNREFUSED: no daemon there; -EPROTO: it speaks another version; -EACCES: this uid may not use
 * the namespace; -ESHUTDOWN: it is about to be stopped and takes no new engines; -EINVAL: options out of
 * range; -ETIMEDOUT. *out is owned by the caller. */
int cistern_connect(const struct cistern_options *options, struct cistern **out);

/* After the daemon has gone (calls return -ENOTCONN) and come back: connects anew, with the options of the
 * first time, and registers every model and memory again; their ids stay what they were, and so does the
 * handle. Requests that were in flight are forgotten: no completions of theirs will come, and their memory
 * may be used again. What was synced is found again; pins are gone. What cistern_fd returned is closed: ask
 * for it and watch it anew. Blocks (one handshake of at most 5 s, and a round trip for each registration).
 * Errors as of cistern_connect and the registrations, and -ESTALE: the daemon has another chunk size now; the
 * handle is then still without a connection, and this may be tried again. A connection that still stands is
 * given up for a new one. */
int cistern_reconnect(struct cistern *c);

/* Closes the connection; requests still in flight are dropped by the daemon, cached chunks stay. NULL is
 * fine. */
void cistern_close(struct cistern *c);

/* A sentence about the last call that failed on c; with NULL, about this thread's last failed
 * cistern_connect, cistern_control or cistern_statistics. Valid until the next call. Never NULL. */
const char *cistern_error(const struct cistern *c);

/* Tokens in a chunk, the unit of keys; set by the daemon. Constant for the connection. */
uint32_t cistern_chunk_tokens(const struct cistern *c);

/* ---- what the engine has: its model and its memory ------------------------------------------------------
 */

/* One cached tensor kind: K, V, or the single latent plane of an MLA model. One token in one layer has the
 * shape [n_heads, dim]. rope_* describe the rotation that the cached values carry: features
 * [rope_offset, rope_offset + rope_dim) of every head are rotated by position * inv_freq[i]; cos and sin are
 * multiplied by rope_scale (0 means 1; YaRN's attention factor otherwise). inv_freq has rope_dim / 2 entries.
 */
struct cistern_plane {
	uint32_t n_heads;
	uint32_t dim;
	uint32_t dtype;     /* enum cistern_dtype */
	uint32_t rope_kind; /* enum cistern_rope */
	uint32_t rope_offset;
	uint32_t rope_dim;
	float rope_scale;
	const float *inv_freq; /* borrowed for the call */
};

struct cistern_model {
	const char *name; /* at most 127 bytes; part of the model's identity, as is every field here */
	uint32_t n_layers;
	uint32_t n_planes;                  /* 1 or 2 */
	const struct cistern_plane *planes; /* [n_planes], borrowed for the call */
	uint32_t tp_rank;
	uint32_t tp_size; /* 0 means 1 */
};

/* Registers a model; the same description always names the same model, across connections and restarts.
 * Blocks (one socket round trip). -EINVAL: a field is out of range, cistern_error() says which. */
int cistern_register_model(struct cistern *c, const struct cistern_model *model, uint32_t *model_id);

/* Where one layer of one plane lies in a region. Element (block b, token t, head h, feature d) is at byte
 *   base + b * block_stride + t * token_stride + h * head_stride + d * sizeof(dtype)
 * so NHD, HND, fused [2, blocks, ...] and per-layer tensors are all the same thing. */
struct cistern_layout {
	uint64_t base;
	uint64_t block_stride;
	uint64_t token_stride;
	uint64_t head_stride;
};

/* Where memory lies. libcistern needs no CUDA: what the engine got from the driver passes through as bytes.
 */
enum cistern_memory_kind {
	CISTERN_MEMORY_MEMFD = 0,
	CISTERN_MEMORY_CUDA_IPC = 2, /* on a GPU, allocations with cuIpcGetMemHandle's handles */
	CISTERN_MEMORY_CUDA_VMM = 3, /* on a GPU, made by cuMemCreate, with descriptors */
};

/* Bytes [offset_bytes, offset_bytes + size_bytes) of one allocation on a GPU. */
struct cistern_device_part {
	uint8_t handle[64];        /* CUDA_IPC: the CUipcMemHandle */
	uint64_t address;          /* of the allocation, as the engine has it */
	uint64_t allocation_bytes; /* CUDA_VMM: of the whole allocation */
	uint64_t offset_bytes;
	uint64_t size_bytes;
	int fd; /* CUDA_VMM: of cuMemExportToShareableHandle; the caller's, who may close it after the call */
	uint32_t reserved;
};

/* A paged KV allocation. In shared memory: fd is a memfd sealed with F_SEAL_SHRINK (cistern_memory_create
 * makes one); the daemon maps it, the caller keeps its own descriptor and may close it after the call.
 *
 * On a GPU: parts (CUDA_VMM: 4 at most), which are the region one behind the other, so that size_bytes is the
 * sum of theirs; each layout lies inside one part. The allocations must stay until
 * cistern_unregister_memory, cistern_close or the daemon's end: free them only then. */
struct cistern_memory {
	uint32_t model_id;
	int fd; /* MEMFD */
	uint64_t size_bytes;
	uint32_t block_tokens; /* tokens in a block */
	uint32_t n_blocks;
	const struct cistern_layout *layouts; /* [n_layers][n_planes], borrowed for the call */
	uint32_t kind;                        /* enum cistern_memory_kind */
	uint32_t n_parts;
	const struct cistern_device_part *parts; /* borrowed for the call */
	uint8_t uuid[16];                        /* of the GPU (cuDeviceGetUuid); all zero: the daemon's */
};

/* Registers memory for put and get. Blocks (one socket round trip). -EINVAL: the layout reaches outside the
 * region, overlaps itself, or is misaligned, or a handle names no memory; -EPERM: the memfd is not sealed
 * against shrinking; -ENOENT: no such model; -ENOSPC: a limit of the daemon; -ENODEV: the daemon does not use
 * this GPU, or none: shared memory will do. */
int cistern_register_memory(struct cistern *c, const struct cistern_memory *memory, uint32_t *memory_id);

/* Takes the registration back; returns when the daemon has let go of the mapping. Blocks until requests in
 * flight on it are done. -ENOENT: no such registration. */
int cistern_unregister_memory(struct cistern *c, uint32_t memory_id);

/* Registers n events of a GPU, made with CU_EVENT_INTERPROCESS, by the handles that cuIpcGetEventHandle
 * gives: n x 64 bytes. *first_id is the first one's id, the others' follow. Each must live until
 * cistern_unregister_events, cistern_close or the daemon's end.
 *
 * One rule for all of them: whoever waits for an event waits for what had been recorded last when it began to
 * wait. So an event must have been recorded, by the call in its own process, before the other process is told
 * to wait for it: the engine records a request's ready event before cistern_submit, and waits for an event
 * of the daemon's only after the completion that says it was recorded. Until then the same event must not be
 * named in another request.
 *
 * Blocks (one socket round trip). -EINVAL: a handle names no event; -ENODEV: the daemon uses no GPU; -ENOSPC:
 * 1024 events a connection. */
int cistern_register_events(struct cistern *c, const void *handles, uint32_t n, uint32_t *first_id);

/* Takes events back, as they were registered: first_id and all of them. Blocks until the requests in flight
 * that name them are done. -ENOENT: no such registration. */
int cistern_unregister_events(struct cistern *c, uint32_t first_id);

/* Makes a sealed memfd of size_bytes and maps it shared and writable. The caller owns both and ends them with
 * close and munmap. -errno of the system call that failed. */
int cistern_memory_create(const char *name, uint64_t size_bytes, int *fd, void **addr);

/* ---- keys ------------------------------------------------------------------------------------------------
 */

/* The name of a chunk: depends on its tokens and on every token before them. Engines that have block hashes
 * of their own may use those instead (32 bytes, unique). */
struct cistern_key {
	uint8_t bytes[32];
};

/* The key that stands before the first chunk; salt (NULL for none) keeps unrelated caches apart. */
void cistern_key_root(const void *salt, size_t salt_len, struct cistern_key *out);

/* Keys of consecutive chunks: tokens [0, n_tokens) cut into runs of chunk_tokens, the last one maybe shorter.
 * parent is the key before them. keys has room for ceil(n_tokens / chunk_tokens). Returns how many. */
size_t cistern_key_chain(const struct cistern_key *parent, const uint32_t *tokens, size_t n_tokens,
	uint32_t chunk_tokens, struct cistern_key *keys);

/* ---- requests --------------------------------------------------------------------------------------------
 */

/* A run of tokens in registered memory, cut into chunks of cistern_chunk_tokens(), the last one maybe
 * shorter. Token i of the run lies in block blocks[(block_offset + i) / block_tokens] at token (block_offset
 * + i) % block_tokens. */
struct cistern_run {
	uint32_t memory_id;
	uint32_t n_tokens;
	uint64_t position;              /* of the first token in its sequence: a multiple of the chunk size */
	const struct cistern_key *keys; /* [n_chunks], copied before the call returns */
	uint32_t n_chunks;              /* ceil(n_tokens / chunk size) */
	uint32_t n_blocks;
	const uint32_t *blocks; /* [n_blocks], copied before the call returns */
	uint32_t block_offset;  /* tokens to skip in the first block */
	uint32_t flags;         /* enum cistern_request_flag */
	uint32_t preset;        /* put: enum cistern_preset */
	/* Memory on a GPU: events by their ids, 0 for none (cistern_register_events). Without, the memory is
	 * touched when the request is taken, and used by others after its last completion. */
	uint32_t ready_event;    /* waited for before the memory is touched */
	uint32_t released_event; /* put: recorded when the source may be overwritten, long before it is
				    encoded; a completion with CISTERN_MORE says that it was recorded */
	uint32_t first_event;    /* get: n_events of them, of one registration. One is recorded for each group
				    of layers in order, the last one for all groups beyond n_events; a
				    completion with CISTERN_MORE and n_layers says that it was recorded */
	uint32_t n_events;
};

/* Every request below only queues: it never blocks and returns 0, or -EAGAIN when the ring or the arena is
 * full now (submit, take completions, try again), -ENOSPC when the arena could never hold it, -EINVAL,
 * -ENOTCONN when the daemon has gone. The outcome arrives as a completion with the same user_data. */

/* Does nothing; measures the way to the daemon and back. */
int cistern_nop(struct cistern *c, uint64_t user_data);

/* How many chunks of this chain, from its start, are cached. Completion: n_chunks. */
int cistern_lookup(struct cistern *c, uint32_t model_id, const struct cistern_key *keys, uint32_t n_chunks,
	uint64_t user_data);

/* Caches the run. parent is the key before keys[0] (NULL: the run opens the sequence). The memory must not
 * change before the completion, or until released_event has fired. The run's last tokens are taken for the
 * end of the sequence as it is known now, and the policy's window protects them. Completion: n_chunks kept;
 * status -ENOSPC when the pool could not take them all; chunks that are already cached count as kept. */
int cistern_put(struct cistern *c, const struct cistern_run *run, const struct cistern_key *parent,
	uint64_t user_data);

/* Attention that an engine saw, for a sequence whose keys lie in registered memory. */
enum cistern_observation_kind {
	CISTERN_QUERIES = 1, /* recent query vectors */
	CISTERN_SUMS = 2,    /* sums of attention weights, per token */
};

struct cistern_observation {
	uint32_t kind;
	/* QUERIES: n_queries vectors of each of n_layers layers from first_layer on, as they meet the cached
	 * keys (rotated): values is [n_layers, n_queries, n_heads, dim] of the key plane's dtype, n_heads a
	 * multiple of the plane's; positions: [n_queries], rising. scale: of the scores, 0 for 1 / sqrt(dim).
	 * A few of each chunk are enough, every sixteenth, say; its last 16 tell less. A chunk is judged by
	 * the nearest ones behind it.
	 * SUMS: sums is [n_tokens], the attention that each token of the run was given by the sequence's last
	 * n_queries queries, added up over these, in the layer and head where that is most. */
	uint32_t n_queries;
	uint32_t n_heads;
	uint32_t first_layer;
	uint32_t n_layers;
	float scale;
	const uint32_t *positions;
	const void *values;
	const float *sums;
};

/* Tells the daemon where attention rested, so that it finds the tokens that must not be touched: chunks put
 * after the completion are classified by it, and the model's detector learns from it. run: the whole
 * sequence, from position 0, in memory as for a put; its memory must not change before the completion.
 * Completion: n_chunks that were judged. -ENOSPC: the arena is too small for it: a larger one, or fewer
 * layers at a time. */
int cistern_observe(struct cistern *c, const struct cistern_run *run,
	const struct cistern_observation *observation, uint64_t user_data);

/* Restores the run into memory. The memory is undefined in part until the completion. Completion: n_chunks
 * restored, from the start of the run; fewer than asked, with status 0, when a chunk is not cached (a miss),
 * and then nothing after that chunk was written; -EIO or -EBADMSG when a frame was there but could not be
 * read (it is dropped). */
int cistern_get(struct cistern *c, const struct cistern_run *run, uint64_t user_data);

/* Brings chunks from disk into the pool. Completion: n_chunks now in the pool. */
int cistern_prefetch(struct cistern *c, uint32_t model_id, const struct cistern_key *keys, uint32_t n_chunks,
	uint64_t user_data);

/* Keeps chunks from eviction until unpinned or until this connection ends. Completion: n_chunks, a prefix. */
int cistern_pin(struct cistern *c, uint32_t model_id, const struct cistern_key *keys, uint32_t n_chunks,
	uint64_t user_data);
int cistern_unpin(struct cistern *c, uint32_t model_id, const struct cistern_key *keys, uint32_t n_chunks,
	uint64_t user_data);

/* Forgets chunks, in the pool and on disk. Completion: n_chunks that were there. */
int cistern_remove(struct cistern *c, uint32_t model_id, const struct cistern_key *keys, uint32_t n_chunks,
	uint64_t user_data);

/* Completes when everything this connection had completed before it is on stable storage. -ENOTSUP: no store.
 */
int cistern_sync(struct cistern *c, uint64_t user_data);

/* Hands the queued requests to the daemon. Does not block. Returns how many, or -ENOTCONN. */
int cistern_submit(struct cistern *c);

/* ---- completions ------------------------------------------------------------------------------------------
 */

struct cistern_completion {
	uint64_t user_data;
	int32_t status;    /* 0 or a negative errno value */
	uint32_t flags;    /* enum cistern_completion_flag */
	uint32_t n_chunks; /* see the request */
	uint32_t n_layers; /* get: layers [0, n_layers) are complete, or will be when their event fires */
	uint64_t bytes;    /* put, get: bytes of the frames made or read */
};

/* Takes up to n completions that are there. Does not block. Returns how many, or -ENOTCONN once the daemon
 * has gone and no completion is left. -EINVAL: n is 0. */
int cistern_poll(struct cistern *c, struct cistern_completion *out, uint32_t n);

/* Submits, then waits for at least one completion. Blocks up to timeout_ms (-1: for ever). Returns how many,
 * 0 on time-out, -ENOTCONN once the daemon has gone and no completion is left, -EINTR, -EINVAL: n is 0. */
int cistern_wait(struct cistern *c, struct cistern_completion *out, uint32_t n, int timeout_ms);

/* A descriptor that is readable when completions may be there, or the daemon has gone: for poll or epoll in
 * the engine's own loop, level triggered. Before each sleep on it call cistern_poll until it returns 0. Owned
 * by c; never read or written by the caller. */
int cistern_fd(const struct cistern *c);

/* ---- control ----------------------------------------------------------------------------------------------
 */

/* Sends one control request (a JSON object, see docs/protocol.md) to the daemon at socket_path and returns
 * its answer as a malloc'd JSON text in *answer, to be freed by the caller. Needs no connection. Blocks (at
 * most timeout_ms for each of connecting, sending and the answer; -1: for ever). Errors as cistern_connect.
 */
int cistern_control(const char *socket_path, const char *request, char **answer, int timeout_ms);

/* Gets the daemon's statistics page: *page is a memfd to map for reading (docs/statistics.md says what is in
 * it), *alive a socket that becomes readable when the daemon ends and carries nothing else. Both are the
 * caller's to close, in any order; the page stays readable without the other, and after the daemon's end.
 * Watching costs the daemon nothing. Blocks as cistern_control. Errors as cistern_connect; -EACCES:
 * statistics are for root and the daemon's own user. */
int cistern_statistics(const char *socket_path, int *page, int *alive, int timeout_ms);

#ifdef __cplusplus
}
#endif

#endif
