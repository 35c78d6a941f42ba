#include "runtime/config.h"

#include "base/address.h"
#include "base/file.h"
#include "base/log.h"
#include "runtime/frame.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ini.h>

/*
 * One table says what keys there are, where each goes, and what it may hold; the rest of the file reads by
 * it. inih splits lines into names and values, but cuts long lines and long section names short in silence,
 * takes an indented line for more of the line above, and says nothing of a section that holds no keys, nor
 * (as it is usually built) which line a key was on. So the lines go through read_line first, which counts
 * them, refuses what inih would mangle, strips the indentation, and takes note of sections.
 */

void config_init(struct config *c)
{
	*c = (struct config){
		.socket = "/run/cistern/cistern.sock",
		.chunk_tokens = 256,
		.max_clients = 64,
		.max_requests = 1024,
		.max_memory_bytes = 1ull << 40,
		.upkeep_percent = 25,
		.backend = "auto",
		.device = CONFIG_DEVICE_AUTO,
		.device_staging = 512ull << 20,
		.device_share = 10,
		.device_max_mapped = 1ull << 40,
		.log_level = LOG_LEVEL_INFO,
		.shadow_bytes = 256ull << 20,
		.pool_bytes = 1ull << 30,
		.store_bytes = 16ull << 30,
		.learn = {.first_tokens = 4096,
			.cpu_percent = 25,
			.only_idle = true,
			.drift_percent = 5,
			.memory_bytes = 4ull << 30,
			.versions = 8},
		.namespaces = {{.name = "default", .declared = true}},
		.n_namespaces = 1,
	};
	policy_init(&c->policy);
	c->namespaces[0].policy = c->policy;
}

const struct config_namespace *config_namespace(const struct config *c, const char *name)
{
	for (uint32_t i = 0; i < c->n_namespaces; i++)
		if (!strcmp(c->namespaces[i].name, name))
			return &c->namespaces[i];
	return NULL;
}

/* ---- what there is ---- */

enum kind {
	KIND_TEXT,
	KIND_COUNT,
	KIND_SIZE,
	KIND_LEVEL,
	KIND_BACKEND,
	KIND_DEVICE,
	KIND_TRANSFORM,
	KIND_ADDRESS,
	KIND_FLAG,
	KIND_ADMINS,
	KIND_UIDS,
	KIND_QUOTA /* a size, of the namespace; offset and max as of KIND_SIZE */
};

struct key {
	const char *section;
	const char *name;
	enum kind kind;
	size_t offset;
	uint64_t min, max; /* COUNT, SIZE: the value; TEXT: length, without the NUL */
};

#define TEXT(section, name, field, min)                                                                      \
	{                                                                                                    \
		section, name, KIND_TEXT, offsetof(struct config, field), min,                               \
			sizeof(((struct config *)NULL)->field) - 1                                           \
	}
#define NUMBER(section, name, kind, field, min, max)                                                         \
	{                                                                                                    \
		section, name, kind, offsetof(struct config, field), min, max                                \
	}
#define SPECIAL(section, name, kind)                                                                         \
	{                                                                                                    \
		section, name, kind, 0, 0, 0                                                                 \
	}

#define QUOTA(name, field)                                                                                   \
	{                                                                                                    \
		"namespace", name, KIND_QUOTA, offsetof(struct config_namespace, field), 1 << 20, 1ull << 50 \
	}

