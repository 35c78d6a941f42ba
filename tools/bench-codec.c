/*
 * Encoding and decoding on one core, beside the two things in them that no codec of this kind can do without,
 * measured in the same run on the same data: the matrix product (cblas_sgemm alone, same shapes) and DEFLATE
 * (zlib alone, on the same levels). memcpy of the raw KV stands beside both. The KV is made up: features of
 * falling variance in a random basis, rotated as a cache holds them; the transform is calibrated on other
 * tokens of the same source.
 */
#include <cblas.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "policy/calibrate.h"
#include "policy/policy.h"
#include "runtime/codec.h"
#include "tools/bench.h"
#include "tools/cistern.h"

enum {
	TOKENS = 256,
	BLOCK_TOKENS = 16,
	WINDOW = 128,
	CALIBRATION_CHUNKS = 16,
	SAMPLES_MAX = 1001,
	BASES = 512
};

static const char usage[] =
	"Usage: cistern bench codec [--json] [--ratio R] [--samples N]\n"
	"\n"
	"Encodes and decodes one chunk of 256 tokens again and again on one core; settles one whose "
	"last\n"
	"128 tokens the window has left, and makes one coarser.\n"
	"\n"
	"  --json         one JSON object\n"
	"  --ratio R      rung of the codec (default 16)\n"
	"  --samples N    chunks measured for each shape, 3 to 1001 (default 41)\n";

/* Two planes, one layer group: p = layers * heads * dim features. */
static const struct shape {
	const char *name;
	uint32_t n_layers, n_heads, dim;
	double decay; /* of the variances: exp(-decay * i / p) */
} shapes[] = {
	{"p=640 (5 layers, 2 heads of 64)", 5, 2, 64, 14},
	{"p=2048 (2 layers, 8 heads of 128)", 2, 8, 128, 14},
};

/* What one run through the samples found, in nanoseconds a chunk (medians). */
struct figures {
	double encode, decode, encode_gemm, decode_gemm, deflate, inflate, copy;
	double settle, coarsen; /* frames from frames */
	double window_bytes, settled_bytes, coarse_bytes;
	double raw_bytes, frame_bytes, components;
	struct codec_times encode_times, decode_times; /* sums over the samples */
};

struct setting {
	struct geometry g;
	struct transform *t;
	uint32_t rung;
	const struct kernels *k;
	size_t p;
	float *mixing; /* [BASES, p]: directions of the made-up features, by falling variance */
	uint16_t *memory;
	struct kv_pages *pages;
	uint32_t blocks[TOKENS / BLOCK_TOKENS];
	float *x; /* [TOKENS, p] */
	uint64_t random;
};

static float gauss(uint64_t *state)
{
	float sum = 0;

	for (int i = 0; i < 12; i++) {
		*state = *state * 6364136223846793005u + 1442695040888963407u;
		sum += (float)(*state >> 40) / 16777216.0f;
	}
	return sum - 6;
}

static void make_features(struct setting *s)
{
	float *z = malloc(sizeof *z * TOKENS * BASES);

	for (size_t i = 0; z && i < (size_t)TOKENS * BASES; i++)
		z[i] = gauss(&s->random);
	if (z)
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, TOKENS, (int)s->p, BASES, 1, z, BASES,
			s->mixing, (int)s->p, 0, s->x, (int)s->p);
	free(z);
}

