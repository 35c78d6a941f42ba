/* `cistern policy`: what is in force, and changes to it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/control.h"
#include "runtime/daemon/daemon.h"

static json_t *values_object(const struct policy *p)
{
	json_t *object = json_object();
	size_t n;
	const struct policy_field *f = policy_fields(&n);

	for (size_t i = 0; i < n; i++) {
		char text[POLICY_VALUE_MAX];

		policy_format(p, &f[i], text);
		json_object_set_new(object, f[i].name,
			f[i].kind == POLICY_CHOICE  ? json_string(text)
			: f[i].kind == POLICY_COUNT ? json_integer(atoll(text))
						    : json_real(strtod(text, NULL)));
	}
	return object;
}

static json_t *policy_object(const struct daemon *d, size_t i)
{
	const struct policy *p = &policies_now(d->policies, i)->policy[0];

	return json_pack("{s:s, s:i, s:o}", "namespace", policies_name(d->policies, i), "version",
		(int)p->version, "policy", values_object(p));
}

/* The request's namespace, "default" when it names none; -ENOENT. */
static int wanted_name_space(const struct daemon *d, const json_t *request, const char **name)
{
	const json_t *given = json_object_get(request, "namespace");

	*name = given ? json_string_value(given) : "default";
	return *name ? policies_find(d->policies, *name) : -ENOENT;
}

json_t *control_policy_get(struct daemon *d, uid_t uid, const json_t *request)
{
	json_t *array;
	const char *name;
	int i;

	(void)uid;
	if (json_object_get(request, "namespace")) {
		i = wanted_name_space(d, request, &name);
		array = i < 0 ? NULL : json_array();
		if (i < 0)
			return control_failure("no such namespace");
		json_array_append_new(array, policy_object(d, (size_t)i));
	} else {
		array = json_array();
		for (size_t k = 0; k < policies_count(d->policies); k++)
			json_array_append_new(array, policy_object(d, k));
	}
	return json_pack("{s:b, s:o}", "ok", 1, "policies", array);
}

json_t *control_policy_list(struct daemon *d, uid_t uid, const json_t *request)
{
	json_t *array = json_array(), *presets = json_array();
	size_t n;
	const struct policy_field *f = policy_fields(&n);
	struct policy defaults;

	(void)d;
	(void)uid;
	(void)request;
	policy_init(&defaults);
	for (size_t i = 0; i < n; i++) {
		json_t *field =
			json_pack("{s:s, s:s, s:s}", "name", f[i].name, "unit", f[i].unit, "help", f[i].help);
		char text[POLICY_VALUE_MAX];

		policy_format(&defaults, &f[i], text);
		json_object_set_new(field, "default", json_string(text));
		if (f[i].kind == POLICY_CHOICE) {
			json_t *words = json_array();

			for (size_t k = 0; f[i].choices[k]; k++)
				json_array_append_new(words, json_string(f[i].choices[k]));
			json_object_set_new(field, "choices", words);
		} else {
			json_object_set_new(field, "min", json_real(f[i].min));
			json_object_set_new(field, "max", json_real(f[i].max));
		}
		json_array_append_new(array, field);
	}
	for (int i = POLICY_NO_PRESET + 1; i < POLICY_PRESETS; i++) {
		struct policy p = defaults;

		policy_apply_preset(&p, (enum policy_preset)i);
		json_array_append_new(
			presets, json_pack("{s:s, s:o}", "name", policy_preset_name((enum policy_preset)i),
					 "policy", values_object(&p)));
	}
	return json_pack("{s:b, s:o, s:o}", "ok", 1, "fields", array, "presets", presets);
}

/* Changes as text: numbers in the request are taken as they would be written. -EINVAL. */
static int take_changes(const json_t *set, struct policy_change *changes,
	char texts[POLICY_CHANGES_MAX][POLICY_VALUE_MAX], size_t *n)
{
	const char *name;
	json_t *value;

	*n = 0;
	json_object_foreach((json_t *)set, name, value)
	{
		if (*n == POLICY_CHANGES_MAX)
			return -EINVAL;
		changes[*n].name = name;
		changes[*n].value = texts[*n];
		if (json_is_string(value))
			changes[*n].value = json_string_value(value);
		else if (json_is_integer(value))
			snprintf(texts[*n], POLICY_VALUE_MAX, "%lld", (long long)json_integer_value(value));
		else if (json_is_real(value))
			snprintf(texts[*n], POLICY_VALUE_MAX, "%.15g", json_real_value(value));
		else
			return -EINVAL;
		(*n)++;
	}
	return *n ? 0 : -EINVAL;
}

/* The end of every change: the event, and the answer. */
static json_t *changed(struct daemon *d, uid_t uid, size_t i, int r, const char *summary, const char *why)
{
	json_t *answer;

	if (r) {
		events_add(d->events, EVENT_POLICY, uid, policies_name(d->policies, i), "refused: %s", why);
		return control_failure(why);
	}
	events_add(d->events, EVENT_POLICY, uid, policies_name(d->policies, i), "%s", summary);
	governor_review(d->governor);
	answer = policy_object(d, i);
	json_object_set_new(answer, "ok", json_true());
	json_object_set_new(answer, "changed", json_string(summary));
	return answer;
}

json_t *control_policy_set(struct daemon *d, uid_t uid, const json_t *request)
{
	char texts[POLICY_CHANGES_MAX][POLICY_VALUE_MAX], why[POLICY_WHY_MAX] = "",
							  summary[POLICY_SUMMARY_MAX];
	struct policy_change changes[POLICY_CHANGES_MAX];
	const char *name;
	const int i = wanted_name_space(d, request, &name);
	size_t n;

	if (i < 0)
		return control_failure("no such namespace");
	if (take_changes(json_object_get(request, "set"), changes, texts, &n))
		return control_failure("\"set\" is not an object of fields with their values");
	return changed(d, uid, (size_t)i,
		policies_set(d->policies, (size_t)i, changes, n, summary, why, sizeof why), summary, why);
}

json_t *control_policy_reset(struct daemon *d, uid_t uid, const json_t *request)
{
	const json_t *fields = json_object_get(request, "fields");
	char why[POLICY_WHY_MAX] = "", summary[POLICY_SUMMARY_MAX];
	const char *names[POLICY_CHANGES_MAX], *name;
	const int i = wanted_name_space(d, request, &name);
	size_t n = fields ? json_array_size(fields) : 0;

	if (i < 0)
		return control_failure("no such namespace");
	if ((fields && !json_is_array(fields)) || n > POLICY_CHANGES_MAX)
		return control_failure("\"fields\" is not an array of names");
	for (size_t k = 0; k < n; k++) {
		names[k] = json_string_value(json_array_get(fields, k));
		if (!names[k])
			return control_failure("\"fields\" is not an array of names");
	}
	return changed(d, uid, (size_t)i,
		policies_reset(d->policies, (size_t)i, names, n, summary, why, sizeof why), summary, why);
}

json_t *control_policy_save(struct daemon *d, uid_t uid, const json_t *request)
{
	const char *path = d->config->policy_file;
	char why[400];
	int r;

	(void)request;
	if (!*path)
		return control_failure("there is no policy_file in the configuration's [daemon] section");
	r = policies_save(d->policies, path);
	if (r) {
		snprintf(why, sizeof why, "%s: %s", path, strerror(-r));
		return control_failure(why);
	}
	events_add(d->events, EVENT_POLICY, uid, NULL, "saved to %s", path);
	return json_pack("{s:b, s:s}", "ok", 1, "file", path);
}
