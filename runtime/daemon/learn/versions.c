#include "runtime/daemon/learn/versions.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

enum { NAME_MAX_BYTES = 96, PATH_MAX_BYTES = 512 };

static const char ending[] = ".safetensors";

static void name_of(const struct version *v, char name[NAME_MAX_BYTES])
{
	int n = snprintf(name, NAME_MAX_BYTES, "%08" PRIu32 "-%" PRIu64 "-", v->number, v->n_tokens);

	for (int i = 0; i < 16; i++)
		n += snprintf(name + n, (size_t)(NAME_MAX_BYTES - n), "%02x", v->id[i]);
	snprintf(name + n, (size_t)(NAME_MAX_BYTES - n), "%s", ending);
}

/* A name is a version's when that version would be named so. */
static int parse_name(const char *name, struct version *out)
{
	struct version v = {0};
	char again[NAME_MAX_BYTES], id[33] = "";

	if (sscanf(name, "%8" SCNu32 "-%" SCNu64 "-%32[0-9a-f]", &v.number, &v.n_tokens, id) != 3)
		return -EINVAL;
	for (int i = 0; i < 16 && strlen(id) == 32; i++) {
		const char digits[3] = {id[2 * i], id[2 * i + 1]};

		v.id[i] = (uint8_t)strtoul(digits, NULL, 16);
	}
	name_of(&v, again);
	if (strcmp(name, again) != 0)
		return -EINVAL;
	*out = v;
	return 0;
}

static int path_of(const char *directory, const struct version *v, char path[PATH_MAX_BYTES])
{
	char name[NAME_MAX_BYTES];

	name_of(v, name);
	return snprintf(path, PATH_MAX_BYTES, "%s/%s", directory, name) < PATH_MAX_BYTES ? 0 : -ENAMETOOLONG;
}

/* file_write's temporary names: the file's own, a dot and six characters. */
static int is_leftover(const char *name)
{
	const char *end = strstr(name, ending);

	return end && name[0] >= '0' && name[0] <= '9' && end[sizeof ending - 1] == '.' &&
	       strlen(end) == sizeof ending - 1 + 7;
}

static int is_ours(const struct dirent *entry)
{
	struct version v;

	return parse_name(entry->d_name, &v) == 0 || is_leftover(entry->d_name);
}

int versions_scan(
	const char *directory, void (*found)(void *arg, const char *path, const struct version *v), void *arg)
{
	struct dirent **entries;
	int n;

	if (mkdir(directory, 0755) && errno != EEXIST)
		return -errno;
	/* Numbers have eight digits: the order of names is that of numbers. */
	n = scandir(directory, &entries, is_ours, alphasort);
	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++) {
		char path[PATH_MAX_BYTES];
		struct version v;

		if (snprintf(path, sizeof path, "%s/%s", directory, entries[i]->d_name) < (int)sizeof path) {
			if (parse_name(entries[i]->d_name, &v))
				unlink(path);
			else
				found(arg, path, &v);
		}
		free(entries[i]);
	}
	free(entries);
	return 0;
}

/* Names are durable when the directory is. */
static int sync_directory(const char *directory)
{
	const int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r;

	if (fd < 0)
		return -errno;
	r = fsync(fd) ? -errno : 0;
	close(fd);
	return r;
}

int versions_write(const char *directory, const struct version *v, const void *data, size_t len)
{
	char path[PATH_MAX_BYTES];
	int r = path_of(directory, v, path);

	if (!r)
		r = file_write(path, data, len);
	if (r)
		return r;
	r = sync_directory(directory);
	if (r)
		unlink(path);
	return r;
}

int versions_remove(const char *directory, const struct version *v)
{
	char path[PATH_MAX_BYTES];
	int r = path_of(directory, v, path);

	if (r)
		return r;
	return unlink(path) && errno != ENOENT ? -errno : 0;
}
