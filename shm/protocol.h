/*
 * The wire: every byte that client and daemon exchange, on the socket and in the shared segment. All integers
 * are little-endian, all structs have the same layout on every supported machine (asserted below).
 * docs/protocol.md is the same in prose. Nothing here is trusted by the receiver.
 *
 * Attach: the client sends WIRE_HELLO on a SOCK_SEQPACKET unix socket. The daemon checks it and SO_PEERCRED,
 * and answers WIRE_WELCOME with three descriptors: the segment (a memfd sealed against shrinking and
 * growing), the end of the submission doorbell that rings and the end of the completion doorbell that sleeps
 * (stream sockets, see doorbell.h). Or it answers WIRE_ERROR and closes. Registrations are messages on the
 * same socket, one answer each, in order. Requests go through the rings. A connection that wants only control
 * sends WIRE_CONTROL instead of WIRE_HELLO.
 */
#ifndef SHM_PROTOCOL_H
#define SHM_PROTOCOL_H

#include <stdint.h>

enum {
	WIRE_MAGIC = 0x53494343, /* "CCIS" */
	WIRE_VERSION = 1,
	WIRE_MESSAGE_MAX = 128 * 1024, /* bytes of one socket message */
	WIRE_NAMESPACE_MAX = 64,       /* bytes, with the final NUL */
	WIRE_MODEL_NAME_MAX = 128,     /* bytes, with the final NUL */
	WIRE_ERROR_TEXT_MAX = 256,
	WIRE_KEY_BYTES = 32,
	WIRE_ENTRIES_MAX = 4096,
	WIRE_ARENA_MIN = 4096,
	WIRE_ARENA_MAX = 16 * 1024 * 1024,
	WIRE_WELCOME_FDS = 3,   /* segment, submission doorbell, completion doorbell */
	WIRE_HANDLE_BYTES = 64, /* CUDA's: of an allocation (cuIpcGetMemHandle), of an event */
	WIRE_UUID_BYTES = 16,
	WIRE_PARTS_MAX = 512,   /* allocations that one memory is made of */
	WIRE_PART_FDS_MAX = 4,  /* of those, with a descriptor each */
	WIRE_EVENTS_MAX = 1024, /* of one connection */
	WIRE_CACHE_LINE = 64,
};

enum wire_type {
	WIRE_HELLO = 1,
	WIRE_WELCOME = 2,
	WIRE_ERROR = 3,             /* the answer to any request that failed */
	WIRE_REGISTER_MODEL = 4,    /* answered by WIRE_REGISTERED */
	WIRE_REGISTER_MEMORY = 5,   /* carries one descriptor; answered by WIRE_REGISTERED */
	WIRE_UNREGISTER_MEMORY = 6, /* answered by WIRE_REGISTERED when nothing uses the mapping any more */
	WIRE_REGISTERED = 7,
	WIRE_CONTROL = 8, /* header, then JSON text without a NUL; answered by WIRE_CONTROL or WIRE_ERROR */
	WIRE_STATISTICS = 9,       /* header alone; answered by the same with one descriptor, or WIRE_ERROR */
	WIRE_REGISTER_EVENTS = 10, /* answered by WIRE_REGISTERED with the first one's id */
	WIRE_UNREGISTER_EVENTS = 11, /* answered by WIRE_REGISTERED when no request names them any more */
};

struct wire_header {
	uint32_t magic;
	uint16_t version;
	uint16_t type;
	uint32_t len_bytes; /* of the whole message, header included */
	uint32_t reserved;
};

struct wire_hello {
	struct wire_header header;
	char name_space[WIRE_NAMESPACE_MAX];
	uint32_t n_entries; /* submission ring, a power of two; the completion ring has twice as many */
	uint32_t reserved;
	uint64_t arena_bytes;
};

struct wire_welcome {
	struct wire_header header;
	uint64_t segment_bytes;
	uint64_t sq_off; /* of the submission ring's struct wire_ring */
	uint64_t cq_off;
	uint64_t arena_off;
	uint64_t arena_bytes;
	uint32_t sq_entries;
	uint32_t cq_entries;
	uint32_t chunk_tokens;
	uint32_t session_id;
};

