#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cistern.h"
#include "tools/operate/ask.h"

static const char usage[] = "Usage: cistern status [--socket PATH] [--json]\n"
			    "\n"
			    "What a running daemon holds and does.\n"
			    "\n"
			    "  -s, --socket PATH   the daemon's socket (default: $CISTERN_SOCKET, else\n"
			    "                      /run/cistern/cistern.sock)\n"
			    "      --json          the daemon's answer as it is: one JSON object\n";

static void print_learning(const json_t *l)
{
	const json_t *captured = json_object_get(l, "captured_energy"), *version;
	char a[32];
	size_t i;

	if (!json_is_object(l))
		return;
	printf("  learning  %s: %.0f tokens seen, %.0f taken, %.0f chunks plain, %.0f ms of one core\n",
		json_string_value(json_object_get(l, "state")), ask_number(l, "tokens_seen"),
		ask_number(l, "tokens_taken"), ask_number(l, "plain_chunks"), ask_number(l, "cpu_ms"));
	if (json_is_number(captured))
		printf("  energy    %.1f%% captured, %.1f%% when the transform was new\n",
			100 * json_number_value(captured), 100 * ask_number(l, "captured_energy_first"));
	json_array_foreach(json_object_get(l, "versions"), i, version)
		printf("  version   %.0f from %.0f tokens, %s, %.0f chunks\n", ask_number(version, "number"),
			ask_number(version, "tokens"), ask_bytes(ask_number(version, "bytes"), a),
			ask_number(version, "frames"));
}

static void print_store(const json_t *store)
{
	char a[32], b[32];

	if (!json_is_object(store)) {
		puts("store     none: what leaves the pool is gone");
		return;
	}
	printf("store     %s of %s in %s, %.0f dropped, %.0f errors\n",
		ask_bytes(ask_number(store, "used_bytes"), a), ask_bytes(ask_number(store, "limit_bytes"), b),
		ask_text(store, "directory"), ask_number(store, "dropped"), ask_number(store, "errors"));
	printf("          %s%s%s, %.0f chunks wait to be written, %.0f went unwritten, %.0f for want of "
	       "room\n",
		ask_text(store, "state"), *ask_text(store, "error") ? ": " : "", ask_text(store, "error"),
		ask_number(store, "unwritten"), ask_number(store, "lost"), ask_number(store, "evicted"));
}

static void print_part(const char *where, const json_t *share, const char *used, const char *quota)
{
	char a[32], b[32];

	printf(", %s %s", ask_bytes(ask_number(share, used), a), where);
	if (ask_number(share, quota) > 0)
		printf(" of %s", ask_bytes(ask_number(share, quota), b));
}

static void print_name_spaces(const json_t *shares)
{
	const json_t *share;
	size_t i;

	json_array_foreach(shares, i, share)
	{
		printf("namespace %s, %.0f chunks", ask_text(share, "name"), ask_number(share, "chunks"));
		print_part("in the pool", share, "pool_bytes", "pool_quota");
		print_part("on disk", share, "store_bytes", "store_quota");
		putchar('\n');
	}
}

static void print_attention(const json_t *a)
{
	if (ask_number(a, "chunks") > 0)
		printf("          attention outputs %.4f off, worst %.4f (layer %.0f, head %.0f), on %.0f "
		       "chunks%s\n",
			ask_number(a, "mean_error"), ask_number(a, "worst_error"),
			ask_number(a, "worst_layer"), ask_number(a, "worst_head"), ask_number(a, "chunks"),
			json_is_true(json_object_get(a, "alarm")) ? ", over alarm_attention" : "");
}

static void print_fidelity(const json_t *all)
{
	const json_t *f;
	size_t i;

	json_array_foreach(all, i, f)
	{
		const json_t *mean = json_object_get(f, "mean_error"),
			     *worst = json_object_get(f, "worst_error");

		printf("fidelity  %s, %s: %s of %g, achieved %.4g; error %.4f, %.4f (k, v), worst %.4f, "
		       "%.4f%s\n",
			ask_text(f, "namespace"), ask_text(f, "model"), ask_text(f, "mode"),
			ask_number(f, "target"), ask_number(f, "achieved"),
			json_number_value(json_array_get(mean, 0)),
			json_number_value(json_array_get(mean, 1)),
			json_number_value(json_array_get(worst, 0)),
			json_number_value(json_array_get(worst, 1)),
			json_is_true(json_object_get(f, "alarm")) ? "  ALARM" : "");
		printf("          %.0f chunks, %.0f tokens, %.0f kept bit-exact, %.0f sinks found, %.0f over "
		       "their "
		       "bound\n",
			ask_number(f, "chunks"), ask_number(f, "tokens"), ask_number(f, "raw_tokens"),
			ask_number(f, "sinks"), ask_number(f, "bound_violations"));
		print_attention(json_object_get(f, "attention"));
	}
}

