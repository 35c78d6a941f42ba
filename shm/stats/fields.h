/*
 * Every statistic there is, one entry each, in the order in which it is shown. Adding one is one entry here
 * and one statement in the daemon that counts it: page, metrics, `--json` and the Python package follow.
 *
 *   FIELD(group, kind, unit, id, metric, labels, help)
 *
 * group is DAEMON (one record) or CACHE (one for each namespace and model that was seen). kind is COUNTER
 * (only grows, from 0 at start), GAUGE, HISTOGRAM (of nanoseconds) or TEXT, whose unit is its length in
 * bytes, a multiple of 8. unit is PLAIN, BYTES, NS or REAL (a double). metric is the Prometheus name after
 * "cistern_", in base units (seconds for NS); fields of one metric stand together and differ in labels. A
 * TEXT's metric is the name of the label that it becomes for its whole record; empty: none. No include guard:
 * the includer says what a FIELD is.
 */
/* clang-format off */

/* ---- the daemon ---- */
FIELD(DAEMON, TEXT, 32, version, "version", "", "Version of the daemon")
FIELD(DAEMON, TEXT, 32, backend, "backend", "", "Backend and the variant of its kernels")
FIELD(DAEMON, GAUGE, NS, started_ns, "start_time_seconds", "", "When the daemon started, since 1970")
FIELD(DAEMON, GAUGE, PLAIN, chunk_tokens, "chunk_tokens", "", "Tokens in a chunk")
FIELD(DAEMON, GAUGE, PLAIN, workers, "workers", "", "Threads that encode and decode")
FIELD(DAEMON, GAUGE, PLAIN, jobs, "jobs", "", "Chunks waiting for a worker or with one")
FIELD(DAEMON, COUNTER, PLAIN, connections, "connections_total", "", "Connections accepted")
FIELD(DAEMON, GAUGE, PLAIN, sessions, "sessions", "", "Engines attached")
FIELD(DAEMON, COUNTER, PLAIN, bad_requests, "bad_requests_total", "", "Requests refused as malformed")
FIELD(DAEMON, GAUGE, BYTES, pool_limit_bytes, "pool_limit_bytes", "", "Size of the pool")
FIELD(DAEMON, GAUGE, BYTES, pool_used_bytes, "pool_used_bytes", "", "Bytes of the pool in use")
FIELD(DAEMON, GAUGE, BYTES, pool_largest_free_bytes, "pool_largest_free_bytes", "", "Largest free extent of the pool")
FIELD(DAEMON, COUNTER, PLAIN, evicted, "evicted_chunks_total", "", "Chunks whose copy in the pool was dropped")
FIELD(DAEMON, COUNTER, PLAIN, lost, "lost_chunks_total", "", "Evicted chunks that were not on disk either")
FIELD(DAEMON, COUNTER, PLAIN, removed, "removed_chunks_total", "", "Chunks removed by request")
FIELD(DAEMON, COUNTER, PLAIN, fetched, "fetched_chunks_total", "", "Chunks read back from disk")
FIELD(DAEMON, GAUGE, BYTES, transform_bytes, "transform_bytes", "", "Transforms in memory")
FIELD(DAEMON, GAUGE, PLAIN, transforms, "transforms", "", "Transforms loaded")
FIELD(DAEMON, GAUGE, BYTES, store_limit_bytes, "store_limit_bytes", "", "What the store may take on disk; 0: there is none")
FIELD(DAEMON, GAUGE, BYTES, store_used_bytes, "store_used_bytes", "", "Lengths of the store's files")
FIELD(DAEMON, GAUGE, BYTES, store_live_bytes, "store_live_bytes", "", "Bytes of records that are still wanted")
FIELD(DAEMON, GAUGE, PLAIN, store_segments, "store_segments", "", "Files of the store")
FIELD(DAEMON, GAUGE, PLAIN, store_records, "store_records", "", "Records in the store")
FIELD(DAEMON, COUNTER, BYTES, store_written_bytes, "store_written_bytes_total", "", "Bytes written to the store")
FIELD(DAEMON, COUNTER, BYTES, store_read_bytes, "store_read_bytes_total", "", "Bytes read from the store")
FIELD(DAEMON, COUNTER, PLAIN, store_writes, "store_operations_total", "op=\"write\"", "Operations of the store")
FIELD(DAEMON, COUNTER, PLAIN, store_reads, "store_operations_total", "op=\"read\"", "Operations of the store")
FIELD(DAEMON, COUNTER, PLAIN, store_write_errors, "store_errors_total", "op=\"write\"", "Operations of the store that failed")
FIELD(DAEMON, COUNTER, PLAIN, store_read_errors, "store_errors_total", "op=\"read\"", "Operations of the store that failed")
FIELD(DAEMON, COUNTER, PLAIN, store_dropped, "store_dropped_records_total", "", "Torn or rotten records met and dropped")
FIELD(DAEMON, GAUGE, PLAIN, store_in_flight, "store_in_flight", "", "Operations of the store under way")
FIELD(DAEMON, HISTOGRAM, NS, store_write_ns, "store_write_duration_seconds", "", "From the hand-over of a write until its end was seen")
FIELD(DAEMON, HISTOGRAM, NS, store_read_ns, "store_read_duration_seconds", "", "From the hand-over of a read until its end was seen")