struct wire_error {
	struct wire_header header;
	int32_t status; /* negative errno value */
	uint32_t reserved;
	char text[WIRE_ERROR_TEXT_MAX];
};

struct wire_plane {
	uint32_t n_heads;
	uint32_t dim;
	uint32_t dtype;
	uint32_t rope_kind;
	uint32_t rope_offset;
	uint32_t rope_dim;
	float rope_scale;
	uint32_t reserved;
};

/* Followed, for each plane that has RoPE, by rope_dim / 2 inverse frequencies (f32), in plane order. */
struct wire_register_model {
	struct wire_header header;
	char name[WIRE_MODEL_NAME_MAX];
	uint32_t n_layers;
	uint32_t n_planes;
	uint32_t tp_rank;
	uint32_t tp_size;
	struct wire_plane planes[2];
};

struct wire_layout {
	uint64_t base;
	uint64_t block_stride;
	uint64_t token_stride;
	uint64_t head_stride;
};

/* Followed by n_layers * n_planes struct wire_layout, layer-major; on a GPU by struct wire_device_memory and
 * its parts first. */
struct wire_register_memory {
	struct wire_header header;
	uint32_t model_id;
	uint32_t block_tokens;
	uint64_t size_bytes;
	uint32_t n_blocks;
	uint32_t kind; /* enum wire_memory_kind */
};

enum wire_memory_kind {
	WIRE_MEMORY_MEMFD = 1,
	WIRE_MEMORY_CUDA_IPC = 2, /* allocations named by handles */
	WIRE_MEMORY_CUDA_VMM = 3, /* allocations of the driver's virtual memory calls: a descriptor each */
};

/* Followed by n_parts struct wire_device_part. The memory is the parts one behind the other: size_bytes is
 * their sum, and each layout lies inside one of them. */
struct wire_device_memory {
	uint8_t uuid[WIRE_UUID_BYTES]; /* of the GPU; all zero: not said */
	uint32_t n_parts;
	uint32_t reserved;
};

/* Bytes [offset_bytes, offset_bytes + size_bytes) of an allocation. */
struct wire_device_part {
	uint8_t handle[WIRE_HANDLE_BYTES]; /* CUDA_IPC; else zero */
	uint64_t address;                  /* of the allocation in the client; 0: not said */
	uint64_t allocation_bytes;         /* CUDA_VMM: of the whole allocation; CUDA_IPC: 0 */
	uint64_t offset_bytes;
	uint64_t size_bytes;
};

/* Followed by n_events handles of WIRE_HANDLE_BYTES. The events' ids are consecutive. */
struct wire_register_events {
	struct wire_header header;
	uint32_t n_events;
	uint32_t reserved;
};

struct wire_unregister_events {
	struct wire_header header;
	uint32_t first_id;
	uint32_t n_events;
};

struct wire_unregister_memory {
	struct wire_header header;
	uint32_t memory_id;
	uint32_t reserved;
};

struct wire_registered {
	struct wire_header header;
	uint32_t id;
	uint32_t reserved;
};

/* ---- rings ---- */

/*
 * A single-producer single-consumer ring. head and tail count entries since the start and wrap at 2^32; the
 * producer owns tail, the consumer head, each on its own cache line. The entries follow the struct.
 * need_wakeup is set by a consumer that is about to sleep: it stores 1, then (sequentially consistent) looks
 * at tail once more; a producer that published entries and then reads 1 sets 0 and rings the consumer's
 * doorbell. The client, when it takes completions from a ring that was full, rings the submission doorbell,
 * since the daemon may be waiting for room.
 */
struct wire_ring {
	_Alignas(WIRE_CACHE_LINE) _Atomic uint32_t head;
	_Alignas(WIRE_CACHE_LINE) _Atomic uint32_t tail;
	_Alignas(WIRE_CACHE_LINE) _Atomic uint32_t need_wakeup;
	uint8_t pad[WIRE_CACHE_LINE - 4];
};