static const struct key keys[] = {
	TEXT("daemon", "socket", socket, 1),
	NUMBER("daemon", "chunk_tokens", KIND_COUNT, chunk_tokens, 1, FRAME_TOKENS_MAX),
	NUMBER("daemon", "workers", KIND_COUNT, workers, 0, 1024),
	NUMBER("daemon", "spin_us", KIND_COUNT, spin_us, 0, 1000000),
	NUMBER("daemon", "max_clients", KIND_COUNT, max_clients, 1, 4096),
	NUMBER("daemon", "max_requests", KIND_COUNT, max_requests, 1, 8192),
	NUMBER("daemon", "max_memory", KIND_SIZE, max_memory_bytes, 1 << 20, 1ull << 47),
	NUMBER("daemon", "upkeep_percent", KIND_COUNT, upkeep_percent, 1, 100),
	SPECIAL("daemon", "backend", KIND_BACKEND),
	SPECIAL("daemon", "device", KIND_DEVICE),
	NUMBER("daemon", "device_pool", KIND_SIZE, device_pool, 0, 1ull << 43),
	NUMBER("daemon", "device_staging", KIND_SIZE, device_staging, 1 << 20, 1ull << 40),
	NUMBER("daemon", "device_share", KIND_COUNT, device_share, 1, 100),
	NUMBER("daemon", "device_map", KIND_SIZE, device_max_mapped, 1 << 20, 1ull << 47),
	SPECIAL("daemon", "log_level", KIND_LEVEL),
	SPECIAL("daemon", "admins", KIND_ADMINS),
	TEXT("daemon", "policy_file", policy_file, 0),
	NUMBER("daemon", "shadow_memory", KIND_SIZE, shadow_bytes, 0, 1ull << 43),
	NUMBER("pool", "size", KIND_SIZE, pool_bytes, 1 << 20, 1ull << 43),
	TEXT("store", "path", store_dir, 0),
	NUMBER("store", "size", KIND_SIZE, store_bytes, 1 << 20, 1ull << 50),
	NUMBER("store", "segment_size", KIND_SIZE, segment_bytes, 1 << 20, 1ull << 32),
	SPECIAL("metrics", "listen", KIND_ADDRESS),
	SPECIAL("transforms", "path", KIND_TRANSFORM),
	NUMBER("learn", "enabled", KIND_FLAG, learn.enabled, 0, 0),
	NUMBER("learn", "first_tokens", KIND_COUNT, learn.first_tokens, 512, 1 << 24),
	NUMBER("learn", "cpu_percent", KIND_COUNT, learn.cpu_percent, 1, 100),
	NUMBER("learn", "only_idle", KIND_FLAG, learn.only_idle, 0, 0),
	NUMBER("learn", "drift_percent", KIND_COUNT, learn.drift_percent, 1, 99),
	NUMBER("learn", "memory", KIND_SIZE, learn.memory_bytes, 1 << 16, 1ull << 43),
	NUMBER("learn", "versions", KIND_COUNT, learn.versions, 2, 64),
	SPECIAL("namespace", "uids", KIND_UIDS),
	QUOTA("pool_quota", pool_quota),
	QUOTA("store_quota", store_quota),
};

enum { N_KEYS = sizeof keys / sizeof keys[0] };

static const char *const levels[] = {"error", "warning", "info", "debug"};

/* ---- the reading of one file ---- */

struct loader {
	const char *path;
	const char *at, *end; /* what is still to be read */
	uint32_t line;
	char title[96];                      /* of the section as it stands between the brackets */
	const char *section;                 /* as in the table; NULL before the first */
	struct config_namespace *name_space; /* of the section */
	uint32_t seen[N_KEYS];               /* line that set the key; 0: not set */
	uint32_t seen_namespace[CONFIG_NAMESPACES_MAX][N_KEYS];
	/* [policy], then [policy NAME] of each namespace: the line that set each field, the last one the
	 * preset. */
	uint32_t seen_policy[1 + CONFIG_NAMESPACES_MAX][POLICY_FIELDS_MAX + 1];
	bool policies_only; /* of a file that may hold nothing else */
	struct config config;
	uint32_t failed_line; /* 0: nothing wrong yet */
	char *why;
	size_t why_len;
};

