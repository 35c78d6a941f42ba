/*
 * The fields of a policy by name: one table that the configuration, `cistern policy` and the documents go by.
 * And the presets, which set several at once. Pure.
 */
#ifndef POLICY_FIELDS_H
#define POLICY_FIELDS_H

#include "policy/policy.h"

enum policy_kind {
	POLICY_COUNT,  /* a whole number, uint32_t */
	POLICY_REAL,   /* a number, double; one of a share may be written with % */
	POLICY_CHOICE, /* a word, uint32_t */
};

struct policy_field {
	const char *name;
	enum policy_kind kind;
	size_t offset; /* in struct policy */
	double min, max;
	const char *unit;           /* "tokens", "share", "x", ...; "" for a choice */
	const char *const *choices; /* CHOICE: the words for 0, 1, ..., then NULL */
	const char *help;           /* a sentence */
};

enum { POLICY_FIELDS_MAX = 32, POLICY_VALUE_MAX = 32, POLICY_WHY_MAX = 200 };

/* All of them, in the order in which they are shown. */
const struct policy_field *policy_fields(size_t *n);
/* NULL: there is none of that name. */
const struct policy_field *policy_field(const char *name);

/* Sets one field from text. The other fields do not matter: policy_check does the whole. -EINVAL with a
 * sentence in why that names the field and, where the name is wrong, the nearest one. */
int policy_set(struct policy *p, const char *name, const char *text, char *why, size_t why_len);
/* The value as policy_set takes it. */
void policy_format(const struct policy *p, const struct policy_field *f, char out[POLICY_VALUE_MAX]);
/* Takes over one field of another policy. */
void policy_copy_field(struct policy *p, const struct policy *from, const struct policy_field *f);

enum policy_preset {
	POLICY_NO_PRESET = 0,
	POLICY_ARCHIVAL = 1,
	POLICY_BALANCED = 2,
	POLICY_COMPACT = 3,
	POLICY_PRESETS
};

/* "archival", "balanced", "compact"; NULL for others. And a name's number, or -1. */
const char *policy_preset_name(enum policy_preset preset);
int policy_preset_of(const char *name);
/* Sets the preset's fields and leaves the others. The result passes policy_check if p did. Returns which: bit
 * i is field i of policy_fields(). */
uint64_t policy_apply_preset(struct policy *p, enum policy_preset preset);

/* The nearest of n names (by letters to be changed), `stride` bytes apart, each a const char *. */
const char *policy_nearest(const char *name, const void *names, size_t n, size_t stride);

#endif
