/*
 * `cistern bench gpu`: what the codec on the GPU takes, beside the floors that no codec of this kind gets
 * under, in one run: copies in device memory, and the codec's products alone, by our kernel and by cuBLAS
 * where that is installed. A GET is held against the larger of its two floors, a PUT as well.
 */
#include "tools/bench-gpu/bench-gpu.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/cuda/driver.h"
#include "tools/bench.h"
#include "tools/cistern.h"

enum { EXIT_NO_GPU = 77 };

static const char usage[] =
	"Usage: cistern bench gpu [--json] [options]\n"
	"\n"
	"Puts and gets chunks of a made-up cache in a GPU's memory, beside copies and matrix products "
	"alone.\n"
	"\n"
	"  --json         one JSON object\n"
	"  --device N     as the driver counts (default: the first)\n"
	"  --tokens N     tokens, a multiple of 256, at most 16384 (default 8192)\n"
	"  --layers N     (default 32)\n"
	"  --heads N      KV heads (default 8)\n"
	"  --dim N        features of a head, a multiple of 16 (default 128)\n"
	"  --ratio R      of the coded tokens, about (default 16)\n"
	"  --rounds N     measured, 1 to 101 (default 9)\n"
	"  --small        a tiny model: to see that it works, where kernels are emulated\n"
	"\n"
	"Without a GPU it says why and exits with 77.\n";

struct figures {
	struct floors floors;
	struct transfer transfer;
	struct stream_figures streams;
	struct neighbour neighbour;
	double gather_ms;
};

static double floor_ms(const struct floors *f)
{
	return f->gemm_ms > f->copy_ms ? f->gemm_ms : f->copy_ms;
}

static json_t *or_null(double x)
{
	return x > 0 ? json_real(x) : json_null();
}

static json_t *profile_json(const struct profile *p)
{
	json_t *o = json_object();

	for (uint32_t i = 0; i < p->n; i++)
		json_object_set_new(o, p->parts[i].name, json_real(p->parts[i].ms));
	return o;
}

static void profile_print(const char *what, const struct profile *p)
{
	printf("of a %s, ms on the GPU:", what);
	for (uint32_t i = 0; i < p->n; i++)
		printf("%s %s %.3f (%u)", i ? "," : "", p->parts[i].name, p->parts[i].ms, p->parts[i].n);
	putchar('\n');
}

static void print_as_json(const struct device *d, const struct setting *s, const struct figures *f)
{
	const struct transfer *t = &f->transfer;
	const double floor = floor_ms(&f->floors);

	print_json(json_pack("{s:s, s:b, s:i, s:i, s:I, s:f, s:f, s:o, s:o, s:o, s:o, s:o}", "device",
		device_describe(d), "emulated", (int)device_driver(d)->emulated, "tokens", (int)s->n_tokens,
		"layers", (int)s->g.n_layers, "raw_bytes", (json_int_t)s->bytes, "ratio", t->ratio,
		"components", t->components, "floors",
		json_pack("{s:f, s:f, s:f, s:o, s:f, s:f}", "copy_gbps", f->floors.copy_gbps, "to_host_gbps",
			f->floors.host_gbps, "own_tflops", f->floors.own_tflops, "cublas_tflops",
			or_null(f->floors.cublas_tflops), "gemm_ms", f->floors.gemm_ms, "copy_ms",
			f->floors.copy_ms),
		"get",
		json_pack("{s:f, s:f, s:f, s:f, s:o}", "ms", t->get_ms, "gpu_ms", t->get_gpu_ms,
			"first_group_ms", t->first_group_ms, "over_floor", t->get_ms / floor, "parts",
			profile_json(&t->get)),
		"put",
		json_pack("{s:f, s:f, s:f, s:f, s:f, s:o}", "ms", t->put_ms, "over_floor", t->put_ms / floor,
			"frames_in_host_memory_ms", t->frames_ms, "gather_ms", f->gather_ms,
			"gather_over_copy", f->gather_ms / f->floors.copy_ms, "parts", profile_json(&t->put)),
		"deflate",
		json_pack("{s:i, s:i, s:f, s:f, s:f, s:i}", "streams", (int)f->streams.n_streams,
			"bytes_each", (int)f->streams.bytes_each, "deflate_gbps", f->streams.deflate_gbps,
			"inflate_gbps", f->streams.inflate_gbps, "ratio", f->streams.ratio,
			"checked_with_zlib", (int)f->streams.n_checked),
		"neighbour",
		json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:i}", "alone_tflops", f->neighbour.alone_tflops,
			"beside_tflops", f->neighbour.beside_tflops, "slower",
			1 - f->neighbour.beside_tflops / f->neighbour.alone_tflops, "chunks_put",
			f->neighbour.n_puts, "slower_unlimited",
			1 - f->neighbour.beside_unlimited_tflops / f->neighbour.alone_tflops,
			"chunks_put_unlimited", f->neighbour.n_puts_unlimited, "share_percent",
			NEIGHBOUR_SHARE)));
}

