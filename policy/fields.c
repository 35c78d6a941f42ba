#include "policy/fields.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"

static const char *const modes[] = {"ratio", "fidelity", "pressure", NULL};
static const char *const orders[] = {"attention", "fit", "neighbours", NULL};
static const char *const switches[] = {"off", "on", NULL};

#define FIELD(member) offsetof(struct policy, member)

static const struct policy_field fields[] = {
	{"mode", POLICY_CHOICE, FIELD(mode), 0, 2, "", modes,
		"ratio: hold target_ratio; fidelity: hold target_error, let the ratio float; pressure: hold "
		"target_ratio, coarser as the pool fills"},
	{"target_ratio", POLICY_REAL, FIELD(ratio), 1, 1000, "x", NULL,
		"how many times smaller the coded tokens are to become, over the window of chunks; tokens "
		"kept "
		"bit-exact do not count on either side"},
	{"target_error", POLICY_REAL, FIELD(target_error), 0.001, 1, "share", NULL,
		"mode fidelity: mean relative L2 error of the coded tokens, in the plane where it is larger"},
	{"max_error", POLICY_REAL, FIELD(max_error), 0, 1, "share", NULL,
		"bound on every coded token's relative error in each plane; a token over it moves to a finer "
		"rung or is kept bit-exact; 0: no bound"},
	{"pressure_from", POLICY_REAL, FIELD(pressure_from), 0, 0.99, "share", NULL,
		"mode pressure: how full the pool is when coarser rungs begin"},
	{"pressure_ratio", POLICY_REAL, FIELD(pressure_ratio), 1, 1000, "x", NULL,
		"mode pressure: the ratio when the pool is full; not below target_ratio"},
	{"pressure_rate", POLICY_COUNT, FIELD(pressure_rate), 0, 10000, "chunks", NULL,
		"mode pressure: of the chunks that are kept, so many cold ones at most are made coarser in a "
		"second; 0: they stay as they are"},
	{"rate_window", POLICY_COUNT, FIELD(rate_window), 8, 4096, "chunks", NULL,
		"over how many chunks the mode holds its target"},
	{"sink_tokens", POLICY_COUNT, FIELD(sink_tokens), 0, 1 << 20, "tokens", NULL,
		"the first so many tokens of a sequence are attention sinks, kept bit-exact"},
	{"window_tokens", POLICY_COUNT, FIELD(window_tokens), 0, 1 << 20, "tokens", NULL,
		"the last so many tokens known of a sequence are kept bit-exact"},
	{"window_settle", POLICY_CHOICE, FIELD(window_settle), 0, 1, "", switches,
		"whether tokens are coded that were in the window when they were put and that it has left "
		"since"},
	{"sink_search", POLICY_CHOICE, FIELD(sink_search), 0, 1, "", switches,
		"whether sinks are searched for in the rest of the sequence"},
	{"sink_budget", POLICY_REAL, FIELD(sink_budget), 0, 0.25, "share", NULL,
		"share of a chunk's tokens that may be kept bit-exact as sinks found"},
	{"sink_multiple", POLICY_REAL, FIELD(sink_multiple), 1.5, 1000, "times", NULL,
		"a token on which attention was seen resting at so many times the uniform share is a sink"},
	{"sink_unusual", POLICY_REAL, FIELD(sink_unusual), 1, 20, "deviations", NULL,
		"while a model's attention was never seen: a token whose keys and values are so many "
		"standard "
		"deviations out is taken for a sink"},
	{"sink_keep", POLICY_REAL, FIELD(sink_keep), 0, 5, "score", NULL,
		"how far below the threshold a token that was a sink stays one"},
	{"class_by", POLICY_CHOICE, FIELD(class_by), 0, 2, "", orders,
		"what makes a coded token salient or redundant: attention that was seen or is foretold; how "
		"badly the transform fits it; or how badly its neighbours foretell it"},
	{"salient_share", POLICY_REAL, FIELD(salient_share), 0, 0.5, "share", NULL,
		"share of the coded tokens, the most salient ones, that is coded finer"},
	{"salient_finer", POLICY_COUNT, FIELD(salient_finer), 1, 15, "rungs", NULL, "by how much finer"},
	{"redundant_share", POLICY_REAL, FIELD(redundant_share), 0, 0.5, "share", NULL,
		"share of the coded tokens, the most redundant ones, that is coded coarser"},
	{"redundant_coarser", POLICY_COUNT, FIELD(redundant_coarser), 1, 15, "rungs", NULL,
		"by how much coarser"},
	{"alarm_error", POLICY_REAL, FIELD(alarm_error), 0, 1, "share", NULL,
		"running mean relative error of a namespace and model from which on an alarm is raised; 0: "
		"never"},
	{"shadow", POLICY_REAL, FIELD(shadow), 0, 1, "share", NULL,
		"share of the chunks put that is also kept uncompressed for a while; when an engine shows "
		"queries "
		"(OBSERVE) behind such a chunk, what attention gets from the original and from what is "
		"restored is "
		"compared"},
	{"shadow_seconds", POLICY_COUNT, FIELD(shadow_seconds), 1, 86400, "seconds", NULL,
		"how long a chunk is kept uncompressed; sooner gone under pressure, or when it was compared "
		"often "
		"enough"},
	{"attention_share", POLICY_REAL, FIELD(attention_share), 0, 1, "share", NULL,
		"share of the chunks whose queries an engine has shown before it puts them, of which the "
		"error of "
		"attention outputs is measured when they are put"},
	{"alarm_attention", POLICY_REAL, FIELD(alarm_attention), 0, 1, "share", NULL,
		"running mean relative error of attention outputs of a namespace and model from which on an "
		"alarm "
		"is raised; 0: never"},
};

