#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shm/cistern.h"
#include "tools/cistern.h"

static const char usage[] = "Usage: cistern status [--socket PATH] [--json]\n"
			    "\n"
			    "What a running daemon holds and does.\n"
			    "\n"
			    "  -s, --socket PATH   the daemon's socket (default: $CISTERN_SOCKET, else\n"
			    "                      /run/cistern/cistern.sock)\n"
			    "      --json          the daemon's answer as it is: one JSON object\n";

static double number(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

static const char *bytes(double n, char out[32])
{
	static const char units[] = " KMGTP";
	int unit = 0;

	while (n >= 1024 && unit < 5) {
		n /= 1024;
		unit++;
	}
	if (unit)
		snprintf(out, 32, "%.1f %ciB", n, units[unit]);
	else
		snprintf(out, 32, "%.0f B", n);
	return out;
}

static void print_learning(const json_t *l)
{
	const json_t *captured = json_object_get(l, "captured_energy"), *version;
	char a[32];
	size_t i;

	if (!json_is_object(l))
		return;
	printf("  learning  %s: %.0f tokens seen, %.0f taken, %.0f chunks plain, %.0f ms of one core\n",
		json_string_value(json_object_get(l, "state")), number(l, "tokens_seen"),
		number(l, "tokens_taken"), number(l, "plain_chunks"), number(l, "cpu_ms"));
	if (json_is_number(captured))
		printf("  energy    %.1f%% captured, %.1f%% when the transform was new\n",
			100 * json_number_value(captured), 100 * number(l, "captured_energy_first"));
	json_array_foreach(json_object_get(l, "versions"), i, version) printf(
		"  version   %.0f from %.0f tokens, %s, %.0f chunks\n", number(version, "number"),
		number(version, "tokens"), bytes(number(version, "bytes"), a), number(version, "frames"));
}

static void print_status(const json_t *s)
{
	const json_t *pool = json_object_get(s, "pool"), *store = json_object_get(s, "store"),
		     *cache = json_object_get(s, "cache"), *policy = json_object_get(s, "policy"), *item;
	const double raw = number(cache, "raw_bytes"), frames = number(cache, "frame_bytes");
	char a[32], b[32];
	size_t i;

	printf("cisternd %s, up %.0f s, backend %s (%s), %.0f workers, chunks of %.0f tokens\n",
		json_string_value(json_object_get(s, "version")), number(s, "uptime_ms") / 1000,
		json_string_value(json_object_get(s, "backend")),
		json_string_value(json_object_get(s, "kernels")), number(s, "workers"),
		number(s, "chunk_tokens"));
	printf("policy    ratio %g, max_error %g, %.0f sink tokens, window of %.0f\n",
		number(policy, "ratio"), number(policy, "max_error"), number(policy, "sink_tokens"),
		number(policy, "window_tokens"));
	printf("chunks    %.0f: %.0f in the pool, %.0f on disk; %s of KV in %s", number(cache, "chunks"),
		number(cache, "in_pool"), number(cache, "on_disk"), bytes(raw, a), bytes(frames, b));
	if (frames > 0)
		printf(" (%.1fx)", raw / frames);
	printf("\nlookups   %.0f hits, %.0f misses\n", number(cache, "hits"), number(cache, "misses"));
	printf("pool      %s of %s, %.0f evicted\n", bytes(number(pool, "used_bytes"), a),
		bytes(number(pool, "limit_bytes"), b), number(cache, "evicted"));
	if (json_is_object(store))
		printf("store     %s of %s in %s, %.0f dropped, %.0f errors\n",
			bytes(number(store, "used_bytes"), a), bytes(number(store, "limit_bytes"), b),
			json_string_value(json_object_get(store, "directory")), number(store, "dropped"),
			number(store, "errors"));
	else
		puts("store     none");
	json_array_foreach(json_object_get(s, "models"), i, item)
	{
		printf("model     %s, %.0f layers, %s a token, %s\n",
			json_string_value(json_object_get(item, "name")), number(item, "layers"),
			bytes(number(item, "token_bytes"), a),
			json_is_true(json_object_get(item, "transform")) ? "with a transform"
									 : "plain 8-bit codec");
		print_learning(json_object_get(item, "learning"));
	}
	json_array_foreach(json_object_get(s, "sessions"), i, item)
		printf("client    %.0f, namespace %s, uid %.0f, %.0f requests, %.0f in flight\n",
			number(item, "id"), json_string_value(json_object_get(item, "namespace")),
			number(item, "uid"), number(item, "requests"), number(item, "in_flight"));
}

int cmd_status(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
	const char *socket = NULL;
	bool json = false;
	char *answer;
	json_t *object;
	int option, r;

	optind = 1;
	while ((option = getopt_long(argc, argv, "s:", options, NULL)) != -1)
		switch (option) {
		case 's': socket = optarg; break;
		case 'j': json = true; break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: fputs(usage, stderr); return EXIT_USAGE;
		}
	if (optind != argc) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	r = cistern_control(socket, "{\"command\":\"status\"}", &answer, 5000);
	if (r) {
		fprintf(stderr, "cistern status: %s\n", cistern_error(NULL));
		return EXIT_FAILURE;
	}
	object = json_loads(answer, 0, NULL);
	free(answer);
	if (!object || !json_is_true(json_object_get(object, "ok"))) {
		const char *text = json_string_value(json_object_get(object, "error"));

		fprintf(stderr, "cistern status: %s\n", text ? text : "the daemon's answer is not JSON");
		json_decref(object);
		return EXIT_FAILURE;
	}
	if (json) {
		print_json(object);
		return EXIT_SUCCESS;
	}
	print_status(object);
	json_decref(object);
	return EXIT_SUCCESS;
}
