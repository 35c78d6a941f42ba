/*
 * One sequence at a time: a prompt and what follows it, cut from a text, with its keys and values computed by
 * the real model, and with sinks of which it is known where they are. Sinks are planted in the text (the
 * model computes with them) or in the cache, behind the model's back (struct construction). One thread, one
 * owner.
 */
#ifndef BENCH_SINKS_SEQUENCE_H
#define BENCH_SINKS_SEQUENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/codec.h"
#include "tools/bench-sinks/truth.h"
#include "tools/engine/text.h"

enum {
	SEQUENCE_PROMPT = 7 * FORWARD_CHUNK, /* then a chunk of continuation */
	SEQUENCE_TOKENS = SEQUENCE_PROMPT + FORWARD_CHUNK,
	SEQUENCE_JUDGED =
		SEQUENCE_PROMPT - FORWARD_CHUNK, /* tokens behind which there are queries of the prompt */
	SEQUENCE_FIRST = 4,                      /* positions that are sinks by where they are */
	SEQUENCE_WINDOW = 128,
	SEQUENCE_PLANTED_MAX = 8,
};

/* What is done to a sequence so that it has sinks in the middle. */
struct construction {
	const char *name;
	const char *what; /* a sentence for the report */
	/* Separators in the text, BOS or SEP: in turn one, two, ... up to so many. */
	uint32_t n_separators_max;
	/* Tokens of the cache, spread over the prompt, that take the first token's un-rotated key, rotated to
	 * their own position, and its value, in every layer and head. */
	uint32_t n_copies;
	/* The first token takes key and value of an ordinary one: the sequence has the copies alone. */
	bool first_is_plain;
	/* The copies' keys lie so many times as far from the mean key of the prompt, in the same direction:
	 * attention follows. 0 and 1: as they are. */
	float louder;
	/* A multiple of the key's norm that is added to one component of the copies' keys, in every layer and
	 * head: one of the rotary pair that the sequence's queries have least energy in, so that attention
	 * hardly follows. An outlier of known size, as large models have in fixed components. */
	float aside;
};

struct sequence {
	struct model *model;
	struct forward *forward;
	struct kv_cache *cache;
	struct kv_pages *pages; /* [n_layers][2] */
	struct geometry geometry;
	const struct kernels *kernels;
	struct kv_table table, copy;
	/* Of the sequence at hand: */
	uint32_t tokens[SEQUENCE_TOKENS];
	uint32_t n_planted, planted[SEQUENCE_PLANTED_MAX]; /* positions, rising */
	struct truth truth;                                /* before anything was done to the cache */
};

/* model: a folder. -errno, with a sentence on stderr. */
int sequence_new(const char *model, struct sequence **out);
struct sequence *sequence_free(struct sequence *s);

/* Sequence i of n cut from the text, computed, and then constructed. -errno. */
int sequence_make(
	struct sequence *s, const struct tokens *text, uint32_t i, uint32_t n, const struct construction *c);

/* A chunk of it in the original table, or in the copy. */
struct codec_chunk sequence_chunk(const struct sequence *s, const struct kv_table *table, uint32_t chunk);

/* How many times the uniform share each planted token gets from what follows the prompt, on average, in the
 * head where that is most. out: [n_planted]. -errno. */
int sequence_planted_attention(struct sequence *s, double *out);

#endif
