/* cistern pool: the daemon's memory for encoded chunks, and how large the part on the GPU is. */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cistern.h"
#include "tools/operate/ask.h"

enum { TIMEOUT_MS = 60000 };

static const char usage[] =
	"Usage: cistern pool [--socket PATH] [--json]\n"
	"       cistern pool resize SIZE [--socket PATH] [--json]\n"
	"\n"
	"Shows what the daemon keeps encoded chunks in: memory, and the GPU's. With resize, changes the part "
	"on\n"
	"the GPU while it is in use: SIZE (with K, M, G or T) is a hard limit, rounded down to whole slabs; "
	"0\n"
	"gives all of it back. Returns when the memory has been taken, or given back to the GPU.\n"
	"\n"
	"  -s, --socket PATH   the daemon's socket (default: $CISTERN_SOCKET, else\n"
	"                      /run/cistern/cistern.sock)\n"
	"      --json          the daemon's answer as it is: one JSON object\n"
	"\n"
	"Exit status: 0, 1 the size could not be had, 2 wrong usage.\n";

static bool parse_size(const char *text, uint64_t *out)
{
	static const char letters[] = "KMGT";
	const char *letter;
	uint64_t value;
	char *end;

	if (!isdigit((unsigned char)text[0]))
		return false;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno)
		return false;
	if (*end && (letter = strchr(letters, toupper((unsigned char)*end)))) {
		if (__builtin_mul_overflow(value, 1ull << 10 * (letter - letters + 1), &value))
			return false;
		end++;
	}
	*out = value;
	return !*end && value <= INT64_MAX;
}

static int resize(const char *socket, const char *text, bool json)
{
	uint64_t bytes;
	json_t *answer;
	char a[32];

	if (!parse_size(text, &bytes)) {
		fprintf(stderr, "cistern pool: \"%s\" is not a size\n", text);
		return EXIT_USAGE;
	}
	answer = ask("pool", socket,
		json_pack("{s:s, s:I}", "command", "pool-resize", "bytes", (json_int_t)bytes), TIMEOUT_MS);
	if (!answer)
		return EXIT_FAILURE;
	if (json) {
		print_json(answer);
		return EXIT_SUCCESS;
	}
	printf("the pool on the GPU has %s now\n", ask_bytes(ask_number(answer, "size_bytes"), a));
	json_decref(answer);
	return EXIT_SUCCESS;
}

static int show(const char *socket, bool json)
{
	json_t *status = ask("pool", socket, json_pack("{s:s}", "command", "status"), TIMEOUT_MS);
	const json_t *pool, *gpu;
	char a[32], b[32];

	if (!status)
		return EXIT_FAILURE;
	pool = json_object_get(status, "pool");
	gpu = json_object_get(json_object_get(status, "device"), "pool");
	if (json) {
		print_json(json_pack("{s:O, s:O?}", "pool", pool, "device", gpu));
		json_decref(status);
		return EXIT_SUCCESS;
	}
	printf("memory  %s of %s\n", ask_bytes(ask_number(pool, "used_bytes"), a),
		ask_bytes(ask_number(pool, "limit_bytes"), b));
	if (gpu)
		printf("GPU     %s of %s, %.0f chunks\n", ask_bytes(ask_number(gpu, "used_bytes"), a),
			ask_bytes(ask_number(gpu, "size_bytes"), b), ask_number(gpu, "frames"));
	else
		printf("GPU     none\n");
	json_decref(status);
	return EXIT_SUCCESS;
}

int cmd_pool(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
	const char *socket = NULL;
	bool json = false;
	int option;

	optind = 1;
	while ((option = getopt_long(argc, argv, "s:", options, NULL)) != -1)
		switch (option) {
		case 's': socket = optarg; break;
		case 'j': json = true; break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: fputs(usage, stderr); return EXIT_USAGE;
		}
	if (optind == argc)
		return show(socket, json);
	if (optind + 2 != argc || strcmp(argv[optind], "resize") != 0) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	return resize(socket, argv[optind + 1], json);
}
