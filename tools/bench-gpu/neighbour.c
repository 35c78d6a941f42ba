#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "runtime/cuda/codec-internal.h"
#include "runtime/cuda/share.h"
#include "tools/bench-gpu/bench-gpu.h"
#include "tools/bench.h"

enum { MEASURE_MS = 1000 };

int neighbour_run(int ordinal, bool small)
{
	const struct setting_shape shape = {.n_layers = 2,
		.n_heads = small ? 1 : 8,
		.dim = small ? 32 : 128,
		.n_tokens = small ? 256 : 2048,
		.ratio = 4};
	struct products *products;
	struct device *d;
	struct setting s;
	char why[200], byte;
	int r = device_new(&(struct device_options){.ordinal = ordinal}, &d, why, sizeof why);

	if (!r)
		r = setting_init(&s, d, &shape);
	if (!r)
		r = products_open(&s, &products);
	if (r)
		return r;
	/* The first answer tells that everything is set up. */
	while (read(0, &byte, 1) == 1) {
		double tflops;

		r = products_rate(products, small ? 1 : MEASURE_MS, &tflops);
		if (r)
			return r;
		if (write(1, &tflops, sizeof tflops) != sizeof tflops)
			break;
	}
	return 0;
}

struct child {
	pid_t pid;
	int to, from;
};

static int child_start(struct child *c, int ordinal, bool small)
{
	int to[2] = {-1, -1}, from[2] = {-1, -1};
	char device[16];

	snprintf(device, sizeof device, "%d", ordinal < 0 ? 0 : ordinal);
	if (pipe(to) || pipe(from))
		return -errno;
	c->pid = fork();
	if (c->pid < 0)
		return -errno;
	if (!c->pid) {
		dup2(to[0], 0);
		dup2(from[1], 1);
		close(to[1]);
		close(from[0]);
		execl("/proc/self/exe", "cistern", "bench", "gpu", "--neighbour", "--device", device,
			small ? "--small" : NULL, NULL);
		_exit(127);
	}
	close(to[0]);
	close(from[1]);
	c->to = to[1];
	c->from = from[0];
	return 0;
}

static int child_ask(const struct child *c)
{
	return write(c->to, "", 1) == 1 ? 0 : -EPIPE;
}

static int child_answer(const struct child *c, double *out)
{
	return read(c->from, out, sizeof *out) == sizeof *out ? 0 : -EPIPE;
}

/* Has the child answered? */
static bool child_has_answered(const struct child *c)
{
	struct timeval none = {0};
	fd_set set;

	FD_ZERO(&set);
	FD_SET(c->from, &set);
	return select(c->from + 1, &set, NULL, NULL, &none) != 0;
}

/* As the daemon's encoder begins: not before its share of the GPU lets it. False: the child has answered. */
static bool wait_for_share(struct share *share, const struct child *child)
{
	while (!child_has_answered(child)) {
		const uint64_t wait_ns = share_wait(share, bench_now_ns());

		if (!wait_ns)
			return true;
		nanosleep(&(struct timespec){.tv_nsec = (long)(wait_ns < 1000000 ? wait_ns : 1000000)}, NULL);
	}
	return false;
}

/* Chunks put again and again, at the lowest priority, until the child has answered. */
static int put_meanwhile(
	const struct setting *s, const struct child *child, uint32_t share_percent, double *n_puts)
{
	const uint8_t classes[SETTING_CHUNK] = {0};
	const struct codec_options options = {.transform = s->t, .classes = classes};
	struct codec_chunk chunks[DEVICE_BATCH_MAX];
	struct device_encode encode[DEVICE_BATCH_MAX];
	const uint32_t n = s->n_chunks;
	struct share share;
	struct device_codec *c;
	uint64_t busy_ns = 0;
	int least = 0, most, r;

	r = device_status(device_driver(s->device)->cuCtxGetStreamPriorityRange(&least, &most));
	if (!r)
		r = device_codec_new(s->device, device_codec_scratch(s->device), least, &c);
	if (r)
		return r;
	for (uint32_t i = 0; i < n; i++)
		chunks[i] = setting_chunk(s, i);
	share_init(&share, share_percent, bench_now_ns());
	/* What can be saved up is not what is measured. */
	share_take(&share, SHARE_SAVED_NS);
	while (!r && wait_for_share(&share, child)) {
		for (uint32_t i = 0; i < n; i++)
			encode[i] = (struct device_encode){.chunk = &chunks[i], .options = &options};
		r = device_codec_encode(c, encode, n);
		for (uint32_t i = 0; i < n; i++) {
			r = r ? r : encode[i].status;
			free(encode[i].frame);
			free(encode[i].image);
		}
		*n_puts += n;
		share_take(&share, device_codec_busy_ns(c) - busy_ns);
		busy_ns = device_codec_busy_ns(c);
	}
	device_codec_free(c);
	return r;
}

int neighbour_measure(const struct setting *s, int ordinal, bool small, struct neighbour *out)
{
	struct child child;
	double warm_up;
	int r = child_start(&child, ordinal, small);

	*out = (struct neighbour){0};
	if (r)
		return r;
	signal(SIGPIPE, SIG_IGN);
	r = child_ask(&child);
	r = r ? r : child_answer(&child, &warm_up);
	r = r ? r : child_ask(&child);
	r = r ? r : child_answer(&child, &out->alone_tflops);
	r = r ? r : child_ask(&child);
	r = r ? r : put_meanwhile(s, &child, NEIGHBOUR_SHARE, &out->n_puts);
	r = r ? r : child_answer(&child, &out->beside_tflops);
	r = r ? r : child_ask(&child);
	r = r ? r : put_meanwhile(s, &child, 100, &out->n_puts_unlimited);
	r = r ? r : child_answer(&child, &out->beside_unlimited_tflops);
	close(child.to);
	close(child.from);
	waitpid(child.pid, NULL, 0);
	return r;
}
