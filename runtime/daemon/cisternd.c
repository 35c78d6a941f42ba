/* cisternd: reads its configuration, serves until SIGTERM. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "runtime/daemon/check.h"
#include "runtime/daemon/daemon.h"

enum { EXIT_USAGE = 2 };

static const char usage[] =
	"Usage: cisternd [--config FILE] [--check-config]\n"
	"\n"
	"Keeps KV caches for the inference engines of this node. Runs in the foreground and logs to stderr;\n"
	"SIGTERM ends it cleanly.\n"
	"\n"
	"  -c, --config FILE   configuration (INI); without one, the defaults\n"
	"      --check-config  check the configuration, and what it needs of this machine, and exit\n"
	"      --help          this text\n"
	"      --version       the version\n"
	"\n"
	"Exit status: 0 clean end, 1 failure, 2 wrong usage or configuration.\n";

int main(int argc, char **argv)
{
	static const struct option options[] = {{"config", required_argument, NULL, 'c'},
		{"check-config", no_argument, NULL, 'k'}, {"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'v'}, {0}};
	const char *path = NULL;
	struct config *config = calloc(1, sizeof *config);
	struct daemon *daemon = calloc(1, sizeof *daemon);
	char why[512];
	int option, check = 0, status = EXIT_FAILURE;

	if (!config || !daemon)
		goto out;
	log_open();
	status = EXIT_USAGE;
	while ((option = getopt_long(argc, argv, "c:", options, NULL)) != -1)
		switch (option) {
		case 'c': path = optarg; break;
		case 'k': check = 1; break;
		case 'h':
			fputs(usage, stdout);
			status = EXIT_SUCCESS;
			goto out;
		case 'v':
			puts("cisternd " CISTERN_VERSION);
			status = EXIT_SUCCESS;
			goto out;
		default: fputs(usage, stderr); goto out;
		}
	if (optind != argc) {
		fprintf(stderr, "cisternd: unexpected argument %s\n%s", argv[optind], usage);
		goto out;
	}
	config_init(config);
	if (path && config_load(path, config, why, sizeof why)) {
		if (check)
			fprintf(stderr, "error: %s\n", why);
		else
			log_error("%s", why);
		goto out;
	}
	if (check) {
		if (check_config(config, stderr))
			goto out;
		printf("%s: sound\n", path ? path : "the default configuration");
		status = EXIT_SUCCESS;
		goto out;
	}
	log_set_level(config->log_level);
	memory_keep_freed();
	status = EXIT_FAILURE;
	if (daemon_init(daemon, config))
		goto out;
	if (!daemon_run(daemon))
		status = EXIT_SUCCESS;
	daemon_fini(daemon);
	if (!status)
		log_info("stopped");
out:
	free(daemon);
	free(config);
	return status;
}