static int setting_init(struct setting *s, const struct shape *shape)
{
	const size_t width = (size_t)shape->n_heads * shape->dim, p = shape->n_layers * width;

	*s = (struct setting){.k = kernels_cpu(), .p = p, .random = 12345};
	s->g = (struct geometry){.name = "bench", .n_layers = shape->n_layers, .n_planes = 2, .tp_size = 1};
	for (int i = 0; i < 2; i++)
		s->g.planes[i] = (struct plane){
			.n_heads = shape->n_heads, .dim = shape->dim, .dtype = DTYPE_F16, .rope_scale = 1};
	s->g.planes[0].rope_kind = ROPE_HALF;
	s->g.planes[0].rope_dim = shape->dim;
	for (uint32_t i = 0; i < shape->dim / 2; i++)
		s->g.planes[0].inv_freq[i] = powf(10000, -2 * (float)i / (float)shape->dim);
	s->mixing = malloc(sizeof(float) * BASES * p);
	s->memory = calloc((size_t)shape->n_layers * 2 * TOKENS * width, sizeof *s->memory);
	s->pages = calloc((size_t)shape->n_layers * 2, sizeof *s->pages);
	s->x = malloc(sizeof(float) * TOKENS * p);
	if (!s->mixing || !s->memory || !s->pages || !s->x)
		return -ENOMEM;
	for (size_t i = 0; i < BASES; i++)
		for (size_t k = 0; k < p; k++)
			s->mixing[i * p + k] = gauss(&s->random) / sqrtf((float)p) *
					       expf((float)(-shape->decay / 2 * (double)i / BASES));
	for (uint32_t i = 0; i < shape->n_layers * 2; i++)
		s->pages[i] = (struct kv_pages){.base = (uint8_t *)(s->memory + (size_t)i * TOKENS * width),
			.block_stride = BLOCK_TOKENS * width * 2,
			.token_stride = width * 2,
			.head_stride = shape->dim * 2};
	for (uint32_t i = 0; i < TOKENS / BLOCK_TOKENS; i++)
		s->blocks[i] = (i * 5 + 3) % (TOKENS / BLOCK_TOKENS);
	return 0;
}

static void setting_fini(struct setting *s)
{
	transform_unref(s->t);
	free(s->mixing);
	free(s->memory);
	free(s->pages);
	free(s->x);
}

static int calibrate_on_source(struct setting *s, double ratio)
{
	struct calibrate_options options;
	struct calibrate *c;
	char why[200] = "out of memory";
	void *data;
	size_t len;
	int r;

	calibrate_options_init(&options);
	r = calibrate_new(&s->g, &options, &c, why, sizeof why);
	for (uint32_t part = 0; !r && part < calibrate_n_parts(c); part++) {
		for (int i = 0; !r && i < CALIBRATION_CHUNKS; i++) {
			make_features(s);
			r = calibrate_add(c, part, s->x, s->p, TOKENS);
		}
		if (!r)
			r = calibrate_learn(c, part);
	}
	if (!r)
		r = calibrate_finish(c, NULL, &data, &len, NULL);
	calibrate_free(c);
	if (!r) {
		r = transform_parse(data, len, &s->t, why, sizeof why);
		free(data);
	}
	if (r)
		fprintf(stderr, "cistern bench codec: %s\n", why);
	else
		s->rung = transform_rung(s->t, ratio);
	return r;
}

/* New features in the cache, as an engine would have written them. */
static void fill_cache(struct setting *s, uint64_t position)
{
	const struct kv_run run = {.blocks = s->blocks, .block_tokens = BLOCK_TOKENS};
	const uint32_t half = s->g.planes[0].rope_dim / 2;
	uint64_t positions[TOKENS];
	uint16_t tokens[TOKENS];
	float *table = malloc(sizeof *table * 2 * TOKENS * half);
	const struct rope_table rope = {.cos = table, .sin = table + (size_t)TOKENS * half};

	for (uint32_t i = 0; i < TOKENS; i++) {
		positions[i] = position + i;
		tokens[i] = (uint16_t)i;
	}
	s->k->rope_fill(&s->g.planes[0], positions, TOKENS, table, table + (size_t)TOKENS * half);
	for (uint32_t plane = 0; plane < 2; plane++) {
		make_features(s);
		for (uint32_t l = 0; l < s->g.n_layers; l++)
			s->k->scatter(&s->g.planes[plane], &s->pages[l * 2 + plane], &run, tokens, TOKENS,
				plane ? NULL : &rope, NULL, NULL, s->x + l * plane_width(&s->g.planes[plane]),
				s->p);
	}
	free(table);
}

/* ---- floors ---- */

static size_t active_components(const struct setting *s, uint32_t part)
{
	return transform_active(&s->t->parts[part], s->t->step[s->rung]);
}

/* The products of encoder and decoder, over both planes. */
static void time_gemm(const struct setting *s, float *c, double *encode, double *decode)
{
	uint64_t start = bench_now_ns();

	for (uint32_t i = 0; i < s->t->n_parts; i++)
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)active_components(s, i), TOKENS,
			(int)s->p, 1, s->t->parts[i].basis, (int)s->p, s->x, (int)s->p, 0, c, TOKENS);
	*encode = (double)(bench_now_ns() - start);
	start = bench_now_ns();
	for (uint32_t i = 0; i < s->t->n_parts; i++)
		cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, TOKENS, (int)s->p,
			(int)active_components(s, i), 1, c, TOKENS, s->t->parts[i].basis, (int)s->p, 0, s->x,
			(int)s->p);
	*decode = (double)(bench_now_ns() - start);
}