static void print_shadow(const json_t *s)
{
	char a[32], b[32];

	if (!ask_number(s, "chunks") && !ask_number(s, "waiting_queries") && !ask_number(s, "taken"))
		return;
	printf("shadow    %.0f chunks uncompressed too, %s of %s; %.0f compared, %.0f for want of room not "
	       "taken\n",
		ask_number(s, "chunks"), ask_bytes(ask_number(s, "used_bytes"), a),
		ask_bytes(ask_number(s, "limit_bytes"), b), ask_number(s, "compared"),
		ask_number(s, "refused"));
}

static void print_device(const json_t *d)
{
	const json_t *mapped = json_object_get(d, "mapped"), *staging = json_object_get(d, "staging"),
		     *pool = json_object_get(d, "pool"), *lane;
	char a[32], b[32], c[32];
	size_t i;

	if (!d || json_is_null(d))
		return;
	printf("device    %s\n          %s of engines mapped, staging %s of %s", ask_text(d, "name"),
		ask_bytes(ask_number(mapped, "bytes"), a), ask_bytes(ask_number(staging, "bytes"), b),
		ask_bytes(ask_number(staging, "limit_bytes"), c));
	printf(", pool %s of %s\n", ask_bytes(ask_number(pool, "used_bytes"), a),
		ask_bytes(ask_number(pool, "size_bytes"), b));
	json_array_foreach(json_object_get(d, "lanes"), i, lane)
	{
		if (json_is_true(json_object_get(lane, "stuck")))
			printf("          %s is STUCK: %s, for %.0f s\n", ask_text(lane, "name"),
				ask_text(lane, "doing"), ask_number(lane, "for_ms") / 1000);
	}
}

static void print_status(const json_t *s)
{
	const json_t *pool = json_object_get(s, "pool"), *store = json_object_get(s, "store"),
		     *cache = json_object_get(s, "cache"), *policy = json_object_get(s, "policy"), *item;
	const double raw = ask_number(cache, "raw_bytes"), frames = ask_number(cache, "frame_bytes");
	char a[32], b[32];
	size_t i;

	printf("cisternd %s, up %.0f s, backend %s (%s), %.0f workers, chunks of %.0f tokens\n",
		json_string_value(json_object_get(s, "version")), ask_number(s, "uptime_ms") / 1000,
		json_string_value(json_object_get(s, "backend")),
		json_string_value(json_object_get(s, "kernels")), ask_number(s, "workers"),
		ask_number(s, "chunk_tokens"));
	if (json_is_true(json_object_get(s, "draining")))
		puts("draining  no new engines are taken");
	printf("policy    ratio %g, max_error %g, %.0f sink tokens, window of %.0f\n",
		ask_number(policy, "ratio"), ask_number(policy, "max_error"),
		ask_number(policy, "sink_tokens"), ask_number(policy, "window_tokens"));
	printf("chunks    %.0f: %.0f in the pool, %.0f on disk; %s of KV in %s", ask_number(cache, "chunks"),
		ask_number(cache, "in_pool"), ask_number(cache, "on_disk"), ask_bytes(raw, a),
		ask_bytes(frames, b));
	if (frames > 0)
		printf(" (%.1fx)", raw / frames);
	printf("\nlookups   %.0f hits, %.0f misses\n", ask_number(cache, "hits"),
		ask_number(cache, "misses"));
	printf("pool      %s of %s, %.0f evicted\n", ask_bytes(ask_number(pool, "used_bytes"), a),
		ask_bytes(ask_number(pool, "limit_bytes"), b), ask_number(cache, "evicted"));
	print_store(store);
	print_name_spaces(json_object_get(cache, "namespaces"));
	json_array_foreach(json_object_get(s, "models"), i, item)
	{
		printf("model     %s, %.0f layers, %s a token, %s\n",
			json_string_value(json_object_get(item, "name")), ask_number(item, "layers"),
			ask_bytes(ask_number(item, "token_bytes"), a),
			json_is_true(json_object_get(item, "transform")) ? "with a transform"
									 : "plain 8-bit codec");
		print_learning(json_object_get(item, "learning"));
	}
	print_fidelity(json_object_get(s, "fidelity"));
	print_device(json_object_get(s, "device"));
	print_shadow(json_object_get(s, "shadow"));
	json_array_foreach(json_object_get(s, "sessions"), i, item)
		printf("client    %.0f, namespace %s, uid %.0f, %.0f requests, %.0f in flight\n",
			ask_number(item, "id"), json_string_value(json_object_get(item, "namespace")),
			ask_number(item, "uid"), ask_number(item, "requests"), ask_number(item, "in_flight"));
}

int cmd_status(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
	const char *socket = NULL;
	bool json = false;
	json_t *object;
	int option;

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
	object = ask("status", socket, json_pack("{s:s}", "command", "status"), 5000);
	if (!object)
		return EXIT_FAILURE;
	if (json) {
		print_json(object);
		return EXIT_SUCCESS;
	}
	print_status(object);
	json_decref(object);
	return EXIT_SUCCESS;
}
