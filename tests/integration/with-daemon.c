/* with-daemon PROGRAM [ARGUMENT...]: runs the program with $CISTERN_SOCKET naming a private daemon. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/private-daemon.h"

int main(int argc, char **argv)
{
	const struct private_daemon_options options = {0};
	struct private_daemon daemon;
	int status = -1;
	pid_t pid;

	if (argc < 2)
		return 2;
	if (private_daemon_start(&daemon, &options))
		return 1;
	setenv("CISTERN_SOCKET", daemon.socket, 1);
	pid = fork();
	if (pid == 0) {
		execv(argv[1], argv + 1);
		_exit(127);
	}
	if (pid > 0)
		waitpid(pid, &status, 0);
	private_daemon_stop(&daemon);
	return status != 0;
}