/* Only the first fault is told. */
static bool __attribute__((format(printf, 4, 5)))
fail(struct loader *l, uint32_t line, const char *key, const char *format, ...)
{
	char what[256];
	va_list args;

	if (l->failed_line && l->failed_line <= line)
		return false;
	va_start(args, format);
	vsnprintf(what, sizeof what, format, args);
	va_end(args);
	l->failed_line = line;
	if (key)
		snprintf(l->why, l->why_len, "%s:%u: [%s] %s: %s", l->path, line, l->title, key, what);
	else
		snprintf(l->why, l->why_len, "%s:%u: %s", l->path, line, what);
	return false;
}

/* ---- names that nearly are one ---- */

/* The nearest key of the section (NULL: the nearest section) to name. */
static const char *nearest(const char *section, const char *name)
{
	const char *names[N_KEYS + 1];
	size_t n = 0;

	for (size_t i = 0; i < N_KEYS; i++)
		if (!section || strcmp(keys[i].section, section) == 0)
			names[n++] = section ? keys[i].name : keys[i].section;
	if (!section)
		names[n++] = "policy";
	return policy_nearest(name, names, n, sizeof *names);
}

/* ---- values ---- */

/* A whole number, with unit letters allowed or not. */
static bool parse_number(const char *text, bool units, uint64_t *out)
{
	static const char letters[] = "KMGT";
	const char *letter;
	char *end;
	uint64_t value;

	if (!isdigit((unsigned char)text[0]))
		return false;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno)
		return false;
	if (units && *end && (letter = strchr(letters, toupper((unsigned char)*end)))) {
		if (__builtin_mul_overflow(value, 1ull << 10 * (letter - letters + 1), &value))
			return false;
		end++;
	}
	if (*end)
		return false;
	*out = value;
	return true;
}

static bool set_number(struct loader *l, const struct key *key, const char *text)
{
	bool size = key->kind == KIND_SIZE;
	char *field = (char *)&l->config + key->offset;
	uint64_t value;

	if (!parse_number(text, size, &value))
		return fail(l, l->line, key->name, "\"%s\" is not %s", text,
			size ? "a size (a whole number of bytes, or with K, M, G or T after it)"
			     : "a whole number");
	if (value < key->min || value > key->max)
		return fail(l, l->line, key->name, "%s is out of range (%llu to %llu)", text,
			(unsigned long long)key->min, (unsigned long long)key->max);
	if (size)
		memcpy(field, &value, sizeof value);
	else
		memcpy(field, &(uint32_t){(uint32_t)value}, sizeof(uint32_t));
	return true;
}

/* 0: none. */
static bool set_quota(struct loader *l, const struct key *key, const char *text)
{
	uint64_t value;

	if (!parse_number(text, true, &value))
		return fail(l, l->line, key->name, "\"%s\" is not a size", text);
	if (value && (value < key->min || value > key->max))
		return fail(l, l->line, key->name, "%s is out of range (0 for none, or %llu to %llu)", text,
			(unsigned long long)key->min, (unsigned long long)key->max);
	memcpy((char *)l->name_space + key->offset, &value, sizeof value);
	return true;
}

static bool set_text(struct loader *l, const struct key *key, const char *text)
{
	size_t len = strlen(text);

	if (len < key->min)
		return fail(l, l->line, key->name, "must not be empty");
	if (len > key->max)
		return fail(l, l->line, key->name, "longer than %llu bytes", (unsigned long long)key->max);
	memcpy((char *)&l->config + key->offset, text, len + 1);
	return true;
}

static bool set_flag(struct loader *l, const struct key *key, const char *text)
{
	const bool yes = strcmp(text, "yes") == 0;

	if (!yes && strcmp(text, "no") != 0)
		return fail(l, l->line, key->name, "\"%s\" is neither yes nor no", text);
	memcpy((char *)&l->config + key->offset, &yes, sizeof yes);
	return true;
}

static bool set_backend(struct loader *l, const char *text)
{
	if (strcmp(text, "auto") != 0 && strcmp(text, "host") != 0)
		return fail(l, l->line, "backend", "\"%s\" is neither auto nor host", text);
	strcpy(l->config.backend, text);
	return true;
}

