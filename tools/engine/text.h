/*
 * Tokens of cistern-mini and the files that hold them. A token is a byte; in files the control characters
 * 0x01 and 0x02 stand for BOS and SEP, which text never contains. Plain data, owned by whoever read it.
 */
#ifndef ENGINE_TEXT_H
#define ENGINE_TEXT_H

#include <stddef.h>
#include <stdint.h>

enum { TEXT_BOS = 256, TEXT_SEP = 257 };

/* tokens: [len], one each byte. */
void text_encode(const char *text, size_t len, uint32_t *tokens);
/* text: [n], not terminated; a token that is no byte, BOS or SEP becomes '?'. */
void text_decode(const uint32_t *tokens, size_t n, char *text);

struct tokens {
	size_t n;
	uint32_t *list;
};

/* A whole text file. -errno; *out is to be released with tokens_fini. */
int text_read(const char *path, struct tokens *out);
void tokens_fini(struct tokens *t);

/* Something to ask after a prompt: first the given tokens, then the model is to say the answer. */
struct probe {
	struct tokens given;  /* the true continuation, or a question */
	struct tokens answer; /* may be empty */
};

struct prompt {
	char id[64]; /* JSON text of the line's "id": a number, or a string with its quotes */
	struct tokens tokens;
	size_t n_probes;
	struct probe *probes;
};

struct prompts {
	size_t n;
	struct prompt *list;
};

/* Reads a .jsonl file, an object on each line (blank lines are skipped):
 *   "id"                          number or string
 *   "text" (or "prompt")          string, or "tokens": [id, ...]
 *   "continuation"                string or [id, ...]: what follows; with "answer": a string or [id, ...]
 *   "questions"                   [{"q": string, "a": string}, ...]: several, each asked on its own
 * Continuation and questions may both be missing. Other keys are passed over. -errno, -EINVAL for a line
 * that is not of this form (why names it), -ENOMEM. */
int prompts_read(const char *path, struct prompts *out, char *why, size_t why_len);
void prompts_fini(struct prompts *p);

#endif