/* Inflates every stream of the frame, then deflates what came out, with the codec's own settings. */
static int time_deflate(const uint8_t *frame, size_t len, double *deflate_ns, double *inflate_ns)
{
	struct frame_section sections[256];
	struct frame_info info;
	z_stream in = {0}, out = {0};
	uint8_t *plain = NULL, *packed = NULL;
	int r = frame_parse(frame, len, &info, sections, 256);

	*deflate_ns = *inflate_ns = 0;
	if (r || inflateInit2(&in, -15) != Z_OK ||
		deflateInit2(&out, Z_BEST_SPEED, Z_DEFLATED, -15, 9, Z_HUFFMAN_ONLY) != Z_OK)
		return -ENOMEM;
	for (uint32_t i = 0; i < info.n_sections; i++) {
		const struct frame_section *s = &sections[i];
		uint64_t start;
		uLong bound;

		if (s->encoding != FRAME_DEFLATE)
			continue;
		bound = deflateBound(&out, s->full_bytes);
		plain = realloc(plain, s->full_bytes);
		packed = realloc(packed, bound);
		memset(plain, 0, s->full_bytes);
		memset(packed, 0, bound);
		inflateReset(&in);
		in.next_in = (Bytef *)(frame + s->offset);
		in.avail_in = s->len_bytes;
		in.next_out = plain;
		in.avail_out = s->full_bytes;
		start = bench_now_ns();
		if (inflate(&in, Z_FINISH) != Z_STREAM_END)
			r = -EBADMSG;
		*inflate_ns += (double)(bench_now_ns() - start);
		deflateReset(&out);
		out.next_in = plain;
		out.avail_in = s->full_bytes;
		out.next_out = packed;
		out.avail_out = (uInt)bound;
		start = bench_now_ns();
		if (deflate(&out, Z_FINISH) != Z_STREAM_END)
			r = -EBADMSG;
		*deflate_ns += (double)(bench_now_ns() - start);
	}
	inflateEnd(&in);
	deflateEnd(&out);
	free(plain);
	free(packed);
	return r;
}

/* ---- the run ---- */

enum { ENCODE, DECODE, ENCODE_GEMM, DECODE_GEMM, DEFLATE, INFLATE, COPY, SETTLE, COARSEN, N_TIMES };

static void add_times(struct codec *codec, struct codec_times *sum)
{
	struct codec_times t;

	codec_take_times(codec, &t);
	sum->gather += t.gather;
	sum->gemm += t.gemm;
	sum->quantise += t.quantise;
	sum->entropy += t.entropy;
	sum->other += t.other;
}

/* Frames from frames: one that the window leaves, and one that goes up two rungs. */
static int time_anew(struct setting *s, struct codec *codec, const struct codec_chunk *chunk,
	double *settle_ns, double *coarsen_ns, struct figures *f)
{
	uint8_t with_window[TOKENS] = {0}, without[TOKENS] = {0}, *frame, *settled, *coarse;
	struct codec_options options = {
		.transform = s->t, .rung = s->rung, .rung_redundant = s->rung, .classes = with_window};
	size_t len, settled_len, coarse_len;
	uint64_t start;
	int r;

	memset(with_window + TOKENS - WINDOW, TOKEN_WINDOW, WINDOW);
	r = codec_encode(codec, chunk, &options, &frame, &len, NULL);
	if (r)
		return r;
	options.classes = without;
	start = bench_now_ns();
	r = codec_resettle(codec, &s->g, frame, len, &options, &settled, &settled_len, NULL);
	*settle_ns = (double)(bench_now_ns() - start);
	free(frame);
	if (r)
		return r;
	options.rung = s->rung + 2 < s->t->n_rungs ? s->rung + 2 : s->t->n_rungs - 1;
	options.rung_redundant = options.rung;
	start = bench_now_ns();
	r = codec_transcode(codec, &s->g, settled, settled_len, &options, &coarse, &coarse_len, NULL);
	*coarsen_ns = (double)(bench_now_ns() - start);
	free(settled);
	if (r == -ERANGE) { /* the coarsest rung already */
		*coarsen_ns = 0;
		coarse_len = settled_len;
	} else if (r) {
		return r;
	} else {
		free(coarse);
	}
	f->window_bytes = (double)len;
	f->settled_bytes = (double)settled_len;
	f->coarse_bytes = (double)coarse_len;
	return 0;
}

