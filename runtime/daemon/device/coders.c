#include "runtime/daemon/device/coders.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/driver.h"
#include "runtime/cuda/share.h"
#include "runtime/daemon/worker.h"
#include "runtime/stats/board.h"

enum { BATCH_MAX = 32, IDLE_MS = 5000 };

/* A codec, and the batch that it works on when it encodes. */
struct coder {
	struct job job; /* first */
	struct coders *coders;
	struct device_codec *codec;
	bool busy;
	bool holds; /* memory, as far as the front thread knows */
	uint64_t idle_since_ns;
	struct coder_put *puts[BATCH_MAX];
	size_t n;
	struct coder_fill *fill;
	uint64_t busy_ns; /* that the share has been told of */
};

struct coders {
	const struct device *device;
	struct workers *threads;
	struct coder *all;
	uint32_t n;
	struct coder_put *puts, **puts_end;
	struct coder_wait *waits, **waits_end;
	struct coder_fill *fills, **fills_end;
	size_t n_puts; /* that wait */
	uint64_t n_chunks, n_batches, n_restored;
	struct share share;
	uint64_t busy_ns, n_held_back;
	bool held_back;
};

static int start(struct coders *c, uint32_t n, uint64_t scratch_bytes)
{
	int least = 0, most;
	int r = device_status(device_driver(c->device)->cuCtxGetStreamPriorityRange(&least, &most));

	c->all = calloc(n, sizeof *c->all);
	if (!r && !c->all)
		r = -ENOMEM;
	for (; !r && c->n < n; c->n++) {
		c->all[c->n].coders = c;
		r = device_codec_new(c->device, scratch_bytes, least, &c->all[c->n].codec);
		if (r)
			break;
	}
	return r ? r : workers_new(n, kernels_cpu(), &c->threads);
}

int coders_new(const struct device *d, uint32_t n, uint64_t scratch_bytes, uint32_t share_percent,
	struct coders **out)
{
	struct coders *c = calloc(1, sizeof *c);
	int r;

	if (!c)
		return -ENOMEM;
	c->device = d;
	c->puts_end = &c->puts;
	c->waits_end = &c->waits;
	c->fills_end = &c->fills;
	share_init(&c->share, share_percent, board_now_ns());
	r = start(c, n, scratch_bytes);
	if (r)
		coders_free(c);
	else
		*out = c;
	return r;
}

struct coders *coders_free(struct coders *c)
{
	if (!c)
		return NULL;
	workers_free(c->threads);
	for (uint32_t i = 0; i < c->n; i++)
		device_codec_free(c->all[i].codec);
	free(c->all);
	free(c);
	return NULL;
}

int coders_fd(const struct coders *c)
{
	return workers_fd(c->threads);
}

void coders_reap(struct coders *c)
{
	workers_reap(c->threads);
}

size_t coders_n_busy(const struct coders *c)
{
	size_t n = c->n_puts;

	for (uint32_t i = 0; i < c->n; i++)
		n += c->all[i].busy;
	for (const struct coder_wait *w = c->waits; w; w = w->next)
		n++;
	for (const struct coder_fill *f = c->fills; f; f = f->next)
		n++;
	return n;
}

/* ---- on a thread of ours ---- */

static void encode(struct job *job, struct codec *unused)
{
	struct coder *coder = (struct coder *)job;
	struct device_encode batch[BATCH_MAX];
	int r;

	(void)unused;
	for (size_t i = 0; i < coder->n; i++)
		batch[i] = coder->puts[i]->encode;
	r = device_enter(coder->coders->device);
	if (!r)
		r = device_codec_encode(coder->codec, batch, coder->n);
	for (size_t i = 0; i < coder->n; i++) {
		coder->puts[i]->encode = batch[i];
		if (r)
			coder->puts[i]->encode.status = r;
	}
}

static void fill(struct job *job, struct codec *unused)
{
	struct coder *coder = (struct coder *)job;
	struct coder_fill *f = coder->fill;

	(void)unused;
	f->status = device_enter(coder->coders->device);
	if (!f->status)
		f->status = device_codec_upload(coder->codec, f->image, f->frame, f->len, f->to);
}

static void trim(struct job *job, struct codec *unused)
{
	struct coder *coder = (struct coder *)job;

	(void)unused;
	if (!device_enter(coder->coders->device))
		device_codec_trim(coder->codec);
}

/* ---- on the front thread ---- */

static void pump(struct coders *c);

static void set_idle(struct coder *coder)
{
	coder->busy = false;
	coder->idle_since_ns = board_now_ns();
	pump(coder->coders);
}

/* After work in the background: what it took of the GPU. */
static void set_done(struct coder *coder)
{
	const uint64_t busy_ns = device_codec_busy_ns(coder->codec), took_ns = busy_ns - coder->busy_ns;

	coder->busy_ns = busy_ns;
	coder->coders->busy_ns += took_ns;
	share_take(&coder->coders->share, took_ns);
	set_idle(coder);
}

static void encoded(struct job *job)
{
	struct coder *coder = (struct coder *)job;
	struct coder_put *puts[BATCH_MAX];
	const size_t n = coder->n;

	memcpy(puts, coder->puts, sizeof puts);
	set_done(coder);
	for (size_t i = 0; i < n; i++) {
		puts[i]->started_ns = job->started_ns;
		puts[i]->ended_ns = job->ended_ns;
		puts[i]->done(puts[i]);
	}
}

