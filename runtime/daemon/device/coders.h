/*
 * The codec on the GPU as the daemon uses it: a few device codecs, each with a stream and scratch memory,
 * lent to one piece of work at a time. Chunks to be encoded lie in the daemon's own memory and are taken
 * together, as many as wait and fit, by threads that are there for nothing else; what decodes into an
 * engine's memory borrows a codec and runs on that engine's lane. Front thread.
 */
#ifndef RUNTIME_DAEMON_DEVICE_CODERS_H
#define RUNTIME_DAEMON_DEVICE_CODERS_H

#include <jansson.h>

#include "runtime/cuda/codec.h"

struct coders;

/* A chunk to be encoded. The caller's, untouched until done is called, once, on the front thread. */
struct coder_put {
	struct device_encode encode; /* chunk and options set; out: the rest */
	uint64_t started_ns, ended_ns;
	/* Called when its turn has come, which may be a while after coders_put: for what is not to be taken
	 * before, such as encode's room. It may not call the coders. */
	void (*begins)(struct coder_put *p);
	void (*done)(struct coder_put *p);
	struct coder_put *next; /* the coders' own */
};

/* Somebody who wants a codec. The caller's, until fn is called, once, perhaps at once. */
struct coder_wait {
	void (*fn)(struct coder_wait *w, struct device_codec *codec);
	struct coder_wait *next;
};

/* An image to be brought into device memory, when there is nothing else to do. As above. */
struct coder_fill {
	const struct image *image;
	const void *frame; /* that it was read from */
	size_t len;
	CUdeviceptr to;
	int status;
	void (*done)(struct coder_fill *f);
	struct coder_fill *next;
};

/* n codecs, each with up to scratch_bytes of device memory, at the lowest priority; what they do in the
 * background, which is all but decoding, takes so much of the GPU's time. -ENOMEM, -errno. */
int coders_new(const struct device *d, uint32_t n, uint64_t scratch_bytes, uint32_t share_percent,
	struct coders **out);
/* Nothing may be wanted, lent, or under way. NULL is fine. */
struct coders *coders_free(struct coders *c);

/* Readable when coders_reap has something to do. */
int coders_fd(const struct coders *c);
void coders_reap(struct coders *c);
size_t coders_n_busy(const struct coders *c);

void coders_put(struct coders *c, struct coder_put *p);
void coders_fill(struct coders *c, struct coder_fill *f);
void coders_want(struct coders *c, struct coder_wait *w);
/* n_restored: chunks that were decoded with it. */
void coders_give(struct coders *c, struct device_codec *codec, size_t n_restored);

/* Has codecs that were idle for a while give their memory back, and goes on with what had to wait for its
 * share of the GPU. Returns when to come again, in ms; -1: not on its account. */
int coders_tick(struct coders *c);

/* {codecs, busy, idle_bytes, chunks, batches, restored, share_percent, busy_ms, held_back}: memory of those
 * that are busy is not looked at; busy_ms: of the GPU's time in the background; held_back: times that work
 * waited for its share of it. */
json_t *coders_status(const struct coders *c);

#endif