static int measure(struct setting *s, uint32_t n_samples, struct figures *f)
{
	const uint8_t classes[TOKENS] = {0};
	const struct codec_options options = {.transform = s->t, .rung = s->rung, .classes = classes};
	struct codec_options deflated = options;
	struct codec_chunk chunk = {.geometry = &s->g,
		.pages = s->pages,
		.run = {.blocks = s->blocks, .block_tokens = BLOCK_TOKENS},
		.n_tokens = TOKENS};
	const size_t raw_bytes = geometry_token_bytes(&s->g) * TOKENS;
	static double times[N_TIMES][SAMPLES_MAX];
	struct codec *codec = codec_new(s->k, (size_t)1 << 30);
	float *c = calloc((size_t)s->t->parts[0].n_components + s->p, TOKENS * sizeof *c);
	void *copy = calloc(1, raw_bytes);
	struct codec_times ignored;
	int r = codec && c && copy ? 0 : -ENOMEM;

	/* The levels, packed as that stage packs them, are what DEFLATE alone is measured on. */
	deflated.entropy = CODEC_DEFLATE;
	/* Two more than wanted: the first ones touch the memory. */
	for (uint32_t i = 0; !r && i < n_samples + 2; i++) {
		const uint32_t at = i < 2 ? 0 : i - 2;
		uint8_t *frame, *other;
		uint64_t start;
		size_t len, other_len;

		chunk.position = (uint64_t)i * TOKENS;
		fill_cache(s, chunk.position);
		if (i == 2)
			codec_take_times(codec, &ignored);
		start = bench_now_ns();
		r = codec_encode(codec, &chunk, &options, &frame, &len, NULL);
		times[ENCODE][at] = (double)(bench_now_ns() - start);
		if (r)
			break;
		if (i >= 2)
			add_times(codec, &f->encode_times);
		r = time_anew(s, codec, &chunk, &times[SETTLE][at], &times[COARSEN][at], f);
		codec_take_times(codec, &ignored);
		start = bench_now_ns();
		if (!r)
			r = codec_decode(codec, frame, len, s->t, &chunk, 0, s->g.n_layers);
		times[DECODE][at] = (double)(bench_now_ns() - start);
		if (i >= 2)
			add_times(codec, &f->decode_times);
		time_gemm(s, c, &times[ENCODE_GEMM][at], &times[DECODE_GEMM][at]);
		if (!r)
			r = codec_encode(codec, &chunk, &deflated, &other, &other_len, NULL);
		if (!r) {
			r = time_deflate(other, other_len, &times[DEFLATE][at], &times[INFLATE][at]);
			free(other);
			codec_take_times(codec, &ignored);
		}
		start = bench_now_ns();
		memcpy(copy, s->memory, raw_bytes);
		times[COPY][at] = (double)(bench_now_ns() - start);
		f->frame_bytes = (double)len;
		free(frame);
	}
	f->raw_bytes = (double)raw_bytes;
	f->components = 0;
	for (uint32_t i = 0; i < s->t->n_parts; i++)
		f->components += (double)active_components(s, i);
	if (!r) {
		double *const out[N_TIMES] = {&f->encode, &f->decode, &f->encode_gemm, &f->decode_gemm,
			&f->deflate, &f->inflate, &f->copy, &f->settle, &f->coarsen};

		for (int k = 0; k < N_TIMES; k++)
			*out[k] = bench_quantile(times[k], n_samples, 0.5);
	}
	codec_free(codec);
	free(c);
	free(copy);
	return r;
}

static double share(uint64_t part, const struct codec_times *t)
{
	return (double)part / (double)(t->gather + t->gemm + t->quantise + t->entropy + t->other);
}

static json_t *times_object(const struct codec_times *t)
{
	return json_pack("{s:f, s:f, s:f, s:f, s:f}", "gather", share(t->gather, t), "gemm",
		share(t->gemm, t), "quantise", share(t->quantise, t), "entropy", share(t->entropy, t),
		"other", share(t->other, t));
}

