#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cuda/codec-internal.h"
#include "tools/bench-gpu/bench-gpu.h"
#include "tools/bench.h"

/* Chunks encoded together: as many as the daemon puts together. */
enum { PUT_BATCH = 32 };

struct run {
	const struct setting *s;
	struct device_codec *c;
	CUdeviceptr room; /* for images, a chunk's beside the other's */
	struct codec_chunk chunks[DEVICE_BATCH_MAX];
	struct device_encode encode[DEVICE_BATCH_MAX];
	uint8_t classes[SETTING_CHUNK];
	struct codec_options options;
};

static void drop_frames(struct run *x)
{
	for (uint32_t i = 0; i < x->s->n_chunks; i++) {
		free(x->encode[i].frame);
		free(x->encode[i].image);
		x->encode[i].frame = NULL;
		x->encode[i].image = NULL;
	}
}

static int put_all(struct run *x)
{
	int r = 0;

	for (uint32_t i = 0; !r && i < x->s->n_chunks; i += PUT_BATCH) {
		const uint32_t n = x->s->n_chunks - i < PUT_BATCH ? x->s->n_chunks - i : PUT_BATCH;

		r = device_codec_encode(x->c, &x->encode[i], n);
		for (uint32_t k = i; !r && k < i + n; k++)
			r = x->encode[k].status;
	}
	return r;
}

static int measure_put(struct run *x, uint32_t rounds, struct transfer *out)
{
	const struct cuda_driver *d = x->c->driver;
	double placed[BENCH_GPU_ROUNDS_MAX], whole[BENCH_GPU_ROUNDS_MAX], frames = 0;
	CUevent start = NULL;
	int r = device_status(d->cuEventCreate(&start, CU_EVENT_DEFAULT));

	for (uint32_t i = 0; !r && i <= rounds; i++) {
		uint64_t began;
		float ms = 0;

		drop_frames(x);
		began = bench_now_ns();
		r = device_status(d->cuEventRecord(start, x->c->stream));
		r = r ? r : put_all(x);
		if (!i)
			continue;
		whole[i - 1] = (double)(bench_now_ns() - began) / 1e6;
		r = r ? r : device_status(d->cuEventElapsedTime(&ms, start, device_codec_placed(x->c)));
		placed[i - 1] = (double)ms;
	}
	if (start)
		d->cuEventDestroy(start);
	if (!r) {
		drop_frames(x);
		r = profile_begin(x->s->device);
		r = r ? r : put_all(x);
		const int ended = profile_end(&out->put);

		r = r ? r : ended;
	}
	for (uint32_t i = 0; !r && i < x->s->n_chunks; i++)
		frames += (double)x->encode[i].len;
	if (r)
		return r;
	out->put_ms = bench_quantile(placed, rounds, 0.5);
	out->frames_ms = bench_quantile(whole, rounds, 0.5);
	out->ratio = (double)x->s->bytes / frames;
	return 0;
}

static int measure_get(struct run *x, uint32_t rounds, struct transfer *out)
{
	const struct setting *s = x->s;
	const struct cuda_driver *d = x->c->driver;
	double wall[BENCH_GPU_ROUNDS_MAX], gpu[BENCH_GPU_ROUNDS_MAX], first[BENCH_GPU_ROUNDS_MAX];
	struct device_decode decode[DEVICE_BATCH_MAX];
	struct device_phase phases[GEOMETRY_LAYERS_MAX] = {{0}};
	size_t n_phases = 0;
	CUevent start = NULL;
	int r = device_status(d->cuEventCreate(&start, CU_EVENT_DEFAULT));

	for (uint32_t i = 0; i < s->t->n_parts; i++)
		if (s->t->parts[i].plane == 0)
			phases[n_phases++].end_layer = s->t->parts[i].first_layer + s->t->parts[i].n_layers;
	for (size_t i = 0; !r && i < n_phases; i++)
		r = device_status(d->cuEventCreate(&phases[i].event, CU_EVENT_DEFAULT));
	for (uint32_t i = 0; i < s->n_chunks; i++)
		decode[i] = (struct device_decode){.chunk = &x->chunks[i],
			.image = x->encode[i].image,
			.image_at = x->encode[i].image_at};
	for (uint32_t i = 0; !r && i <= rounds; i++) {
		float all = 0, one = 0;
		const uint64_t began = bench_now_ns();

		r = device_status(d->cuEventRecord(start, x->c->stream));
		if (!r)
			r = device_codec_decode(
				x->c, &s->g, s->t, decode, s->n_chunks, phases, n_phases, NULL, NULL);
		if (!i)
			continue;
		wall[i - 1] = (double)(bench_now_ns() - began) / 1e6;
		r = r ? r : device_status(d->cuEventElapsedTime(&one, start, phases[0].event));
		r = r ? r : device_status(d->cuEventElapsedTime(&all, start, phases[n_phases - 1].event));
		gpu[i - 1] = (double)all;
		first[i - 1] = (double)one;
	}
	if (!r) {
		r = profile_begin(s->device);
		r = r ? r
		      : device_codec_decode(
				x->c, &s->g, s->t, decode, s->n_chunks, phases, n_phases, NULL, NULL);
		const int ended = profile_end(&out->get);

		r = r ? r : ended;
	}
	for (size_t i = 0; i < n_phases; i++)
		if (phases[i].event)
			d->cuEventDestroy(phases[i].event);
	if (start)
		d->cuEventDestroy(start);
	if (r)
		return r;
	out->get_ms = bench_quantile(wall, rounds, 0.5);
	out->get_gpu_ms = bench_quantile(gpu, rounds, 0.5);
	out->first_group_ms = bench_quantile(first, rounds, 0.5);
	return 0;
}

int transfer_measure(const struct setting *s, uint32_t rounds, struct transfer *out)
{
	const uint64_t room_bytes = (s->bytes / s->n_chunks / 4 + (1 << 16)) / DEVICE_ALIGN * DEVICE_ALIGN;
	struct run *x = calloc(1, sizeof *x);
	int r;

	*out = (struct transfer){0};
	if (!x)
		return -ENOMEM;
	x->s = s;
	x->options = (struct codec_options){.transform = s->t, .classes = x->classes};
	for (uint32_t i = 0; i < s->n_chunks; i++) {
		x->chunks[i] = setting_chunk(s, i);
		x->encode[i] = (struct device_encode){.chunk = &x->chunks[i], .options = &x->options};
	}
	r = device_codec_new(s->device, device_codec_scratch(s->device), 0, &x->c);
	if (!r)
		r = device_status(x->c->driver->cuMemAlloc(&x->room, s->n_chunks * room_bytes));
	for (uint32_t i = 0; !r && i < s->n_chunks; i++) {
		x->encode[i].room_at = x->room + i * room_bytes;
		x->encode[i].room_bytes = room_bytes;
	}
	if (!r)
		r = measure_put(x, rounds, out);
	if (!r)
		r = measure_get(x, rounds, out);
	for (uint32_t i = 0; i < s->t->n_parts; i++)
		out->components += (double)transform_active(&s->t->parts[i], s->t->step[0]) /
				   s->t->parts[i].n_features / s->t->n_parts;
	if (x->c) {
		drop_frames(x);
		if (x->room)
			device_status(x->c->driver->cuMemFree(x->room));
		device_codec_free(x->c);
	}
	free(x);
	return r;
}
