/* cistern doctor: whether this machine is fit for a daemon, and how well. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/config.h"
#include "tools/cistern.h"
#include "tools/operate/doctor.h"

static const char usage[] =
	"Usage: cistern doctor [--config FILE] [--disk FOLDER] [--socket PATH] [--json]\n"
	"\n"
	"Looks whether this machine has what a daemon needs, and says for each thing what it found, whether "
	"that\n"
	"is well, and what to do if not: kernel, CPU, memory, limits, io_uring, GPU driver, shared memory "
	"between\n"
	"processes, speed of the disk, the daemon.\n"
	"\n"
	"  -c, --config FILE     the daemon's configuration: size of the pool, folder of the store, socket\n"
	"      --disk FOLDER     where to try the disk (default: the store's folder, else the current one)\n"
	"  -s, --socket PATH     the daemon's socket (default: the configuration's, else $CISTERN_SOCKET, "
	"else\n"
	"                        /run/cistern/cistern.sock)\n"
	"      --json            an object for each thing\n"
	"\n"
	"Exit status: 0 all is well or works slowly, 1 something is bad, 2 wrong usage.\n";

enum { VERDICTS = 9 };

static const char *const grades[] = {"good", "slow", "bad"};

static void examine(
	struct doctor_verdict v[VERDICTS], const struct config *c, const char *disk, const char *socket)
{
	doctor_kernel(&v[0]);
	doctor_cpu(&v[1]);
	doctor_memory(&v[2], c->pool_bytes);
	doctor_memlock(&v[3], c->pool_bytes);
	doctor_io_uring(&v[4]);
	doctor_driver(&v[5]);
	doctor_ipc(&v[6]);
	doctor_disk(&v[7], disk);
	doctor_daemon(&v[8], socket);
}

static void print_json_verdicts(const struct doctor_verdict v[VERDICTS])
{
	json_t *array = json_array();

	for (int i = 0; i < VERDICTS; i++)
		json_array_append_new(
			array, json_pack("{s:s, s:s, s:s, s:s}", "subject", v[i].subject, "grade",
				       grades[v[i].grade], "found", v[i].found, "advice", v[i].advice));
	print_json(json_pack("{s:o}", "verdicts", array));
}

static void print_verdicts(const struct doctor_verdict v[VERDICTS])
{
	for (int i = 0; i < VERDICTS; i++) {
		printf("%-5s %-9s %s\n", grades[v[i].grade], v[i].subject, v[i].found);
		if (v[i].advice[0])
			printf("                %s\n", v[i].advice);
	}
}

int cmd_doctor(int argc, char **argv)
{
	static const struct option options[] = {{"config", required_argument, NULL, 'c'},
		{"disk", required_argument, NULL, 'd'}, {"socket", required_argument, NULL, 's'},
		{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
	struct doctor_verdict verdicts[VERDICTS] = {0};
	struct config *config = calloc(1, sizeof *config);
	const char *path = NULL, *disk = NULL, *socket = NULL;
	bool json = false;
	char why[512];
	struct stat st;
	int option, status = EXIT_USAGE;

	if (!config)
		return EXIT_FAILURE;
	config_init(config);
	optind = 1;
	while ((option = getopt_long(argc, argv, "c:s:", options, NULL)) != -1)
		switch (option) {
		case 'c': path = optarg; break;
		case 'd': disk = optarg; break;
		case 's': socket = optarg; break;
		case 'j': json = true; break;
		case 'h':
			fputs(usage, stdout);
			status = EXIT_SUCCESS;
			goto out;
		default: fputs(usage, stderr); goto out;
		}
	if (optind != argc) {
		fputs(usage, stderr);
		goto out;
	}
	if (path && config_load(path, config, why, sizeof why)) {
		fprintf(stderr, "cistern doctor: %s\n", why);
		goto out;
	}
	if (!disk)
		disk = config->store_dir[0] && !stat(config->store_dir, &st) ? config->store_dir : ".";
	examine(verdicts, config, disk, socket ? socket : path ? config->socket : NULL);
	if (json)
		print_json_verdicts(verdicts);
	else
		print_verdicts(verdicts);
	status = EXIT_SUCCESS;
	for (int i = 0; i < VERDICTS; i++)
		if (verdicts[i].grade == DOCTOR_BAD)
			status = EXIT_FAILURE;
out:
	free(config);
	return status;
}