static bool set_device(struct loader *l, const char *text)
{
	uint64_t ordinal;

	if (strcmp(text, "none") == 0)
		l->config.device = CONFIG_DEVICE_NONE;
	else if (strcmp(text, "auto") == 0)
		l->config.device = CONFIG_DEVICE_AUTO;
	else if (parse_number(text, false, &ordinal) && ordinal < 1024)
		l->config.device = (int)ordinal;
	else
		return fail(l, l->line, "device", "\"%s\" is neither none nor auto nor a GPU's number", text);
	return true;
}

static bool set_level(struct loader *l, const char *text)
{
	for (uint32_t i = 0; i < sizeof levels / sizeof levels[0]; i++) {
		if (strcmp(text, levels[i]) == 0) {
			l->config.log_level = i;
			return true;
		}
	}
	return fail(l, l->line, "log_level", "\"%s\" is none of error, warning, info, debug", text);
}

static bool add_transform(struct loader *l, const char *text)
{
	struct config *c = &l->config;

	if (!*text)
		return fail(l, l->line, "path", "must not be empty");
	if (strlen(text) >= CONFIG_PATH_MAX)
		return fail(l, l->line, "path", "longer than %d bytes", CONFIG_PATH_MAX - 1);
	if (c->n_transforms == CONFIG_TRANSFORMS_MAX)
		return fail(l, l->line, "path", "more than %d transforms", CONFIG_TRANSFORMS_MAX);
	strcpy(c->transforms[c->n_transforms++], text);
	return true;
}

static bool set_address(struct loader *l, const char *text)
{
	struct address address;
	char why[160];

	if (strlen(text) >= sizeof l->config.metrics_listen)
		return fail(
			l, l->line, "listen", "longer than %zu bytes", sizeof l->config.metrics_listen - 1);
	if (*text && address_parse(text, &address, why, sizeof why))
		return fail(l, l->line, "listen", "%s", why);
	strcpy(l->config.metrics_listen, text);
	return true;
}

/* User ids with blanks or commas between them. */
static bool parse_uids(
	struct loader *l, const char *key, const char *text, const char * or, uid_t *uids, uint32_t *n)
{
	char copy[256], *rest = copy, *word;

	if (strlen(text) >= sizeof copy)
		return fail(l, l->line, key, "longer than %zu bytes", sizeof copy - 1);
	strcpy(copy, text);
	while ((word = strsep(&rest, ", \t"))) {
		uint64_t uid;

		if (!*word)
			continue;
		/* The largest uid_t stands for "no user" in system calls. */
		if (!parse_number(word, false, &uid) || uid >= UINT32_MAX)
			return fail(l, l->line, key, "\"%s\" is not a user id (a number)%s", word, or);
		if (*n == CONFIG_UIDS_MAX)
			return fail(l, l->line, key, "more than %d user ids", CONFIG_UIDS_MAX);
		uids[(*n)++] = (uid_t)uid;
	}
	return *n ? true : fail(l, l->line, key, "must not be empty");
}

static bool set_uids(struct loader *l, const char *text)
{
	struct config_namespace *n = l->name_space;

	if (strcmp(text, "any") == 0) {
		n->any_uid = true;
		return true;
	}
	return parse_uids(l, "uids", text, ", nor \"any\"", n->uids, &n->n_uids);
}

static bool set_value(struct loader *l, const struct key *key, const char *value)
{
	switch (key->kind) {
	case KIND_TEXT: return set_text(l, key, value);
	case KIND_COUNT:
	case KIND_SIZE: return set_number(l, key, value);
	case KIND_LEVEL: return set_level(l, value);
	case KIND_BACKEND: return set_backend(l, value);
	case KIND_DEVICE: return set_device(l, value);
	case KIND_TRANSFORM: return add_transform(l, value);
	case KIND_ADDRESS: return set_address(l, value);
	case KIND_FLAG: return set_flag(l, key, value);
	case KIND_ADMINS: return parse_uids(l, "admins", value, "", l->config.admins, &l->config.n_admins);
	case KIND_UIDS: return set_uids(l, value);
	case KIND_QUOTA: return set_quota(l, key, value);
	}
	return false;
}

