#include "runtime/daemon/check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/file.h"
#include "policy/transform.h"

struct findings {
	FILE *out;
	uint32_t n_errors;
};

static __attribute__((format(printf, 3, 4))) void find(
	struct findings *f, bool is_error, const char *format, ...)
{
	va_list args;

	f->n_errors += is_error;
	fprintf(f->out, "%s: ", is_error ? "error" : "warning");
	va_start(args, format);
	vfprintf(f->out, format, args);
	va_end(args);
	putc('\n', f->out);
}

/* The folder of a path that is to be made, or the path itself where it exists. */
static void nearest_folder(const char *path, char *out, size_t size)
{
	struct stat st;

	snprintf(out, size, "%s", path);
	while (stat(out, &st) && errno == ENOENT) {
		char *slash = strrchr(out, '/');

		if (!slash || slash == out) {
			snprintf(out, size, "%s", slash ? "/" : ".");
			return;
		}
		*slash = 0;
	}
}

static void check_socket(struct findings *f, const char *key, const char *path)
{
	char folder[CONFIG_PATH_MAX], parent[CONFIG_PATH_MAX];
	char *slash;

	snprintf(folder, sizeof folder, "%s", path);
	slash = strrchr(folder, '/');
	if (slash && slash != folder)
		*slash = 0;
	else
		snprintf(folder, sizeof folder, "%s", slash ? "/" : ".");
	nearest_folder(folder, parent, sizeof parent);
	if (access(parent, W_OK | X_OK))
		find(f, true, "%s = %s: cannot be made by uid %u: %s: %s", key, path, (unsigned)geteuid(),
			parent, strerror(errno));
}

static void check_store(struct findings *f, const struct config *c)
{
	char folder[CONFIG_PATH_MAX];
	struct statvfs fs;
	uint64_t free_bytes;

	if (!c->store_dir[0]) {
		find(f, false,
			"[store] path is empty: nothing will survive a restart, or leave the pool alive");
		return;
	}
	nearest_folder(c->store_dir, folder, sizeof folder);
	if (access(folder, R_OK | W_OK | X_OK)) {
		find(f, true, "[store] path = %s: uid %u cannot use %s: %s", c->store_dir,
			(unsigned)geteuid(), folder, strerror(errno));
		return;
	}
	if (statvfs(folder, &fs))
		return;
	free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (!strcmp(folder, c->store_dir) ? free_bytes == 0 : free_bytes < c->store_bytes)
		find(f, false,
			"[store] size is %llu MiB but %s has %llu MiB free: writes will fail when the disk "
			"is full",
			(unsigned long long)c->store_bytes >> 20, folder,
			(unsigned long long)free_bytes >> 20);
}

static void check_pool(struct findings *f, const struct config *c)
{
	const uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);

	if (c->pool_bytes > memory)
		find(f, true, "[pool] size is %llu MiB, but the machine has %llu MiB of memory",
			(unsigned long long)c->pool_bytes >> 20, (unsigned long long)memory >> 20);
	else if (c->pool_bytes > memory / 10 * 9)
		find(f, false,
			"[pool] size leaves less than a tenth of the machine's memory to everything else");
}

static void check_transform(struct findings *f, const char *path)
{
	struct transform *t;
	char why[256] = "";
	void *data;
	size_t len;
	int r = file_read(path, &data, &len);

	if (r) {
		find(f, true, "[transforms] path = %s: %s", path, strerror(-r));
		return;
	}
	if (transform_parse(data, len, &t, why, sizeof why))
		find(f, true, "[transforms] path = %s: %s", path, why);
	else
		transform_unref(t);
	free(data);
}

uint32_t check_config(const struct config *c, FILE *out)
{
	struct findings f = {.out = out};

	check_socket(&f, "[daemon] socket", c->socket);
	if (!strncmp(c->metrics_listen, "unix:", 5))
		check_socket(&f, "[metrics] listen", c->metrics_listen + 5);
	check_pool(&f, c);
	check_store(&f, c);
	for (uint32_t i = 0; i < c->n_transforms; i++)
		check_transform(&f, c->transforms[i]);
	return f.n_errors;
}
