#include "tools/child.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 1 << 20 };

static void run(char *const argv[], int out, const char *log, pid_t parent)
{
	const int err = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	/* An interrupt from the terminal is for the parent, who ends us. */
	setpgid(0, 0);
	dup2(out, STDOUT_FILENO);
	dup2(err, STDERR_FILENO);
	execv(argv[0], argv);
	_exit(127);
}

static int take_lines(char *buffer, size_t *len, int (*on_line)(void *arg, const json_t *object), void *arg)
{
	char *start = buffer, *end;
	int r = 0;

	while (!r && (end = memchr(start, '\n', *len - (size_t)(start - buffer)))) {
		json_t *object = json_loadb(start, (size_t)(end - start), 0, NULL);

		r = !json_is_object(object) ? -EBADMSG : on_line ? on_line(arg, object) : 0;
		json_decref(object);
		start = end + 1;
	}
	*len -= (size_t)(start - buffer);
	memmove(buffer, start, *len);
	return r;
}

static int read_all(
	int fd, volatile sig_atomic_t *stop, int (*on_line)(void *arg, const json_t *object), void *arg)
{
	char *buffer = malloc(LINE_MAX_BYTES);
	size_t len = 0;
	int r = buffer ? 0 : -ENOMEM;

	while (!r && !*stop) {
		const ssize_t n = len < LINE_MAX_BYTES ? read(fd, buffer + len, LINE_MAX_BYTES - len) : -1;

		if (n == 0)
			break;
		if (n < 0)
			r = errno == EINTR ? 0 : -EIO;
		else {
			len += (size_t)n;
			r = take_lines(buffer, &len, on_line, arg);
		}
	}
	free(buffer);
	return *stop ? -EINTR : r;
}

int child_run(char *const argv[], const char *log, volatile sig_atomic_t *stop,
	int (*on_line)(void *arg, const json_t *object), void *arg)
{
	const pid_t parent = getpid();
	int ends[2], status = 0, r;
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC))
		return -errno;
	fflush(NULL);
	pid = fork();
	if (pid == 0)
		run(argv, ends[1], log, parent);
	close(ends[1]);
	if (pid < 0) {
		close(ends[0]);
		return -EAGAIN;
	}
	r = read_all(ends[0], stop, on_line, arg);
	close(ends[0]);
	if (r)
		kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		if (*stop)
			kill(pid, SIGKILL);
	if (*stop)
		return -EINTR;
	return r ? r : status ? -ECHILD : 0;
}