/* ---- lines, sections, keys ---- */

static bool begin_namespace(struct loader *l, const char *name)
{
	struct config *c = &l->config;
	size_t len = strlen(name);

	if (len == 0 || len >= sizeof c->namespaces[0].name)
		return fail(l, l->line, NULL, "[%s]: a namespace's name has 1 to %zu bytes", l->title,
			sizeof c->namespaces[0].name - 1);
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)name[i] <= ' ' || name[i] == 0x7f)
			return fail(l, l->line, NULL, "[%s]: a namespace's name holds no blanks", l->title);
	for (uint32_t i = 0; i < c->n_namespaces; i++) {
		if (strcmp(c->namespaces[i].name, name) == 0) {
			l->name_space = &c->namespaces[i];
			return true;
		}
	}
	if (c->n_namespaces == CONFIG_NAMESPACES_MAX)
		return fail(
			l, l->line, NULL, "[%s]: more than %d namespaces", l->title, CONFIG_NAMESPACES_MAX);
	l->name_space = &c->namespaces[c->n_namespaces++];
	memcpy(l->name_space->name, name, len + 1);
	return true;
}

/* "word NAME" in the title: NAME. */
static const char *name_after(const struct loader *l, const char *word)
{
	const char *name = l->title + strlen(word);

	if (strncmp(l->title, word, strlen(word)) != 0 || !isspace((unsigned char)*name))
		return NULL;
	while (isspace((unsigned char)*name))
		name++;
	return name;
}

/* text: the line from its opening bracket on. A bracket that is never closed is left for inih to refuse. */
static bool begin_section(struct loader *l, const char *text, size_t len)
{
	const char *close = memchr(text, ']', len), *rest;
	const char *name = NULL;

	if (!close)
		return true;
	for (rest = close + 1; rest < text + len && isspace((unsigned char)*rest); rest++)
		;
	if (rest < text + len && !strchr(";#", *rest))
		return fail(l, l->line, NULL, "nothing but a comment may follow a section's name");
	if ((size_t)(close - text) > sizeof l->title)
		return fail(
			l, l->line, NULL, "a section's name is longer than %zu bytes", sizeof l->title - 1);
	snprintf(l->title, sizeof l->title, "%.*s", (int)(close - text - 1), text + 1);
	l->name_space = NULL;
	if (strcmp(l->title, "policy") == 0 || (name = name_after(l, "policy"))) {
		l->section = "policy";
		return strcmp(l->title, "policy") == 0 || begin_namespace(l, name);
	}
	if (l->policies_only)
		return fail(
			l, l->line, NULL, "[%s]: this file holds [policy] and [policy NAME] only", l->title);
	if ((name = name_after(l, "namespace"))) {
		l->section = "namespace";
		if (!begin_namespace(l, name))
			return false;
		l->name_space->declared = true;
		return true;
	}
	for (size_t i = 0; i < N_KEYS; i++) {
		if (strcmp(keys[i].section, l->title) == 0 && strcmp(l->title, "namespace") != 0) {
			l->section = keys[i].section;
			return true;
		}
	}
	if (strcmp(nearest(NULL, l->title), "namespace") == 0)
		return fail(
			l, l->line, NULL, "[%s]: unknown section; did you mean [namespace NAME]?", l->title);
	return fail(l, l->line, NULL, "[%s]: unknown section; did you mean [%s]?", l->title,
		nearest(NULL, l->title));
}