static void filled(struct job *job)
{
	struct coder *coder = (struct coder *)job;
	struct coder_fill *f = coder->fill;

	set_done(coder);
	f->done(f);
}

/* Whether the two may be encoded in one call. */
static bool alike(const struct coder_put *a, const struct coder_put *b)
{
	const struct codec_options *x = a->encode.options, *y = b->encode.options;

	return x->transform == y->transform && x->rung == y->rung && x->rung_salient == y->rung_salient &&
	       x->rung_redundant == y->rung_redundant && x->rank == y->rank;
}

/* The first of those that wait, and others like it. */
static void take_batch(struct coders *c, struct coder *coder)
{
	struct coder_put **link = &c->puts;

	coder->n = 0;
	while (*link && coder->n < BATCH_MAX) {
		struct coder_put *p = *link;

		if (coder->n && !alike(coder->puts[0], p)) {
			link = &p->next;
			continue;
		}
		*link = p->next;
		coder->puts[coder->n++] = p;
		c->n_puts--;
	}
	c->puts_end = &c->puts;
	while (*c->puts_end)
		c->puts_end = &(*c->puts_end)->next;
	for (size_t i = 0; i < coder->n; i++)
		coder->puts[i]->begins(coder->puts[i]);
	c->n_chunks += coder->n;
	c->n_batches++;
}

/* Whether work in the background has to wait for its share of the GPU. */
static bool hold_back(struct coders *c)
{
	const bool was = c->held_back;

	c->held_back = (c->puts || c->fills) && share_wait(&c->share, board_now_ns());
	c->n_held_back += c->held_back && !was;
	return c->held_back;
}

/* Gives free codecs work: an engine that waits for its tokens goes first. */
static void pump(struct coders *c)
{
	for (uint32_t i = 0; i < c->n && (c->waits || c->puts || c->fills); i++) {
		struct coder *coder = &c->all[i];

		if (coder->busy)
			continue;
		if (!c->waits && hold_back(c))
			return;
		coder->busy = coder->holds = true;
		if (c->waits) {
			struct coder_wait *w = c->waits;

			c->waits = w->next;
			if (!c->waits)
				c->waits_end = &c->waits;
			w->fn(w, coder->codec);
			continue;
		}
		if (c->puts) {
			take_batch(c, coder);
			coder->job.run = encode;
			coder->job.done = encoded;
		} else {
			coder->fill = c->fills;
			c->fills = coder->fill->next;
			if (!c->fills)
				c->fills_end = &c->fills;
			coder->job.run = fill;
			coder->job.done = filled;
		}
		workers_submit(c->threads, &coder->job);
	}
}

void coders_put(struct coders *c, struct coder_put *p)
{
	p->next = NULL;
	*c->puts_end = p;
	c->puts_end = &p->next;
	c->n_puts++;
	pump(c);
}

void coders_fill(struct coders *c, struct coder_fill *f)
{
	f->next = NULL;
	*c->fills_end = f;
	c->fills_end = &f->next;
	pump(c);
}

void coders_want(struct coders *c, struct coder_wait *w)
{
	w->next = NULL;
	*c->waits_end = w;
	c->waits_end = &w->next;
	pump(c);
}

void coders_give(struct coders *c, struct device_codec *codec, size_t n_restored)
{
	c->n_restored += n_restored;
	for (uint32_t i = 0; i < c->n; i++)
		if (c->all[i].codec == codec) {
			/* An engine waited for this: it is not of the share. */
			c->all[i].busy_ns = device_codec_busy_ns(codec);
			set_idle(&c->all[i]);
			return;
		}
}

static void trimmed(struct job *job)
{
	struct coder *coder = (struct coder *)job;

	coder->holds = false;
	set_idle(coder);
}

int coders_tick(struct coders *c)
{
	const uint64_t now = board_now_ns();
	int next_ms = -1;

	if (c->held_back)
		pump(c);
	if (c->held_back)
		next_ms = (int)(share_wait(&c->share, now) / 1000000) + 1;
	for (uint32_t i = 0; i < c->n; i++) {
		struct coder *coder = &c->all[i];
		const uint64_t idle_ms = (now - coder->idle_since_ns) / 1000000;

		if (coder->busy || !coder->holds)
			continue;
		if (idle_ms < IDLE_MS) {
			const int left_ms = (int)(IDLE_MS - idle_ms);

			next_ms = next_ms < 0 || left_ms < next_ms ? left_ms : next_ms;
			continue;
		}
		coder->busy = true;
		coder->job.run = trim;
		coder->job.done = trimmed;
		workers_submit(c->threads, &coder->job);
	}
	return next_ms;
}

json_t *coders_status(const struct coders *c)
{
	uint64_t bytes = 0;
	uint32_t busy = 0;

	for (uint32_t i = 0; i < c->n; i++) {
		busy += c->all[i].busy;
		bytes += c->all[i].busy ? 0 : device_codec_bytes(c->all[i].codec);
	}
	return json_pack("{s:i, s:i, s:I, s:I, s:I, s:I, s:i, s:I, s:I}", "codecs", (int)c->n, "busy",
		(int)busy, "idle_bytes", (json_int_t)bytes, "chunks", (json_int_t)c->n_chunks, "batches",
		(json_int_t)c->n_batches, "restored", (json_int_t)c->n_restored, "share_percent",
		(int)c->share.percent, "busy_ms", (json_int_t)(c->busy_ns / 1000000), "held_back",
		(json_int_t)c->n_held_back);
}
