#include "tools/operate/ask.h"

#include <stdio.h>
#include <stdlib.h>

#include "shm/cistern.h"

json_t *ask(const char *command, const char *socket, json_t *request, int timeout_ms)
{
	char *text = request ? json_dumps(request, JSON_COMPACT) : NULL, *answer = NULL;
	json_t *object = NULL;
	int r;

	json_decref(request);
	if (!text) {
		fprintf(stderr, "cistern %s: out of memory\n", command);
		return NULL;
	}
	r = cistern_control(socket, text, &answer, timeout_ms);
	free(text);
	if (r) {
		fprintf(stderr, "cistern %s: %s\n", command, cistern_error(NULL));
		return NULL;
	}
	object = json_loads(answer, 0, NULL);
	free(answer);
	if (object && json_is_true(json_object_get(object, "ok")))
		return object;
	text = (char *)json_string_value(json_object_get(object, "error"));
	fprintf(stderr, "cistern %s: %s\n", command, text ? text : "the daemon's answer is not JSON");
	json_decref(object);
	return NULL;
}

double ask_number(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

const char *ask_text(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}

const char *ask_bytes(double n, char out[32])
{
	static const char units[] = " KMGTP";
	int unit = 0;

	while (n >= 1024 && unit < 5) {
		n /= 1024;
		unit++;
	}
	if (unit)
		snprintf(out, 32, "%.1f %ciB", n, units[unit]);
	else
		snprintf(out, 32, "%.0f B", n);
	return out;
}
