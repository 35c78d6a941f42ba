#include "runtime/daemon/policies.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/fault.h"
#include "base/file.h"

struct shared {
	struct policy_snapshot snapshot;
	_Atomic uint32_t n_refs;
};

struct policies {
	struct {
		char name[64];
		uint8_t id[16];
		struct policy_snapshot *now;
		struct policy configured;
	} list[CONFIG_NAMESPACES_MAX];
	size_t n;
	uint32_t version;
};

struct policy_snapshot *policy_snapshot_ref(struct policy_snapshot *s)
{
	/* Nothing is read through the new reference that was not readable through the old one. */
	atomic_fetch_add_explicit(&((struct shared *)s)->n_refs, 1, memory_order_relaxed);
	return s;
}

struct policy_snapshot *policy_snapshot_unref(struct policy_snapshot *s)
{
	/* Release: reads through this reference come before the free; acquire: the one who frees has seen
	 * everybody's release. Pairs with itself. */
	if (s && atomic_fetch_sub_explicit(&((struct shared *)s)->n_refs, 1, memory_order_acq_rel) == 1)
		free(s);
	return NULL;
}

static struct policy_snapshot *snapshot_new(const struct policy *p, uint32_t version)
{
	struct shared *s = calloc(1, sizeof *s);

	if (!s)
		return NULL;
	s->n_refs = 1;
	for (int i = 0; i < POLICY_PRESETS; i++) {
		s->snapshot.policy[i] = *p;
		policy_apply_preset(&s->snapshot.policy[i], (enum policy_preset)i);
		s->snapshot.policy[i].version = version;
	}
	return &s->snapshot;
}

struct policies *policies_new(const struct config *config)
{
	struct policies *p = calloc(1, sizeof *p);

	if (!p)
		return NULL;
	p->version = 1;
	for (uint32_t i = 0; i < config->n_namespaces; i++) {
		XXH128_canonical_t id;

		memcpy(p->list[i].name, config->namespaces[i].name, sizeof p->list[i].name);
		XXH128_canonicalFromHash(&id, XXH3_128bits(p->list[i].name, strlen(p->list[i].name)));
		memcpy(p->list[i].id, id.digest, 16);
		p->list[i].configured = config->namespaces[i].policy;
		p->list[i].now = snapshot_new(&p->list[i].configured, 1);
		p->n++;
		if (!p->list[i].now)
			return policies_free(p);
	}
	return p;
}

struct policies *policies_free(struct policies *p)
{
	for (size_t i = 0; p && i < p->n; i++)
		policy_snapshot_unref(p->list[i].now);
	free(p);
	return NULL;
}

int policies_find(const struct policies *p, const char *name_space)
{
	for (size_t i = 0; i < p->n; i++)
		if (!strcmp(p->list[i].name, name_space))
			return (int)i;
	return -ENOENT;
}

size_t policies_count(const struct policies *p)
{
	return p->n;
}

const char *policies_name(const struct policies *p, size_t i)
{
	return p->list[i].name;
}

const uint8_t *policies_id(const struct policies *p, size_t i)
{
	return p->list[i].id;
}

struct policy_snapshot *policies_now(const struct policies *p, size_t i)
{
	return p->list[i].now;
}

size_t policies_number(const struct policies *p, const uint8_t id[16])
{
	for (size_t i = 0; i < p->n; i++)
		if (!memcmp(p->list[i].id, id, 16))
			return i;
	return (size_t)policies_find(p, "default");
}

struct policy_snapshot *policies_of(const struct policies *p, const uint8_t id[16])
{
	return p->list[policies_number(p, id)].now;
}

uint32_t policies_version(const struct policies *p)
{
	return p->version;
}

static bool same_value(const struct policy *a, const struct policy *b, const struct policy_field *f)
{
	const size_t len = f->kind == POLICY_REAL ? sizeof(double) : sizeof(uint32_t);

	return !memcmp((const char *)a + f->offset, (const char *)b + f->offset, len);
}

/* "target_ratio 16 -> 20, mode ratio -> pressure" */
static void summarise(const struct policy *from, const struct policy *to, uint32_t version, char *out)
{
	size_t n, len = (size_t)snprintf(out, POLICY_SUMMARY_MAX, "version %u:", version);
	const struct policy_field *f = policy_fields(&n);
	bool any = false;

	for (size_t i = 0; i < n && len < POLICY_SUMMARY_MAX; i++) {
		char before[POLICY_VALUE_MAX], after[POLICY_VALUE_MAX];

		if (same_value(from, to, &f[i]))
			continue;
		policy_format(from, &f[i], before);
		policy_format(to, &f[i], after);
		len += (size_t)snprintf(out + len, POLICY_SUMMARY_MAX - len, "%s %s %s -> %s", any ? "," : "",
			f[i].name, before, after);
		any = true;
	}
	if (!any && len < POLICY_SUMMARY_MAX)
		snprintf(out + len, POLICY_SUMMARY_MAX - len, " nothing changed");
}

