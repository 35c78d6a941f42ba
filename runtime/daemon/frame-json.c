#include "runtime/daemon/frame-json.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/hex.h"
#include "policy/policy.h"

enum { SECTIONS_MAX = 8192 };

json_t *frame_json_classes(const uint8_t *classes, uint32_t n)
{
	json_t *array = json_array();

	for (uint32_t t = 0, end; t < n; t = end) {
		for (end = t + 1; end < n && classes[end] == classes[t]; end++)
			;
		json_array_append_new(
			array, json_pack("[s, i]", token_class_name(classes[t]), (int)(end - t)));
	}
	return array;
}

static const char *kind_name(uint8_t kind)
{
	switch (kind) {
	case FRAME_CLASSES: return "classes";
	case FRAME_RAW: return "raw";
	case FRAME_STEPS: return "steps";
	case FRAME_CODES: return "codes";
	case FRAME_LEVELS: return "levels";
	default: return "other";
	}
}

static const char *encoding_name(uint8_t encoding)
{
	return encoding == FRAME_RANS ? "rans" : encoding == FRAME_DEFLATE ? "deflate" : "stored";
}

static json_t *hex(const uint8_t *bytes, size_t n)
{
	char text[65];

	hex_write(bytes, n, text);
	return json_string(text);
}

static json_t *header(const struct frame_info *info, size_t len)
{
	json_t *o = json_pack("{s:I, s:i, s:i, s:i, s:i, s:I, s:I, s:[f, f], s:[f, f]}", "position",
		(json_int_t)info->position, "tokens", (int)info->n_tokens, "raw_tokens", (int)info->n_raw,
		"rung", (int)info->rung, "policy_version", (int)info->policy_version, "bytes",
		(json_int_t)len, "raw_bytes", (json_int_t)info->raw_bytes, "mean_error",
		(double)info->error[0].mean, (double)info->error[1].mean, "worst_error",
		(double)info->error[0].max, (double)info->error[1].max);

	json_object_set_new(o, "key", hex(info->key, 32));
	json_object_set_new(o, "parent", hex(info->parent, 32));
	json_object_set_new(o, "transform", hex(info->transform, 16));
	return o;
}

json_t *frame_json(const void *frame, size_t len)
{
	struct frame_section *sections = malloc(SECTIONS_MAX * sizeof *sections);
	struct frame_info info;
	uint8_t classes[FRAME_TOKENS_MAX];
	json_t *o = NULL, *list;

	if (!sections || frame_parse(frame, len, &info, sections, SECTIONS_MAX))
		goto out;
	o = header(&info, len);
	list = json_array();
	for (uint32_t i = 0; i < info.n_sections; i++) {
		const struct frame_section *s = &sections[i];

		json_array_append_new(
			list, json_pack("{s:s, s:i, s:i, s:s, s:s, s:i}", "kind", kind_name(s->kind), "plane",
				      (int)s->plane, "part", (int)s->part, "class",
				      token_class_name(s->token_class), "encoding",
				      encoding_name(s->encoding), "bytes", (int)s->len_bytes));
	}
	json_object_set_new(o, "raw_section_bytes", json_real((double)info.raw_section_bytes));
	if (frame_classes(frame, len, classes) == 0)
		json_object_set_new(o, "classes", frame_json_classes(classes, info.n_tokens));
	json_object_set_new(o, "sections", list);
out:
	free(sections);
	return o;
}
