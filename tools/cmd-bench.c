#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/bench.h"
#include "tools/cistern.h"

static const char usage[] =
	"Usage: cistern bench ipc|codec|evict|gpu|index|online|policy|rate|sinks|store|watch [--json] "
	"[options]\n"
	"\n"
	"Measures, each figure beside its floor in the same run.\n"
	"\n"
	"  ipc      a request's way to the daemon and back\n"
	"  codec    encoding and decoding on one core\n"
	"  evict    hit ratios of eviction policies on one trace, without a daemon\n"
	"  gpu      the codec on a GPU, and what it does to its neighbours\n"
	"  index    looking up chains among a million chunks, and a restart with them\n"
	"  online   how soon a daemon learns a transform as good as a calibrated one\n"
	"  policy   how soon a change of policy takes effect, and how near the ratio comes to its target\n"
	"  rate     ratio against loss, beside other codecs and the bound\n"
	"  sinks    how well attention sinks are found, what that is worth and costs\n"
	"  store    records to disk and back\n"
	"  watch    what watching costs the daemon\n"
	"\n"
	"`cistern bench NAME --help` has each one's options.\n";

uint64_t bench_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t bench_cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int bench_parse_natural(const char *name, const char *text, uint32_t min, uint32_t max, uint32_t *out)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || end == text || *end || *text == '-' || value < min || value > max) {
		fprintf(stderr, "cistern bench %s: not a number from %u to %u: %s\n", name, min, max, text);
		return -EINVAL;
	}
	*out = (uint32_t)value;
	return 0;
}

double bench_quantile(double *samples, size_t n, double q)
{
	qsort(samples, n, sizeof *samples, by_value);
	return samples[(size_t)(q * (double)(n - 1) + 0.5)];
}

int cmd_bench(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(int argc, char **argv);
	} benches[] = {{"ipc", bench_ipc}, {"codec", bench_codec}, {"evict", bench_evict}, {"gpu", bench_gpu},
		{"index", bench_index}, {"online", bench_online}, {"policy", bench_policy},
		{"rate", bench_rate}, {"sinks", bench_sinks}, {"store", bench_store}, {"watch", bench_watch}};

	if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
		fputs(usage, stdout);
		return EXIT_SUCCESS;
	}
	for (size_t i = 0; argc > 1 && i < sizeof benches / sizeof *benches; i++)
		if (!strcmp(argv[1], benches[i].name))
			return benches[i].run(argc - 1, argv + 1);
	fputs(usage, stderr);
	return EXIT_USAGE;
}