/* Makes a checked policy the one in force. */
static int publish(
	struct policies *p, size_t i, const struct policy *wanted, char *summary, char *why, size_t why_len)
{
	struct policy_snapshot *next;
	int r = policy_check(wanted, why, why_len);

	if (r)
		return r;
	next = snapshot_new(wanted, p->version + 1);
	if (!next)
		return fault_say(-ENOMEM, why, why_len, "out of memory");
	p->version++;
	summarise(&p->list[i].now->policy[0], wanted, p->version, summary);
	policy_snapshot_unref(p->list[i].now);
	p->list[i].now = next;
	return 0;
}

int policies_set(struct policies *p, size_t i, const struct policy_change *changes, size_t n,
	char summary[POLICY_SUMMARY_MAX], char *why, size_t why_len)
{
	struct policy wanted = p->list[i].now->policy[0];

	for (size_t k = 0; k < n; k++) {
		int r;

		if (!strcmp(changes[k].name, "preset")) {
			const int preset = policy_preset_of(changes[k].value);

			if (preset < 0)
				return fault_say(-EINVAL, why, why_len,
					"preset: \"%.32s\" is none of archival, balanced, compact",
					changes[k].value);
			policy_apply_preset(&wanted, (enum policy_preset)preset);
			continue;
		}
		r = policy_set(&wanted, changes[k].name, changes[k].value, why, why_len);
		if (r)
			return r;
	}
	return publish(p, i, &wanted, summary, why, why_len);
}

int policies_reset(struct policies *p, size_t i, const char *const *names, size_t n,
	char summary[POLICY_SUMMARY_MAX], char *why, size_t why_len)
{
	struct policy wanted = p->list[i].now->policy[0];

	for (size_t k = 0; k < n; k++) {
		const struct policy_field *f = policy_field(names[k]);

		if (!f)
			/* Says which name is near. */
			return policy_set(&wanted, names[k], "", why, why_len);
		policy_copy_field(&wanted, &p->list[i].configured, f);
	}
	if (!n)
		wanted = p->list[i].configured;
	return publish(p, i, &wanted, summary, why, why_len);
}

static bool same_policy(const struct policy *a, const struct policy *b)
{
	size_t n;
	const struct policy_field *f = policy_fields(&n);

	for (size_t i = 0; i < n; i++)
		if (!same_value(a, b, &f[i]))
			return false;
	return true;
}

int policies_reload(struct policies *p, const struct config *config)
{
	struct policy_snapshot *next[CONFIG_NAMESPACES_MAX] = {0};
	int r = 0;

	for (size_t i = 0; i < p->n; i++) {
		const struct config_namespace *n = config_namespace(config, p->list[i].name);

		if (!n || same_policy(&n->policy, &p->list[i].now->policy[0]))
			continue;
		next[i] = snapshot_new(&n->policy, p->version + 1);
		if (!next[i])
			r = -ENOMEM;
	}
	for (size_t i = 0; i < p->n && r; i++)
		policy_snapshot_unref(next[i]);
	if (r)
		return r;
	p->version++;
	for (size_t i = 0; i < p->n; i++) {
		const struct config_namespace *n = config_namespace(config, p->list[i].name);

		if (n)
			p->list[i].configured = n->policy;
		if (!next[i])
			continue;
		policy_snapshot_unref(p->list[i].now);
		p->list[i].now = next[i];
	}
	return 0;
}

static int write_policies(const struct policies *p, FILE *f)
{
	size_t n;
	const struct policy_field *fields = policy_fields(&n);

	fputs("# Written by \"cistern policy save\"; read after the configuration, over what it says.\n", f);
	for (size_t i = 0; i < p->n; i++) {
		const struct policy *now = &p->list[i].now->policy[0];

		fprintf(f, "\n[policy %s]\n", p->list[i].name);
		for (size_t k = 0; k < n; k++) {
			char value[POLICY_VALUE_MAX];

			policy_format(now, &fields[k], value);
			fprintf(f, "%s = %s\n", fields[k].name, value);
		}
	}
	return ferror(f) ? -EIO : 0;
}

int policies_save(const struct policies *p, const char *path)
{
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);
	int r = f ? write_policies(p, f) : -ENOMEM;

	if (f && fclose(f) && !r)
		r = -ENOMEM;
	if (!r)
		r = file_write(path, text, len);
	free(text);
	return r;
}