/* inih's reader, in the manner of fgets. */
static char *read_line(char *out, int room, void *arg)
{
	struct loader *l = arg;
	const char *start = l->at, *newline;
	size_t len;

	if (l->failed_line || start == l->end)
		return NULL;
	newline = memchr(start, '\n', (size_t)(l->end - start));
	l->at = newline ? newline + 1 : l->end;
	l->line++;
	while (start < l->at && (*start == ' ' || *start == '\t'))
		start++;
	len = (size_t)(l->at - start);
	if (memchr(start, 0, len)) {
		fail(l, l->line, NULL, "not text: the line holds a NUL byte");
		return NULL;
	}
	if (len >= (size_t)room) {
		fail(l, l->line, NULL, "longer than %d bytes", room - 2);
		return NULL;
	}
	if (len && *start == '[' && !begin_section(l, start, len))
		return NULL;
	memcpy(out, start, len);
	out[len] = 0;
	return out;
}

/* Of [policy] or [policy NAME]. The values of the latter are laid over the former's when both are known. */
static bool set_policy(struct loader *l, const char *name, const char *value)
{
	struct config_namespace *n = l->name_space;
	uint32_t *lines = l->seen_policy[n ? 1 + (n - l->config.namespaces) : 0], *seen;
	struct policy *p = n ? &n->policy : &l->config.policy;
	const struct policy_field *field = policy_field(name);
	const int preset = strcmp(name, "preset") ? 0 : policy_preset_of(value);
	char why[POLICY_WHY_MAX];
	size_t n_fields;
	uint64_t set;

	seen = &lines[field ? (size_t)(field - policy_fields(&n_fields)) : POLICY_FIELDS_MAX];
	if (*seen && (field || preset))
		return fail(l, l->line, name, "set already in line %u", *seen);
	if (preset < 0)
		return fail(l, l->line, name, "\"%s\" is none of archival, balanced, compact", value);
	if (preset) {
		set = policy_apply_preset(p, (enum policy_preset)preset);
	} else {
		if (policy_set(p, name, value, why, sizeof why) < 0) {
			/* The sentence names the field, as this line will. */
			const char *what = strstr(why, ": ");

			return fail(l, l->line, name, "%s", what ? what + 2 : why);
		}
		set = 1ull << (field - policy_fields(&n_fields));
	}
	*seen = l->line;
	if (n)
		n->policy_own |= set;
	return true;
}

static bool set_key(struct loader *l, const char *name, const char *value)
{
	size_t i;
	uint32_t *seen;

	if (!l->section)
		return fail(l, l->line, NULL, "%s: stands before the first [section]", name);
	if (strcmp(l->section, "policy") == 0)
		return set_policy(l, name, value);
	for (i = 0; i < N_KEYS; i++)
		if (strcmp(keys[i].section, l->section) == 0 && strcmp(keys[i].name, name) == 0)
			break;
	if (i == N_KEYS)
		return fail(l, l->line, name, "unknown key; did you mean %s?", nearest(l->section, name));
	seen = strcmp(l->section, "namespace") == 0
		       ? &l->seen_namespace[l->name_space - l->config.namespaces][i]
		       : &l->seen[i];
	if (*seen && keys[i].kind != KIND_TRANSFORM)
		return fail(l, l->line, name, "set already in line %u", *seen);
	*seen = l->line;
	return set_value(l, &keys[i], value);
}

/* inih's handler. The section is known already. */
static int take_pair(void *arg, const char *section, const char *name, const char *value)
{
	(void)section;
	return set_key(arg, name, value);
}

/* ---- what only the whole can tell ---- */

static uint32_t line_of(const struct loader *l, const char *section, const char *name)
{
	for (size_t i = 0; i < N_KEYS; i++)
		if (strcmp(keys[i].section, section) == 0 && strcmp(keys[i].name, name) == 0)
			return l->seen[i];
	return 0;
}