static json_t *figures_object(const struct shape *shape, const struct figures *f)
{
	return json_pack(
		"{s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, "
		"s:o, s:o}",
		"shape", shape->name, "ratio", f->raw_bytes / f->frame_bytes, "components", f->components,
		"encode_gbps", f->raw_bytes / f->encode, "decode_gbps", f->raw_bytes / f->decode,
		"encode_gemm_gbps", f->raw_bytes / f->encode_gemm, "decode_gemm_gbps",
		f->raw_bytes / f->decode_gemm, "deflate_gbps", f->raw_bytes / f->deflate, "inflate_gbps",
		f->raw_bytes / f->inflate, "memcpy_gbps", f->raw_bytes / f->copy, "encode_over_floor",
		f->encode / (f->encode_gemm + f->deflate), "decode_over_floor",
		f->decode / (f->decode_gemm + f->inflate), "encode_us", f->encode / 1e3, "settle_us",
		f->settle / 1e3, "coarsen_us", f->coarsen / 1e3, "window_frame_bytes", f->window_bytes,
		"settled_frame_bytes", f->settled_bytes, "coarser_frame_bytes", f->coarse_bytes,
		"encode_shares", times_object(&f->encode_times), "decode_shares",
		times_object(&f->decode_times));
}

static void print_figures(const struct shape *shape, const struct figures *f)
{
	printf("%s: %.0f components, %.1fx\n", shape->name, f->components, f->raw_bytes / f->frame_bytes);
	printf("  %-8s %7.3f GB/s of raw KV   sgemm alone %7.3f   DEFLATE alone %7.3f   both %.2f times\n",
		"encode", f->raw_bytes / f->encode, f->raw_bytes / f->encode_gemm, f->raw_bytes / f->deflate,
		f->encode / (f->encode_gemm + f->deflate));
	printf("  %-8s %7.3f GB/s of raw KV   sgemm alone %7.3f   inflate alone %7.3f   both %.2f times\n",
		"decode", f->raw_bytes / f->decode, f->raw_bytes / f->decode_gemm, f->raw_bytes / f->inflate,
		f->decode / (f->decode_gemm + f->inflate));
	printf("  %-8s %7.3f GB/s\n", "memcpy", f->raw_bytes / f->copy);
	printf("  %-8s %7.0f us for %d tokens of a chunk   encoding one whole %7.0f us   %.0f KiB to %.0f\n",
		"settle", f->settle / 1e3, WINDOW, f->encode / 1e3, f->window_bytes / 1024,
		f->settled_bytes / 1024);
	printf("  %-8s %7.0f us by two rungs               encoding one whole %7.0f us   %.0f KiB to "
	       "%.0f\n\n",
		"coarsen", f->coarsen / 1e3, f->encode / 1e3, f->settled_bytes / 1024,
		f->coarse_bytes / 1024);
}

int bench_codec(int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"ratio", required_argument, NULL, 'r'}, {"samples", required_argument, NULL, 'n'},
		{"help", no_argument, NULL, 'h'}, {0}};
	uint32_t n_samples = 41;
	double ratio = 16;
	bool json = false;
	json_t *list;
	int option, r = 0;

	optind = 1;
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 'j': json = true; break;
		case 'r': ratio = strtod(optarg, NULL); break;
		case 'n': n_samples = (uint32_t)strtoul(optarg, NULL, 10); break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: fputs(usage, stderr); return EXIT_USAGE;
		}
	if (optind != argc || n_samples < 3 || n_samples > SAMPLES_MAX || !(ratio >= 1 && ratio <= 1000)) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	list = json_array();
	if (!json)
		printf("One core, %s, chunks of %d tokens, f16, rung nearest %gx\n\n", kernels_cpu()->name,
			TOKENS, ratio);
	for (size_t i = 0; !r && i < sizeof shapes / sizeof *shapes; i++) {
		struct figures f = {0};
		struct setting s;

		r = setting_init(&s, &shapes[i]);
		if (!r)
			r = calibrate_on_source(&s, ratio);
		if (!r)
			r = measure(&s, n_samples, &f);
		if (!r && json)
			json_array_append_new(list, figures_object(&shapes[i], &f));
		else if (!r)
			print_figures(&shapes[i], &f);
		setting_fini(&s);
	}
	if (json && !r)
		print_json(
			json_pack("{s:s, s:i, s:f, s:i, s:O}", "kernels", kernels_cpu()->name, "chunk_tokens",
				(int)TOKENS, "ratio", ratio, "samples", (int)n_samples, "shapes", list));
	json_decref(list);
	if (r)
		fprintf(stderr, "cistern bench codec: %s\n", strerror(-r));
	return r ? EXIT_FAILURE : EXIT_SUCCESS;
}
