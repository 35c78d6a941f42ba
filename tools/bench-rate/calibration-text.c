#include "tools/bench-rate/calibration-text.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/child.h"
#include "tools/private-daemon.h"

static int run_engine(const char *model, const char *text, const char *recall, const char *folder,
	uint32_t n_sequences, volatile sig_atomic_t *stop)
{
	char program[600], log[600], sequences[16];
	char *argv[] = {program, "capture", "--model", (char *)model, "--text", (char *)text, "--out",
		(char *)folder, "--sequences", sequences, "--length", "2048", "--json",
		recall ? "--recall" : NULL, (char *)recall, NULL};
	int r = sibling_program("cistern-engine", program, sizeof program);

	if (r < 0) {
		fprintf(stderr, "cistern bench: cistern-engine was not found beside this program\n");
		return r;
	}
	snprintf(log, sizeof log, "%s/engine.log", folder);
	snprintf(sequences, sizeof sequences, "%u", n_sequences);
	r = child_run(argv, log, stop, NULL, NULL);
	if (r == -ECHILD) {
		FILE *f = fopen(log, "r");
		char line[1024];

		while (f && fgets(line, sizeof line, f))
			fputs(line, stderr);
		if (f)
			fclose(f);
	}
	return r;
}

static int is_capture(const struct dirent *entry)
{
	return strstr(entry->d_name, ".safetensors") != NULL;
}

static int list_captures(const char *folder, struct captures *out)
{
	struct dirent **entries;
	const int n = scandir(folder, &entries, is_capture, alphasort);
	int r = n < 0 ? -errno : 0;

	*out = (struct captures){.paths = n > 0 ? calloc((size_t)n, sizeof *out->paths) : NULL};
	if (r == 0 && !out->paths)
		r = n ? -ENOMEM : -ENOENT;
	for (int i = 0; i < n; i++) {
		if (r == 0 && asprintf(&out->paths[out->n], "%s/%s", folder, entries[i]->d_name) < 0)
			r = -ENOMEM;
		out->n += r == 0;
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
	if (r < 0)
		captures_fini(out);
	return r;
}

int text_capture(const char *model, const char *text, const char *recall, const char *folder,
	uint32_t n_sequences, volatile sig_atomic_t *stop, struct captures *out)
{
	const int r = run_engine(model, text, recall, folder, n_sequences, stop);

	return r < 0 ? r : list_captures(folder, out);
}

int calibration_text_capture(const char *model, const char *folder, uint32_t n_sequences,
	volatile sig_atomic_t *stop, struct captures *out)
{
	char text[600], recall[600];

	snprintf(text, sizeof text, "%s/heldout/calib.txt", model);
	snprintf(recall, sizeof recall, "%s/heldout/recall-calib.jsonl", model);
	return text_capture(model, text, recall, folder, n_sequences, stop, out);
}

void captures_fini(struct captures *c)
{
	for (size_t i = 0; i < c->n; i++)
		free(c->paths[i]);
	free(c->paths);
	*c = (struct captures){0};
}