enum { N_FIELDS = sizeof fields / sizeof *fields };
_Static_assert((int)N_FIELDS <= (int)POLICY_FIELDS_MAX, "they fit");

const struct policy_field *policy_fields(size_t *n)
{
	*n = N_FIELDS;
	return fields;
}

const struct policy_field *policy_field(const char *name)
{
	for (size_t i = 0; i < N_FIELDS; i++)
		if (!strcmp(fields[i].name, name))
			return &fields[i];
	return NULL;
}

/* How many letters must be put in, taken out or changed to make b of a (Levenshtein's distance). */
static size_t distance(const char *a, const char *b)
{
	enum { LEN_MAX = 64 };
	size_t row[LEN_MAX + 1], n = strlen(b);

	if (n > LEN_MAX)
		return SIZE_MAX;
	for (size_t j = 0; j <= n; j++)
		row[j] = j;
	for (size_t i = 0; a[i]; i++) {
		size_t diagonal = row[0];

		row[0] = i + 1;
		for (size_t j = 0; j < n; j++) {
			size_t best = diagonal + (a[i] != b[j]);

			diagonal = row[j + 1];
			if (row[j] + 1 < best)
				best = row[j] + 1;
			if (diagonal + 1 < best)
				best = diagonal + 1;
			row[j + 1] = best;
		}
	}
	return row[n];
}

const char *policy_nearest(const char *name, const void *names, size_t n, size_t stride)
{
	const char *best = NULL;
	size_t best_distance = SIZE_MAX;

	for (size_t i = 0; i < n; i++) {
		const char *candidate = *(const char *const *)((const char *)names + i * stride);
		const size_t d = distance(name, candidate);

		if (d < best_distance) {
			best = candidate;
			best_distance = d;
		}
	}
	return best;
}

static double value_of(const struct policy *p, const struct policy_field *f)
{
	uint32_t count;
	double real;

	if (f->kind == POLICY_REAL) {
		memcpy(&real, (const char *)p + f->offset, sizeof real);
		return real;
	}
	memcpy(&count, (const char *)p + f->offset, sizeof count);
	return count;
}

void policy_copy_field(struct policy *p, const struct policy *from, const struct policy_field *f)
{
	const size_t len = f->kind == POLICY_REAL ? sizeof(double) : sizeof(uint32_t);

	memcpy((char *)p + f->offset, (const char *)from + f->offset, len);
}

static int out_of_range(const struct policy_field *f, const char *text, char *why, size_t why_len)
{
	return fault_say(-EINVAL, why, why_len, "%s: %s is not %g to %g%s%s", f->name, text, f->min, f->max,
		*f->unit ? " " : "", f->unit);
}

static int set_choice(
	struct policy *p, const struct policy_field *f, const char *text, char *why, size_t why_len)
{
	char words[128] = "";

	for (uint32_t i = 0; f->choices[i]; i++) {
		if (!strcmp(f->choices[i], text)) {
			memcpy((char *)p + f->offset, &i, sizeof i);
			return 0;
		}
		snprintf(words + strlen(words), sizeof words - strlen(words), "%s%s", i ? ", " : "",
			f->choices[i]);
	}
	return fault_say(-EINVAL, why, why_len, "%s: \"%.32s\" is none of %s", f->name, text, words);
}

static int set_count(
	struct policy *p, const struct policy_field *f, const char *text, char *why, size_t why_len)
{
	char *end;
	unsigned long long n;
	uint32_t value;