enum wire_op {
	WIRE_NOP = 0,
	WIRE_LOOKUP = 1,
	WIRE_PUT = 2,
	WIRE_GET = 3,
	WIRE_PREFETCH = 4,
	WIRE_PIN = 5,
	WIRE_UNPIN = 6,
	WIRE_REMOVE = 7,
	WIRE_SYNC = 8,
	WIRE_OBSERVE = 9,
};

/* Events of a request on memory on a GPU, by their ids; 0: none. The daemon waits for ready before it touches
 * the memory. It records events [first, first + n): PUT: one, when the source may be overwritten; GET: one
 * for each group of layers that is complete, the last one for all groups beyond n. */
struct wire_run_events {
	uint16_t ready;
	uint16_t first;
	uint16_t n;
	uint16_t reserved;
};

/* Submission. keys_off and blocks_off are byte offsets in the arena: n_chunks keys of 32 bytes (for PUT one
 * more before them, the parent; all zero when the run opens the sequence), and n_blocks uint32. The arena
 * bytes belong to the request until its last completion. user_data is the client library's own and comes back
 * unchanged. */
struct wire_sqe {
	uint8_t op;
	uint8_t flags;   /* enum cistern_request_flag */
	uint16_t preset; /* PUT: enum cistern_preset */
	uint32_t object; /* PUT, GET: memory id; LOOKUP, PREFETCH, PIN, UNPIN, REMOVE: model id */
	uint64_t user_data;
	uint64_t position;
	uint32_t n_tokens;
	uint32_t n_chunks;
	uint32_t n_blocks;
	uint32_t block_offset;
	uint64_t keys_off;
	uint64_t blocks_off;
	union {
		uint64_t data_off;             /* OBSERVE: of a struct wire_observation */
		struct wire_run_events events; /* PUT, GET */
	};
};

enum wire_observation_kind {
	WIRE_QUERIES = 1,
	WIRE_SUMS = 2,
};

/* QUERIES: followed by n_queries positions (u32, rising, each below the run's n_tokens), and the query
 * vectors, [n_layers, n_queries, n_heads, dim] elements of plane 0's dtype. SUMS: followed by n_tokens f32.
 */
struct wire_observation {
	uint32_t kind;
	uint32_t n_queries;
	uint32_t n_heads; /* QUERIES, of queries: a multiple of plane 0's */
	uint32_t first_layer;
	uint32_t n_layers;
	float scale;          /* QUERIES: of the scores */
	uint32_t ready_event; /* 0: none */
	uint32_t reserved;
};

struct wire_cqe {
	uint64_t user_data;
	int32_t status;
	uint32_t flags; /* enum cistern_completion_flag */
	uint32_t n_chunks;
	uint32_t n_layers;
	uint64_t bytes;
};

_Static_assert(sizeof(struct wire_header) == 16, "wire layout");
_Static_assert(sizeof(struct wire_hello) == 96, "wire layout");
_Static_assert(sizeof(struct wire_welcome) == 72, "wire layout");
_Static_assert(sizeof(struct wire_error) == 24 + WIRE_ERROR_TEXT_MAX, "wire layout");
_Static_assert(sizeof(struct wire_plane) == 32, "wire layout");
_Static_assert(sizeof(struct wire_register_model) == 224, "wire layout");
_Static_assert(sizeof(struct wire_layout) == 32, "wire layout");
_Static_assert(sizeof(struct wire_register_memory) == 40, "wire layout");
_Static_assert(sizeof(struct wire_device_memory) == 24, "wire layout");
_Static_assert(sizeof(struct wire_device_part) == 96, "wire layout");
_Static_assert(sizeof(struct wire_register_events) == 24, "wire layout");
_Static_assert(sizeof(struct wire_unregister_events) == 24, "wire layout");
_Static_assert(sizeof(struct wire_run_events) == 8, "wire layout");
_Static_assert(sizeof(struct wire_ring) == 4 * WIRE_CACHE_LINE - WIRE_CACHE_LINE, "wire layout");
_Static_assert(sizeof(struct wire_sqe) == 64, "wire layout");
_Static_assert(sizeof(struct wire_observation) == 32, "wire layout");
_Static_assert(sizeof(struct wire_cqe) == 32, "wire layout");

#endif
