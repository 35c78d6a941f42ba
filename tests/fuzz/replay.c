/* replay FOLDER: runs a fuzzer's function once over every file of its corpus, and over an empty input. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>

#include "base/file.h"
#include "base/log.h"
#include "tests/fuzz/fuzz.h"

int main(int argc, char **argv)
{
	DIR *dir = argc == 2 ? opendir(argv[1]) : NULL;
	struct dirent *entry;
	int n = 0;

	if (!dir) {
		fprintf(stderr, "replay: %s: %s\n", argc == 2 ? argv[1] : "a folder is needed",
			strerror(errno));
		return 1;
	}
	log_set_level(LOG_LEVEL_ERROR);
	LLVMFuzzerTestOneInput((const uint8_t *)"", 0);
	while ((entry = readdir(dir))) {
		char path[PATH_MAX];
		void *data;
		size_t len;

		snprintf(path, sizeof path, "%s/%s", argv[1], entry->d_name);
		if (entry->d_name[0] == '.' || file_read(path, &data, &len))
			continue;
		LLVMFuzzerTestOneInput(data, len);
		free(data);
		n++;
	}
	closedir(dir);
	printf("%d inputs\n", n);
	return n ? 0 : 1;
}