	errno = 0;
	n = strtoull(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || *end)
		return fault_say(-EINVAL, why, why_len, "%s: \"%.32s\" is not a whole number", f->name, text);
	if (errno || (double)n < f->min || (double)n > f->max)
		return out_of_range(f, text, why, why_len);
	value = (uint32_t)n;
	memcpy((char *)p + f->offset, &value, sizeof value);
	return 0;
}

static int set_real(
	struct policy *p, const struct policy_field *f, const char *text, char *why, size_t why_len)
{
	char *end;
	double value = strtod(text, &end);

	if (end != text && *end == '%' && !end[1] && !strcmp(f->unit, "share")) {
		value /= 100;
		end++;
	}
	if (end == text || *end || !isfinite(value))
		return fault_say(-EINVAL, why, why_len, "%s: \"%.32s\" is not a number", f->name, text);
	if (value < f->min || value > f->max)
		return out_of_range(f, text, why, why_len);
	memcpy((char *)p + f->offset, &value, sizeof value);
	return 0;
}

int policy_set(struct policy *p, const char *name, const char *text, char *why, size_t why_len)
{
	const struct policy_field *f = policy_field(name);

	if (!f)
		return fault_say(-EINVAL, why, why_len, "%.32s: unknown field; did you mean %s?", name,
			policy_nearest(name, &fields[0].name, N_FIELDS, sizeof *fields));
	switch (f->kind) {
	case POLICY_CHOICE: return set_choice(p, f, text, why, why_len);
	case POLICY_COUNT: return set_count(p, f, text, why, why_len);
	case POLICY_REAL: return set_real(p, f, text, why, why_len);
	}
	return -EINVAL;
}

void policy_format(const struct policy *p, const struct policy_field *f, char out[POLICY_VALUE_MAX])
{
	if (f->kind == POLICY_CHOICE)
		snprintf(out, POLICY_VALUE_MAX, "%s", f->choices[(size_t)value_of(p, f)]);
	else
		snprintf(out, POLICY_VALUE_MAX, "%.10g", value_of(p, f));
}

int policy_check(const struct policy *p, char *why, size_t why_len)
{
	for (size_t i = 0; i < N_FIELDS; i++) {
		const struct policy_field *f = &fields[i];
		const double value = value_of(p, f);
		char text[32];

		/* Written so that NaN fails. */
		if (value >= f->min && value <= f->max)
			continue;
		snprintf(text, sizeof text, "%g", value);
		return out_of_range(f, text, why, why_len);
	}
	if (p->mode == POLICY_PRESSURE && p->pressure_ratio < p->ratio)
		return fault_say(-EINVAL, why, why_len,
			"pressure_ratio: %g is below target_ratio, %g; under pressure chunks become smaller",
			p->pressure_ratio, p->ratio);
	return 0;
}

/* ---- presets ---- */

static const struct {
	const char *name;
	struct {
		const char *field, *value;
	} values[8];
} presets[POLICY_PRESETS] = {
	[POLICY_ARCHIVAL] = {"archival",
		{{"mode", "fidelity"}, {"target_ratio", "8"}, {"target_error", "0.05"}, {"max_error", "0.25"},
			{"sink_tokens", "8"}, {"window_tokens", "256"}, {"sink_budget", "0.04"}}},
	[POLICY_BALANCED] = {"balanced",
		{{"mode", "ratio"}, {"target_ratio", "16"}, {"max_error", "0.5"}, {"sink_tokens", "4"},
			{"window_tokens", "128"}, {"sink_budget", "0.01"}}},
	[POLICY_COMPACT] = {"compact",
		{{"mode", "ratio"}, {"target_ratio", "32"}, {"max_error", "0.7"}, {"sink_tokens", "4"},
			{"window_tokens", "64"}, {"sink_budget", "0.005"}}},
};

const char *policy_preset_name(enum policy_preset preset)
{
	return preset < POLICY_PRESETS ? presets[preset].name : NULL;
}

int policy_preset_of(const char *name)
{
	for (int i = POLICY_NO_PRESET + 1; i < POLICY_PRESETS; i++)
		if (!strcmp(presets[i].name, name))
			return i;
	return -1;
}

uint64_t policy_apply_preset(struct policy *p, enum policy_preset preset)
{
	uint64_t set = 0;

	for (size_t i = 0; preset < POLICY_PRESETS && presets[preset].values[i].field; i++) {
		policy_set(p, presets[preset].values[i].field, presets[preset].values[i].value, NULL, 0);
		set |= 1ull << (policy_field(presets[preset].values[i].field) - fields);
	}
	return set;
}
