/*
 * What every subcommand of cistern-engine works with: a model, scratch memory for its forward pass, a paged
 * cache, and maybe a daemon. One thread. Errors have been printed to stderr when a call returns one.
 */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/engine/forward.h"
#include "tools/engine/kv-cache.h"
#include "tools/engine/model.h"
#include "tools/engine/remote.h"
#include "tools/engine/text.h"

struct options {
	const char *model;      /* folder */
	const char *socket;     /* NULL: libcistern's default */
	const char *name_space; /* NULL: libcistern's default */
	const char *prompts;    /* prefill, continue: a .jsonl file */
	uint32_t limit;         /* prompts at most; 0: all */
	uint32_t sink_tokens;   /* continue: what the daemon's policy protects */
	uint32_t window_tokens;
	const char *text;     /* capture: a text file */
	const char *recall;   /* capture: a .jsonl file of prompts to mix in, or NULL */
	const char *out;      /* capture: a folder */
	uint32_t n_tokens;    /* capture: over all sequences at most; 0: no limit */
	uint32_t n_sequences; /* capture */
	uint32_t length;      /* capture: tokens of a sequence */
	bool observe;         /* prefill: show the daemon queries */
	bool attention;       /* capture: with the attention that each token got */
	enum kv_order order;  /* of the paged cache */
	uint64_t seed;        /* of its block order */
};

struct engine {
	struct model *model;
	struct forward *forward;
	struct kv_cache *cache;
	struct remote *remote; /* NULL: none was asked for */
	struct prompts prompts;
};

/* Loads the model, makes a cache for n_sequences whole contexts and warms both up, reads options->prompts if
 * given, and connects if wanted. -errno. */
int engine_open(const struct options *o, uint32_t n_sequences, bool connect, struct engine *out);
void engine_close(struct engine *e);

/* Milliseconds since some moment. */
double engine_now_ms(void);

/* The subcommands: 0 or -errno; JSON lines on stdout, progress on stderr. */
int engine_prefill(const struct options *o);
int engine_continue(const struct options *o);
int engine_capture(const struct options *o);
int engine_speed(const struct options *o);

#endif
