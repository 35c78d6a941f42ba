#include "tools/demo-prompts.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

enum { CONTEXT = 2048, CONTINUATION = 192, BOS_BYTE = 1 };

/* Prompt lengths in turn; with BOS and the continuation they fit the context. */
static const uint32_t lengths[] = {CONTEXT - CONTINUATION - 1, 1536, 1024};

static int write_line(FILE *f, json_t *object)
{
	const int r = object ? json_dumpf(object, f, JSON_COMPACT) : -1;

	json_decref(object);
	fputc('\n', f);
	return r ? -EIO : 0;
}

/* Passages spread evenly over the text, none overlapping another. */
static int write_texts(FILE *f, const char *text, size_t len, uint32_t n)
{
	const size_t stride = n ? len / n : 0;
	int r = 0;

	if (stride < CONTEXT)
		return n ? -EINVAL : 0;
	for (uint32_t i = 0; !r && i < n; i++) {
		const uint32_t n_tokens = lengths[i * (sizeof lengths / sizeof *lengths) / n];
		char passage[CONTEXT + 2], id[32];
		const char *at = text + i * stride;

		passage[0] = BOS_BYTE;
		memcpy(passage + 1, at, n_tokens - 1);
		snprintf(id, sizeof id, "text %u", i);
		r = write_line(f, json_pack("{s:s, s:s%, s:s%}", "id", id, "text", passage, (size_t)n_tokens,
					  "continuation", at + n_tokens - 1, (size_t)CONTINUATION));
	}
	return r;
}

/* Every so many lines of the recall prompts, as they are but for their id. */
static int write_recalls(FILE *f, char *lines, uint32_t n)
{
	uint32_t n_lines = 0, line = 0, taken = 0;
	char *rest = NULL;
	int r = 0;

	for (const char *p = lines; *p; p++)
		n_lines += *p == '\n';
	for (char *at = strtok_r(lines, "\n", &rest); !r && at && taken < n;
		at = strtok_r(NULL, "\n", &rest), line++) {
		json_t *object;
		char id[32];

		if (line < (uint64_t)(taken + 1) * n_lines / (n + 1))
			continue;
		object = json_loads(at, 0, NULL);
		snprintf(id, sizeof id, "recall %u", taken++);
		json_object_set_new(object, "id", json_string(id));
		r = write_line(f, object);
	}
	return r ? r : taken == n ? 0 : -EINVAL;
}

int demo_prompts_write(const char *model_folder, const char *path, uint32_t n_texts, uint32_t n_recalls)
{
	char name[600];
	void *text = NULL, *recall = NULL;
	size_t text_len, recall_len;
	FILE *f = NULL;
	int r;

	snprintf(name, sizeof name, "%s/heldout/test.txt", model_folder);
	r = file_read(name, &text, &text_len);
	if (!r) {
		snprintf(name, sizeof name, "%s/heldout/recall.jsonl", model_folder);
		r = file_read(name, &recall, &recall_len);
	}
	if (r) {
		fprintf(stderr, "cistern demo: %s: %s\n", name, strerror(-r));
		goto out;
	}
	f = fopen(path, "w");
	r = f ? write_texts(f, text, text_len, n_texts) : -errno;
	if (!r)
		r = write_recalls(f, recall, n_recalls);
	if (f && fclose(f) && !r)
		r = -EIO;
out:
	free(text);
	free(recall);
	return r;
}
