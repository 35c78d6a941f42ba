#include "base/memory.h"

#include <malloc.h>
#include <stdio.h>

double memory_available(const char *path)
{
	FILE *f = fopen(path, "re");
	unsigned long long total = 0, available = 0, value;
	int n_found = 0;
	char line[128];

	while (f && n_found < 2 && fgets(line, sizeof line, f)) {
		if (sscanf(line, "MemTotal: %llu kB", &value) == 1) {
			total = value;
			n_found++;
		} else if (sscanf(line, "MemAvailable: %llu kB", &value) == 1) {
			available = value;
			n_found++;
		}
	}
	if (f)
		fclose(f);
	return n_found == 2 && total ? (double)available / (double)total : 1;
}

void memory_keep_freed(void)
{
#ifdef M_TRIM_THRESHOLD
	mallopt(M_MMAP_THRESHOLD, 32 << 20);
	mallopt(M_TRIM_THRESHOLD, 128 << 20);
#endif
}