/* What only several fields together can be: told at the line of the one that the sentence names. */
static bool check_policy(struct loader *l, const struct policy *p, const struct config_namespace *n)
{
	const uint32_t *lines = l->seen_policy[n ? 1 + (n - l->config.namespaces) : 0];
	char why[POLICY_WHY_MAX] = "";
	const struct policy_field *f;
	size_t n_fields;
	uint32_t line = 0;

	if (policy_check(p, why, sizeof why) == 0)
		return true;
	f = policy_fields(&n_fields);
	for (size_t i = 0; i < n_fields; i++)
		if (strncmp(why, f[i].name, strlen(f[i].name)) == 0 && why[strlen(f[i].name)] == ':')
			line = lines[i];
	for (size_t i = 0; i <= POLICY_FIELDS_MAX && !line; i++)
		line = lines[i];
	snprintf(l->title, sizeof l->title, n ? "policy %s" : "policy", n ? n->name : "");
	return fail(l, line ? line : 1, NULL, "[%s] %s", l->title, why);
}

static bool check_policies(struct loader *l)
{
	struct config *c = &l->config;
	size_t n_fields;
	const struct policy_field *fields = policy_fields(&n_fields);

	if (!check_policy(l, &c->policy, NULL))
		return false;
	for (uint32_t i = 0; i < c->n_namespaces; i++) {
		struct config_namespace *n = &c->namespaces[i];
		struct policy p = c->policy;

		for (size_t k = 0; k < n_fields; k++)
			if (n->policy_own >> k & 1)
				policy_copy_field(&p, &n->policy, &fields[k]);
		n->policy = p;
		if (!n->declared)
			return fail(l, 1, NULL, "[policy %s]: there is no [namespace %s]", n->name, n->name);
		if (!check_policy(l, &p, n))
			return false;
	}
	return true;
}

static bool check_whole(struct loader *l)
{
	const struct config *c = &l->config;

	if (!check_policies(l))
		return false;
	if (c->segment_bytes % 4096 || c->store_bytes / 4 < c->segment_bytes) {
		uint32_t size = line_of(l, "store", "size"), segment = line_of(l, "store", "segment_size");

		strcpy(l->title, "store");
		if (c->segment_bytes % 4096)
			return fail(l, segment, "segment_size", "not a multiple of 4K");
		return fail(l, size > segment ? size : segment, size > segment ? "size" : "segment_size",
			"the store must hold at least four segments (size %llu, segment_size %llu)",
			(unsigned long long)c->store_bytes, (unsigned long long)c->segment_bytes);
	}
	return true;
}

/* Reads one file's lines into the loader. -errno of the file. */
static int load_file(struct loader *l, const char *path)
{
	void *text = NULL;
	size_t len;
	int r = file_read(path, &text, &len);

	if (r < 0)
		return r;
	l->path = path;
	l->line = 0;
	l->section = NULL;
	l->at = text;
	l->end = l->at + len;
	if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
		l->at += 3; /* a byte order mark */
	r = ini_parse_stream(read_line, l, take_pair, l);
	if (r > 0)
		fail(l, (uint32_t)r, NULL, "neither [section] nor KEY = VALUE");
	else if (r < 0)
		fail(l, 1, NULL, "%s", strerror(ENOMEM));
	free(text);
	return 0;
}

int config_load(const char *path, struct config *c, char *why, size_t why_len)
{
	struct loader *l = calloc(1, sizeof *l);
	int r = l ? 0 : -ENOMEM;

	if (l) {
		l->why = why;
		l->why_len = why_len;
		config_init(&l->config);
		r = load_file(l, path);
	}
	if (r < 0) {
		snprintf(why, why_len, "%s: %s", path, strerror(-r));
		free(l);
		return r;
	}
	snprintf(l->config.path, sizeof l->config.path, "%s", path);
	if (!l->failed_line && l->config.policy_file[0]) {
		l->policies_only = true;
		memset(l->seen_policy, 0, sizeof l->seen_policy);
		r = load_file(l, l->config.policy_file);
		if (r < 0 && r != -ENOENT)
			snprintf(why, why_len, "%s: %s", l->config.policy_file, strerror(-r));
		r = r == -ENOENT ? 0 : r;
	}
	if (!r && !l->failed_line)
		check_whole(l);
	if (l->failed_line)
		r = -EINVAL;
	if (r == 0)
		*c = l->config;
	free(l);
	return r;
}