/* ---- a namespace and model ---- */
FIELD(CACHE, TEXT, 64, name_space, "namespace", "", "The tenant")
FIELD(CACHE, TEXT, 128, model, "model", "", "The model's name; empty until a client has registered it")
FIELD(CACHE, TEXT, 24, fingerprint, "fingerprint", "", "First 16 digits of the model's fingerprint")
FIELD(CACHE, GAUGE, BYTES, token_bytes, "token_bytes", "", "What one token's KV takes in the engine")
FIELD(CACHE, GAUGE, PLAIN, transform, "transform", "", "1: new chunks are coded with a transform, 0: plain 8-bit codec")
FIELD(CACHE, COUNTER, PLAIN, lookups, "requests_total", "op=\"lookup\"", "Requests ended")
FIELD(CACHE, COUNTER, PLAIN, puts, "requests_total", "op=\"put\"", "Requests ended")
FIELD(CACHE, COUNTER, PLAIN, gets, "requests_total", "op=\"get\"", "Requests ended")
FIELD(CACHE, COUNTER, PLAIN, prefetches, "requests_total", "op=\"prefetch\"", "Requests ended")
FIELD(CACHE, COUNTER, PLAIN, removes, "requests_total", "op=\"remove\"", "Requests ended")
FIELD(CACHE, COUNTER, PLAIN, failed, "failed_requests_total", "", "Requests that ended with an error")
FIELD(CACHE, COUNTER, PLAIN, lookup_chunks, "lookup_chunks_total", "", "Chunks that lookups asked for")
FIELD(CACHE, COUNTER, PLAIN, hit_chunks, "lookup_hit_chunks_total", "", "Chunks that lookups found")
FIELD(CACHE, COUNTER, PLAIN, put_chunks, "put_chunks_total", "", "Chunks encoded")
FIELD(CACHE, COUNTER, BYTES, put_raw_bytes, "put_raw_bytes_total", "", "KV of the chunks encoded, uncompressed")
FIELD(CACHE, COUNTER, BYTES, put_frame_bytes, "put_frame_bytes_total", "", "Frames made of it")
FIELD(CACHE, COUNTER, PLAIN, get_chunks, "get_chunks_total", "", "Chunks restored")
FIELD(CACHE, COUNTER, BYTES, get_raw_bytes, "get_raw_bytes_total", "", "KV restored, uncompressed")
FIELD(CACHE, COUNTER, BYTES, get_frame_bytes, "get_frame_bytes_total", "", "Frames read for it")
FIELD(CACHE, COUNTER, PLAIN, damaged, "damaged_frames_total", "", "Frames that could not be decoded and were dropped")
FIELD(CACHE, COUNTER, PLAIN, tokens_plain, "encoded_tokens_total", "class=\"plain\"", "Tokens encoded, by class")
FIELD(CACHE, COUNTER, PLAIN, tokens_sink, "encoded_tokens_total", "class=\"sink\"", "Tokens encoded, by class")
FIELD(CACHE, COUNTER, PLAIN, tokens_window, "encoded_tokens_total", "class=\"window\"", "Tokens encoded, by class")
FIELD(CACHE, COUNTER, PLAIN, tokens_exact, "encoded_tokens_total", "class=\"exact\"", "Tokens encoded, by class")
FIELD(CACHE, GAUGE, REAL, error_bound, "token_error_bound", "", "Bound on a coded token's relative error; 0: none")
FIELD(CACHE, GAUGE, REAL, key_error_mean, "token_error_mean", "plane=\"key\"", "Relative error of coded tokens, mean over about the last 64 chunks")
FIELD(CACHE, GAUGE, REAL, value_error_mean, "token_error_mean", "plane=\"value\"", "Relative error of coded tokens, mean over about the last 64 chunks")
FIELD(CACHE, GAUGE, REAL, key_error_max, "token_error_max", "plane=\"key\"", "Relative error of the worst coded token since the start")
FIELD(CACHE, GAUGE, REAL, value_error_max, "token_error_max", "plane=\"value\"", "Relative error of the worst coded token since the start")
FIELD(CACHE, GAUGE, PLAIN, chunks, "chunks", "", "Chunks kept")
FIELD(CACHE, GAUGE, PLAIN, tokens, "tokens", "", "Tokens of the chunks kept")
FIELD(CACHE, GAUGE, BYTES, raw_bytes, "raw_bytes", "", "KV of the chunks kept, uncompressed")
FIELD(CACHE, GAUGE, BYTES, frame_bytes, "frame_bytes", "", "Frames of the chunks kept")
FIELD(CACHE, GAUGE, PLAIN, pool_chunks, "tier_chunks", "tier=\"pool\"", "Chunks in a tier; one may be in both")
FIELD(CACHE, GAUGE, PLAIN, store_chunks, "tier_chunks", "tier=\"store\"", "Chunks in a tier; one may be in both")
FIELD(CACHE, GAUGE, BYTES, pool_bytes, "tier_frame_bytes", "tier=\"pool\"", "Frames in a tier; one may be in both")
FIELD(CACHE, GAUGE, BYTES, store_bytes, "tier_frame_bytes", "tier=\"store\"", "Frames in a tier; one may be in both")
FIELD(CACHE, HISTOGRAM, NS, lookup_ns, "request_duration_seconds", "op=\"lookup\"", "From taking a request off its ring to its last completion")
FIELD(CACHE, HISTOGRAM, NS, put_ns, "request_duration_seconds", "op=\"put\"", "From taking a request off its ring to its last completion")
FIELD(CACHE, HISTOGRAM, NS, get_ns, "request_duration_seconds", "op=\"get\"", "From taking a request off its ring to its last completion")
FIELD(CACHE, HISTOGRAM, NS, encode_ns, "codec_duration_seconds", "op=\"encode\"", "A worker's time for one chunk (decode: or for some of its layers)")
FIELD(CACHE, HISTOGRAM, NS, decode_ns, "codec_duration_seconds", "op=\"decode\"", "A worker's time for one chunk (decode: or for some of its layers)")

#undef FIELD
