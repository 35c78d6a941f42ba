#include "tools/engine/text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/file.h"

void text_encode(const char *text, size_t len, uint32_t *tokens)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char byte = (unsigned char)text[i];

		tokens[i] = byte == 1 ? TEXT_BOS : byte == 2 ? TEXT_SEP : byte;
	}
}

void text_decode(const uint32_t *tokens, size_t n, char *text)
{
	for (size_t i = 0; i < n; i++)
		text[i] = tokens[i] < 256         ? (char)tokens[i]
			  : tokens[i] == TEXT_BOS ? 1
			  : tokens[i] == TEXT_SEP ? 2
						  : '?';
}

static int tokens_new(size_t n, struct tokens *out)
{
	uint32_t *list = calloc(n ? n : 1, sizeof *list);

	if (!list)
		return -ENOMEM;
	*out = (struct tokens){n, list};
	return 0;
}

void tokens_fini(struct tokens *t)
{
	free(t->list);
	*t = (struct tokens){0};
}

int text_read(const char *path, struct tokens *out)
{
	void *data;
	size_t len;
	int r = file_read(path, &data, &len);

	if (r < 0)
		return r;
	r = tokens_new(len, out);
	if (r == 0)
		text_encode(data, len, out->list);
	free(data);
	return r;
}

/* A string or a list of ids. NULL: no tokens. */
static int tokens_parse(const json_t *value, struct tokens *out)
{
	size_t n = json_is_string(value) ? json_string_length(value) : json_array_size(value);
	int r;

	if (value && !json_is_string(value) && !json_is_array(value))
		return -EINVAL;
	r = tokens_new(n, out);
	if (r < 0)
		return r;
	if (json_is_string(value))
		text_encode(json_string_value(value), n, out->list);
	for (size_t i = 0; json_is_array(value) && i < n; i++) {
		const json_t *id = json_array_get(value, i);
		json_int_t token = json_integer_value(id);

		if (!json_is_integer(id) || token < 0 || token > INT32_MAX) {
			tokens_fini(out);
			return -EINVAL;
		}
		out->list[i] = (uint32_t)token;
	}
	return 0;
}

static int probe_parse(const json_t *given, const json_t *answer, struct probe *out)
{
	int r = tokens_parse(given, &out->given);

	return r < 0 ? r : tokens_parse(answer, &out->answer);
}

static int probes_parse(const json_t *line, struct prompt *p)
{
	const json_t *questions = json_object_get(line, "questions");
	const json_t *continuation = json_object_get(line, "continuation");
	size_t n = json_array_size(questions);
	int r = 0;

	if (questions && !json_is_array(questions))
		return -EINVAL;
	p->probes = calloc(n + 1, sizeof *p->probes);
	if (!p->probes)
		return -ENOMEM;
	if (continuation)
		r = probe_parse(continuation, json_object_get(line, "answer"), &p->probes[p->n_probes++]);
	for (size_t i = 0; i < n && r == 0; i++) {
		const json_t *question = json_array_get(questions, i);
		const json_t *q = json_object_get(question, "q"), *a = json_object_get(question, "a");

		r = q && a ? probe_parse(q, a, &p->probes[p->n_probes++]) : -EINVAL;
	}
	return r;
}

static int prompt_parse(const json_t *line, struct prompt *p)
{
	static const char *const names[] = {"text", "prompt", "tokens"};
	const json_t *id = json_object_get(line, "id"), *text = NULL;
	char *id_text;
	size_t len;
	int r;

	if (!json_is_integer(id) && !json_is_string(id))
		return -EINVAL;
	id_text = json_dumps(id, JSON_ENCODE_ANY);
	if (!id_text)
		return -ENOMEM;
	len = strlen(id_text);
	r = len < sizeof p->id ? 0 : -EINVAL;
	if (r == 0)
		memcpy(p->id, id_text, len + 1);
	free(id_text);
	for (size_t i = 0; i < sizeof names / sizeof *names && !text; i++)
		text = json_object_get(line, names[i]);
	if (r < 0 || !text)
		return -EINVAL;
	r = tokens_parse(text, &p->tokens);
	return r < 0 ? r : probes_parse(line, p);
}

static int line_parse(char *line, size_t len, struct prompts *out, char *why, size_t why_len)
{
	struct prompt *list = realloc(out->list, (out->n + 1) * sizeof *list);
	json_error_t error;
	json_t *object;
	int r;

	if (!list)
		return -ENOMEM;
	out->list = list;
	list[out->n] = (struct prompt){0};
	object = json_loadb(line, len, 0, &error);
	if (!object) {
		snprintf(why, why_len, "%s", error.text);
		return -EINVAL;
	}
	r = prompt_parse(object, &list[out->n++]);
	if (r == -EINVAL)
		snprintf(why, why_len, "not a prompt: wants id, text or tokens, continuation or questions");
	json_decref(object);
	return r;
}

int prompts_read(const char *path, struct prompts *out, char *why, size_t why_len)
{
	struct prompts p = {0};
	char sentence[192] = "out of memory";
	unsigned line = 0;
	void *data = NULL;
	size_t len;
	int r = file_read(path, &data, &len);

	if (r < 0)
		snprintf(why, why_len, "%s: %s", path, strerror(-r));
	for (char *at = data, *end; r == 0 && at < (char *)data + len; at = end + 1) {
		end = memchr(at, '\n', (size_t)((char *)data + len - at));
		end = end ? end : (char *)data + len;
		line++;
		if (strspn(at, " \t\r") < (size_t)(end - at))
			r = line_parse(at, (size_t)(end - at), &p, sentence, sizeof sentence);
		if (r < 0)
			snprintf(why, why_len, "%s:%u: %s", path, line, sentence);
	}
	free(data);
	if (r < 0)
		prompts_fini(&p);
	else
		*out = p;
	return r;
}

void prompts_fini(struct prompts *p)
{
	for (size_t i = 0; i < p->n; i++) {
		for (size_t j = 0; j < p->list[i].n_probes; j++) {
			tokens_fini(&p->list[i].probes[j].given);
			tokens_fini(&p->list[i].probes[j].answer);
		}
		free(p->list[i].probes);
		tokens_fini(&p->list[i].tokens);
	}
	free(p->list);
	*p = (struct prompts){0};
}