static void print_as_text(const struct device *d, const struct setting *s, const struct figures *f)
{
	const struct floors *l = &f->floors;
	const struct transfer *t = &f->transfer;
	const double floor = floor_ms(l);

	printf("%s\n%s", device_describe(d),
		device_driver(d)->emulated ? "emulated: no figure here says anything of a GPU\n" : "");
	printf("%u tokens, %u layers, %.0f MiB of raw KV, %.1fx, %.0f %% of the components coded\n\n",
		s->n_tokens, s->g.n_layers, (double)s->bytes / 1048576, t->ratio, 100 * t->components);
	printf("floors    copy %8.1f GB/s   to the host %6.1f GB/s   product %6.1f TFLOP/s, own kernel",
		l->copy_gbps, l->host_gbps, l->own_tflops);
	if (l->cublas_tflops > 0)
		printf(", %.1f cuBLAS\n", l->cublas_tflops);
	else
		printf(", no cuBLAS here\n");
	printf("          all bytes copied %7.3f ms   all products %7.3f ms\n", l->copy_ms, l->gemm_ms);
	printf("get       %7.3f ms, %.2f times the larger floor (%.3f ms on the GPU; first layer group %.3f "
	       "ms)\n",
		t->get_ms, t->get_ms / floor, t->get_gpu_ms, t->first_group_ms);
	printf("put       %7.3f ms until it can be got, %.2f times the larger floor; frames in host memory "
	       "after "
	       "%.3f ms; source free after %.3f ms, %.2f times a copy\n",
		t->put_ms, t->put_ms / floor, t->frames_ms, f->gather_ms, f->gather_ms / l->copy_ms);
	profile_print("get", &t->get);
	profile_print("put", &t->put);
	printf("deflate   %7.1f GB/s of symbols   inflate %7.1f GB/s   %u streams of %u, %u right by zlib\n",
		f->streams.deflate_gbps, f->streams.inflate_gbps, f->streams.n_streams, f->streams.bytes_each,
		f->streams.n_checked);
	printf("neighbour %7.1f TFLOP/s alone   %7.1f beside %g chunks put at %d %% of the GPU's time   "
	       "%7.1f "
	       "beside %g at all there is\n",
		f->neighbour.alone_tflops, f->neighbour.beside_tflops, f->neighbour.n_puts, NEIGHBOUR_SHARE,
		f->neighbour.beside_unlimited_tflops, f->neighbour.n_puts_unlimited);
}

static int run(int ordinal, const struct setting_shape *shape, bool small, uint32_t rounds, bool json)
{
	struct figures f = {0};
	struct device *d;
	struct setting s;
	char why[200];
	int r;

	memory_keep_freed(); /* as the daemon */
	r = device_new(&(struct device_options){.ordinal = ordinal}, &d, why, sizeof why);

	if (r) {
		fprintf(stderr, "cistern bench gpu: %s\n", why);
		return r;
	}
	r = setting_init(&s, d, shape);
	if (!r)
		r = floors_measure(&s, rounds, &f.floors);
	if (!r)
		r = transfer_measure(&s, rounds, &f.transfer);
	if (!r)
		r = gather_measure(&s, rounds, &f.gather_ms);
	if (!r)
		r = streams_measure(d, small, rounds, &f.streams);
	if (!r)
		r = neighbour_measure(&s, ordinal, small, &f.neighbour);
	if (!r && json)
		print_as_json(d, &s, &f);
	else if (!r)
		print_as_text(d, &s, &f);
	setting_fini(&s);
	device_free(d);
	if (r)
		fprintf(stderr, "cistern bench gpu: %s\n",
			r == -EINVAL ? "shapes out of range" : strerror(-r));
	return r;
}

int bench_gpu(int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"device", required_argument, NULL, 'd'}, {"tokens", required_argument, NULL, 't'},
		{"layers", required_argument, NULL, 'l'}, {"heads", required_argument, NULL, 'e'},
		{"dim", required_argument, NULL, 'f'}, {"ratio", required_argument, NULL, 'r'},
		{"rounds", required_argument, NULL, 'n'}, {"small", no_argument, NULL, 's'},
		{"neighbour", no_argument, NULL, 'b'}, {"help", no_argument, NULL, 'h'}, {0}};
	struct setting_shape shape = {
		.n_layers = 32, .n_heads = 8, .dim = 128, .n_tokens = 8192, .ratio = 16};
	bool json = false, small = false, neighbour = false;
	uint32_t rounds = 9, ordinal = UINT32_MAX;
	int option, r = 0;

	optind = 1;
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'j': json = true; break;
		case 'd': r |= bench_parse_natural("gpu", optarg, 0, 1023, &ordinal); break;
		case 't': r |= bench_parse_natural("gpu", optarg, 256, 16384, &shape.n_tokens); break;
		case 'l': r |= bench_parse_natural("gpu", optarg, 1, 512, &shape.n_layers); break;
		case 'e': r |= bench_parse_natural("gpu", optarg, 1, 1024, &shape.n_heads); break;
		case 'f': r |= bench_parse_natural("gpu", optarg, 16, 1024, &shape.dim); break;
		case 'r': shape.ratio = strtod(optarg, NULL); break;
		case 'n': r |= bench_parse_natural("gpu", optarg, 1, BENCH_GPU_ROUNDS_MAX, &rounds); break;
		case 's':
			small = true;
			shape = (struct setting_shape){
				.n_layers = 4, .n_heads = 2, .dim = 32, .n_tokens = 512, .ratio = 16};
			rounds = 1;
			break;
		case 'b': neighbour = true; break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: fputs(usage, stderr); return EXIT_USAGE;
		}
	}
	if (r || optind != argc || !(shape.ratio >= 2 && shape.ratio <= 64)) {
		if (!r)
			fputs(usage, stderr);
		return EXIT_USAGE;
	}
	r = ordinal == UINT32_MAX ? -1 : (int)ordinal;
	if (neighbour)
		return neighbour_run(r, small) ? EXIT_FAILURE : EXIT_SUCCESS;
	r = run(r, &shape, small, rounds, json);
	/* As tests say that they were skipped. */
	return r == -ENODEV ? EXIT_NO_GPU : r ? EXIT_FAILURE : EXIT_SUCCESS;
}
