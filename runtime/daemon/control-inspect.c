/* `cistern inspect`: one chunk, as its frame has it, and why its tokens were classified as they were. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hex.h"
#include "runtime/daemon/control.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/frame-json.h"

enum { PREFIX_MIN = 4 /* bytes of a key */ };

static const char *const signals[] = {"norm", "distance", "direction"};

static json_t *finding_object(const struct record *r, const struct sinks_finding *f)
{
	json_t *o = json_pack("{s:I, s:s}", "position", (json_int_t)(r->position + f->token), "reason",
		sinks_reason_name((enum sinks_reason)f->reason));
	struct sinks_place at;

	if (f->reason == SINKS_BY_POSITION)
		return o;
	json_object_set_new(o, "score", json_real((double)f->score));
	json_object_set_new(o, "threshold", json_real((double)f->threshold));
	if (f->reason == SINKS_BY_ATTENTION || !r->searched)
		return o;
	at = sinks_place(&r->view, f->feature);
	json_object_set_new(o, "signal",
		json_pack("{s:s, s:i, s:s, s:i}", "kind", signals[at.signal], "layer", (int)at.layer, "plane",
			at.plane ? "v" : "k", "head_group", (int)at.group));
	return o;
}

static json_t *floats(const float *x, size_t n)
{
	json_t *array = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(
			array, isfinite(x[i]) ? json_real(round((double)x[i] * 1000) / 1000) : json_null());
	return array;
}

static json_t *attention_object(const struct attention_error *e)
{
	return e->n_compared
		       ? json_pack("{s:f, s:f, s:i, s:i}", "mean_error", e->mean, "worst_error", e->worst,
				 "worst_layer", (int)e->worst_layer, "worst_head", (int)e->worst_head)
		       : json_null();
}

static json_t *decision_object(const struct record *r)
{
	json_t *findings = json_array(), *layers = json_array();
	json_t *o = json_pack("{s:I, s:i, s:s, s:i, s:o, s:b, s:b}", "position", (json_int_t)r->position,
		"policy_version", (int)r->policy_version, "preset",
		r->preset ? policy_preset_name((enum policy_preset)r->preset) : "", "rung", (int)r->rung,
		"classes", frame_json_classes(r->classes, r->n_tokens), "searched", (int)r->searched,
		"trained", (int)r->trained);

	for (uint32_t i = 0; i < r->n_findings; i++)
		json_array_append_new(findings, finding_object(r, &r->findings[i]));
	json_object_set_new(o, "sinks", findings);
	json_object_set_new(o, "attention", attention_object(&r->attention));
	json_object_set_new(o, "settled", json_integer((json_int_t)r->n_settled));
	if (!r->searched) {
		json_decref(layers);
		return o;
	}
	/* An answer is one message: of very long chunks the layers are left out. */
	for (uint32_t l = 0; l < r->view.n_layers && r->n_tokens <= 2048; l++)
		json_array_append_new(
			layers, json_pack("{s:i, s:o}", "layer", (int)r->view.layers[l], "scores",
					floats(r->by_layer + (size_t)l * r->n_tokens, r->n_tokens)));
	json_object_set_new(o, "threshold", json_real((double)r->threshold));
	json_object_set_new(o, "scores", floats(r->scores, r->n_tokens));
	json_object_set_new(o, "layers", layers);
	return o;
}

json_t *control_inspect(struct daemon *d, uid_t uid, const json_t *request)
{
	const char *text = json_string_value(json_object_get(request, "key"));
	const struct record *record;
	const struct index_entry *e;
	uint8_t key[32];
	json_t *o, *frame;
	int len;

	(void)uid;
	len = text ? hex_read(text, key, sizeof key) : -EINVAL;
	if (len < PREFIX_MIN)
		return control_failure(
			"\"key\" is not a chunk's key, or its first 8 digits at least, in hexadecimal");
	record = records_find_prefix(governor_records(d->governor), key, (size_t)len);
	if (!record)
		return control_failure("no decisions are kept of such a chunk: only of the last 256 encoded "
				       "since the start");
	e = cache_peek(d->cache, &record->id);
	o = json_pack("{s:b, s:o}", "ok", 1, "decision", decision_object(record));
	frame = e && e->record ? frame_json(cache_frame(e), e->frame_bytes) : NULL;
	json_object_set_new(o, "frame", frame ? frame : json_null());
	return o;
}

json_t *control_decisions(struct daemon *d, uid_t uid, const json_t *request)
{
	const struct records *records = governor_records(d->governor);
	json_t *array = json_array();

	(void)uid;
	(void)request;
	for (size_t i = 0; i < RECORDS_KEPT; i++) {
		const struct record *r = records_at(records, i);
		char key[65];

		if (!r)
			continue;
		hex_write(r->id.key, 32, key);
		json_array_append_new(array, json_pack("{s:s, s:I, s:i, s:i, s:i, s:i}", "key", key,
						     "position", (json_int_t)r->position, "tokens",
						     (int)r->n_tokens, "sinks", (int)r->n_findings, "rung",
						     (int)r->rung, "policy_version", (int)r->policy_version));
	}
	return json_pack("{s:b, s:o}", "ok", 1, "chunks", array);
}
