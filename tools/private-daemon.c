#include "tools/private-daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shm/cistern.h"

enum { START_MS = 20000, STOP_MS = 30000 };

int sibling_program(const char *name, char *path, size_t size)
{
	/* Installed: the same folder. Built: build/tools/cistern beside build/runtime/daemon/cisternd. */
	static const char *const places[] = {"%s/%s", "%s/../runtime/daemon/%s", "%s/../tools/%s",
		"%s/../tools/engine/%s", "%s/engine/%s"};
	char self[512], *slash;
	const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);

	if (n < 0)
		return -errno;
	self[n] = 0;
	slash = strrchr(self, '/');
	if (!slash)
		return -ENOENT;
	*slash = 0;
	for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
		const int len = snprintf(path, size, places[i], self, name);

		if (len > 0 && (size_t)len < size && !access(path, X_OK))
			return 0;
	}
	return -ENOENT;
}

static int write_config(const struct private_daemon *p, const struct private_daemon_options *o)
{
	char path[300];
	FILE *f;

	snprintf(path, sizeof path, "%s/cistern.conf", p->folder);
	f = fopen(path, "w");
	if (!f)
		return -errno;
	fprintf(f, "[daemon]\nsocket = %s\nspin_us = %u\n", p->socket, o->spin_us);
	if (o->workers)
		fprintf(f, "workers = %u\n", o->workers);
	if (o->daemon_lines)
		fprintf(f, "%s\n", o->daemon_lines);
	fprintf(f, "[pool]\nsize = %llu\n", (unsigned long long)(o->pool_bytes ? o->pool_bytes : 256u << 20));
	if (!o->no_store)
		fprintf(f, "[store]\npath = %s\n%s\n", p->store,
			o->store_lines ? o->store_lines : "size = 4G");
	if (o->transform)
		fprintf(f, "[transforms]\npath = %s\n", o->transform);
	if (o->policy_lines)
		fprintf(f, "[policy]\n%s\n", o->policy_lines);
	if (o->more)
		fprintf(f, "%s\n", o->more);
	return fclose(f) ? -errno : 0;
}

static void run_daemon(const struct private_daemon *p, const char *program, pid_t parent)
{
	char config[300];
	const int log = open(p->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	/* A daemon whose starter was killed has nobody to stop it. */
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(1);
	/* An interrupt from the terminal is for the starter, who stops us in order. */
	setpgid(0, 0);
	dup2(null, 0);
	dup2(log, 1);
	dup2(log, 2);
	snprintf(config, sizeof config, "%s/cistern.conf", p->folder);
	execl(program, program, "--config", config, (char *)NULL);
	_exit(127);
}

static void sleep_ms(long ms)
{
	const struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

	nanosleep(&t, NULL);
}

static void print_log(const struct private_daemon *p)
{
	char line[1024];
	FILE *f = fopen(p->log, "r");

	while (f && fgets(line, sizeof line, f))
		fprintf(stderr, "cisternd: %s", line);
	if (f)
		fclose(f);
}

/* It serves when it answers. */
static int wait_until_serving(struct private_daemon *p)
{
	for (int waited = 0; waited < START_MS; waited += 5) {
		char *answer;
		int status;

		if (!cistern_control(p->socket, "{\"command\":\"status\"}", &answer, 1000)) {
			free(answer);
			return 0;
		}
		if (waitpid(p->pid, &status, WNOHANG) == p->pid) {
			p->pid = 0;
			return -ECHILD;
		}
		sleep_ms(5);
	}
	return -ETIMEDOUT;
}

int private_daemon_restart(struct private_daemon *p)
{
	const char *given = getenv("CISTERND");
	const pid_t parent = getpid();
	char program[600];
	int r;

	if (given)
		snprintf(program, sizeof program, "%s", given);
	else if (sibling_program("cisternd", program, sizeof program)) {
		fprintf(stderr, "cisternd was not found beside this program; set CISTERND to its path\n");
		return -ENOENT;
	}
	fflush(NULL);
	p->pid = fork();
	if (p->pid < 0) {
		p->pid = 0;
		return -errno;
	}
	if (!p->pid)
		run_daemon(p, program, parent);
	r = wait_until_serving(p);
	if (r)
		print_log(p);
	return r;
}

int private_folder(struct private_daemon *p)
{
	const char *base = getenv("TMPDIR");

	*p = (struct private_daemon){0};
	/* Room for the socket's path, which must fit 107 bytes. */
	if (!base || !*base || strlen(base) > 80)
		base = "/tmp";
	snprintf(p->folder, sizeof p->folder, "%s/cistern-XXXXXX", base);
	if (!mkdtemp(p->folder)) {
		p->folder[0] = 0;
		return -errno;
	}
	return 0;
}

int private_daemon_start(struct private_daemon *p, const struct private_daemon_options *options)
{
	int r = private_folder(p);

	if (r)
		return r;
	snprintf(p->socket, sizeof p->socket, "%s/s", p->folder);
	snprintf(p->log, sizeof p->log, "%s/log", p->folder);
	snprintf(p->store, sizeof p->store, "%s/store", p->folder);
	r = write_config(p, options);
	if (!r)
		r = private_daemon_restart(p);
	if (r)
		private_daemon_stop(p);
	return r;
}

int private_daemon_end(struct private_daemon *p, int signal)
{
	int status = 0;

	if (!p->pid)
		return 0;
	kill(p->pid, signal);
	for (int waited = 0; waited < STOP_MS; waited += 2) {
		const pid_t got = waitpid(p->pid, &status, WNOHANG);

		if (got == p->pid || (got < 0 && errno == ECHILD)) {
			p->pid = 0;
			return status;
		}
		sleep_ms(2);
	}
	kill(p->pid, SIGKILL);
	waitpid(p->pid, &status, 0);
	p->pid = 0;
	return -ETIMEDOUT;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st;
	(void)type;
	(void)at;
	return remove(path);
}

void private_daemon_stop(struct private_daemon *p)
{
	private_daemon_end(p, SIGTERM);
	if (p->folder[0])
		nftw(p->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	p->folder[0] = 0;
}
