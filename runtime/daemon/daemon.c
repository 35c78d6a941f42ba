#include "runtime/daemon/daemon.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/address.h"
#include "base/log.h"
#include "runtime/cuda/device.h"
#include "runtime/daemon/attach.h"
#include "runtime/daemon/device/coders.h"
#include "runtime/daemon/device/gpu.h"
#include "runtime/daemon/gauges.h"
#include "runtime/daemon/shadow/fidelity.h"

enum {
	EVENTS_MAX = 64,
	REQUESTS_PER_ROUND = 64, /* of one session, so that none keeps the others waiting */
	HELLO_MS = 5000,         /* a connection that has not said hello by then is closed */
	ACCEPTS_PER_ROUND = 16,
	GPU_END_MS = 5000,       /* what a stopping daemon waits for the driver */
	CONTROL_CONNECTIONS = 8, /* beyond max_clients, so that an operator always gets in */
};

uint64_t daemon_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* The event's cookie: a session's address, whose low bits are free, with the source in them. */
enum { SOURCE_MASK = 15 };
_Static_assert((int)SOURCE_GPU <= (int)SOURCE_MASK && _Alignof(max_align_t) > SOURCE_MASK,
	"sources fit the free bits of an address");

static struct epoll_event event_of(enum daemon_source source, struct session *s)
{
	return (struct epoll_event){.events = EPOLLIN, .data.u64 = (uint64_t)(uintptr_t)s | source};
}

int daemon_watch(struct daemon *d, int fd, enum daemon_source source, struct session *s)
{
	struct epoll_event event = event_of(source, s);

	return epoll_ctl(d->epoll, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

void daemon_pause_socket(struct daemon *d, struct session *s, bool paused)
{
	struct epoll_event event = event_of(SOURCE_SOCKET, s);

	if (paused)
		event.events = 0; /* EPOLLHUP comes unasked */
	if (epoll_ctl(d->epoll, EPOLL_CTL_MOD, s->socket, &event))
		session_close(s, "epoll");
}

void daemon_mark_dirty(struct daemon *d, struct session *s)
{
	if (s->dirty)
		return;
	s->dirty = true;
	s->next_dirty = d->dirty;
	d->dirty = s;
}

static int listen_on(struct daemon *d, const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char folder[sizeof address.sun_path];
	char *slash;
	int r;

	if (strlen(path) >= sizeof address.sun_path) {
		log_error("%s: the path is too long for a socket", path);
		return -ENAMETOOLONG;
	}
	strcpy(address.sun_path, path);
	strcpy(folder, path);
	slash = strrchr(folder, '/');
	if (slash && slash != folder) {
		*slash = 0;
		if (mkdir(folder, 0755) && errno != EEXIST)
			log_warning("%s: %s", folder, strerror(errno));
	}
	r = address_clear(&address, SOCK_SEQPACKET);
	if (r) {
		log_error("%s: %s", path,
			r == -EEXIST       ? "exists and is not a socket"
			: r == -EADDRINUSE ? "another daemon serves it"
					   : strerror(-r));
		return r;
	}
	d->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* Everybody may connect: who may attach is decided by the peer's uid, namespace by namespace. */
	if (d->listener < 0 || bind(d->listener, (const struct sockaddr *)&address, sizeof address) ||
		chmod(path, 0666) || listen(d->listener, 64)) {
		r = -errno;
		log_error("%s: %s", path, strerror(-r));
		return r;
	}
	return daemon_watch(d, d->listener, SOURCE_LISTENER, NULL);
}

/* Where the handler reports: the one thing here that cannot be passed to it. A signalfd would need the signal
 * blocked in every thread, and libraries start threads before main does anything (OpenBLAS). */
static volatile sig_atomic_t signal_fd = -1;

/* What it adds to the eventfd; several may be added up before they are read. */
#define SIGNAL_STOP ((uint64_t)1)
#define SIGNAL_RELOAD ((uint64_t)1 << 32)

static void on_signal(int signal)
{
	const int saved = errno;

	eventfd_write(signal_fd, signal == SIGHUP ? SIGNAL_RELOAD : SIGNAL_STOP);
	errno = saved;
}

static int take_signals(struct daemon *d)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

	d->signals = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (d->signals < 0)
		return -errno;
	signal_fd = d->signals;
	if (sigaction(SIGTERM, &action, NULL) || sigaction(SIGINT, &action, NULL) ||
		sigaction(SIGHUP, &action, NULL))
		return -errno;
	return daemon_watch(d, d->signals, SOURCE_SIGNALS, NULL);
}

static int open_store(struct daemon *d)
{
	struct store_config config = {.directory = d->config->store_dir,
		.limit_bytes = d->config->store_bytes,
		.segment_bytes = d->config->segment_bytes};
	int r;

	if (!d->config->store_dir[0])
		return 0;
	pool_range(d->pool, &config.pool_addr, &config.pool_bytes);
	r = store_open(&config, cache_found, d->cache, &d->store);
	if (r) {
		log_error("store %s: %s", d->config->store_dir, strerror(-r));
		return r;
	}
	cache_attach(d->cache, d->store);
	return daemon_watch(d, store_fd(d->store), SOURCE_STORE, NULL);
}

static int set_quotas(struct daemon *d)
{
	int r = 0;

	for (uint32_t i = 0; i < d->config->n_namespaces && !r; i++) {
		const struct config_namespace *n = &d->config->namespaces[i];
		uint8_t id[16];

		attach_name_space_id(n->name, id);
		r = cache_set_quota(d->cache, id, n->pool_quota, n->store_quota);
	}
	return r;
}

static void forget_on_gpu(void *gpu, uint32_t number)
{
	gpu_forget(gpu, number);
}

static int set_up(struct daemon *d)
{
	const struct config *c = d->config;
	const long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
	int r;

	d->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (d->epoll < 0)
		return -errno;
	r = take_signals(d);
	if (r)
		return r;
	d->events = events_new(EVENTS_KEPT);
	r = board_new(&d->board);
	if (r) {
		log_error("statistics page: %s", strerror(-r));
		return r;
	}
	d->policies = policies_new(c);
	d->governor = governor_new(d);
	d->registry = registry_new();
	d->fidelity = fidelity_new(d);
	if (!d->events || !d->policies || !d->governor || !d->registry || !d->fidelity)
		return -ENOMEM;
	r = pool_new(c->pool_bytes, &d->pool);
	if (r) {
		log_error("pool of %llu bytes: %s", (unsigned long long)c->pool_bytes, strerror(-r));
		return r;
	}
	d->cache = cache_new(d->pool, NULL);
	if (!d->cache)
		return -ENOMEM;
	cache_count_on(d->cache, d->board);
	r = set_quotas(d);
	if (!r)
		r = open_store(d);
	if (!r)
		r = learn_new(d, &d->learn);
	for (uint32_t i = 0; i < c->n_transforms && !r; i++)
		r = registry_load_transform(d->registry, c->transforms[i]);
	if (r)
		return r;
	r = learn_start(d->learn);
	if (!r && learn_fd(d->learn) >= 0)
		r = daemon_watch(d, learn_fd(d->learn), SOURCE_LEARN, NULL);
	if (r)
		return r;
	r = steward_new(d, &d->steward);
	if (!r)
		r = daemon_watch(d, steward_fd(d->steward), SOURCE_STEWARD, NULL);
	if (r)
		return r;
	r = gpu_new(c, &d->gpu);
	if (!r && d->gpu)
		r = daemon_watch(d, lanes_fd(d->gpu->lanes), SOURCE_GPU, NULL);
	if (!r && d->gpu)
		r = daemon_watch(d, coders_fd(d->gpu->coders), SOURCE_GPU, NULL);
	if (!r && d->gpu)
		cache_tell_gone(d->cache, forget_on_gpu, d->gpu);
	if (r)
		return r;
	d->n_workers = c->workers ? c->workers : n_cpus > 0 ? (uint32_t)n_cpus : 1;
	r = workers_new(d->n_workers, d->kernels, &d->workers);
	if (!r)
		r = daemon_watch(d, workers_fd(d->workers), SOURCE_WORKERS, NULL);
	if (!r)
		r = listen_on(d, c->socket);
	if (!r)
		gauges_init(d);
	if (!r && c->metrics_listen[0])
		r = exporter_new(c->metrics_listen, board_fd(d->board), &d->exporter);
	return r;
}

int daemon_init(struct daemon *d, const struct config *config)
{
	int r;

	*d = (struct daemon){.config = config,
		.kernels = kernels_cpu(),
		.epoll = -1,
		.listener = -1,
		.signals = -1,
		.started_ms = daemon_now_ms()};
	r = set_up(d);
	if (r) {
		daemon_fini(d);
		return r;
	}
	events_add(d->events, EVENT_DAEMON, EVENT_NOBODY, NULL,
		"serving on %s: backend host (%s), %u workers, pool %llu MiB, store %s, device %s",
		config->socket, d->kernels->name, d->n_workers, (unsigned long long)config->pool_bytes >> 20,
		d->store ? config->store_dir : "none", d->gpu ? device_describe(d->gpu->device) : "none");
	return 0;
}

static void accept_clients(struct daemon *d)
{
	for (int i = 0; i < ACCEPTS_PER_ROUND; i++) {
		const int fd = accept4(d->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		struct session *s;

		if (fd < 0)
			return;
		if (d->n_sessions >= d->config->max_clients + CONTROL_CONNECTIONS) {
			log_warning("a client was turned away: max_clients is %u", d->config->max_clients);
			close(fd);
			continue;
		}
		s = session_new(d, fd, ++d->next_session_id);
		if (!s)
			continue;
		s->next = d->sessions;
		if (s->next)
			s->next->previous = s;
		d->sessions = s;
		d->n_sessions++;
		d->counters.n_connections++;
	}
}

/* Policies alone are taken anew; what else a configuration says is read at the start. */
static void reload(struct daemon *d)
{
	struct config *config = calloc(1, sizeof *config);
	char why[512] = "out of memory";
	int r = config ? 0 : -ENOMEM;

	if (!r && !d->config->path[0]) {
		r = -EINVAL;
		snprintf(why, sizeof why, "the daemon was started without a configuration");
	}
	if (!r)
		r = config_load(d->config->path, config, why, sizeof why);
	if (!r)
		r = policies_reload(d->policies, config);
	if (r)
		events_add(d->events, EVENT_POLICY, EVENT_NOBODY, NULL,
			"reload refused, the policies stay as they are: %s", why);
	else
		events_add(d->events, EVENT_POLICY, EVENT_NOBODY, NULL,
			"policies reloaded from %s: version %u", config->path, policies_version(d->policies));
	governor_review(d->governor);
	free(config);
}

static void take_signal(struct daemon *d)
{
	uint64_t sum = 0;

	if (eventfd_read(d->signals, &sum))
		return;
	if (sum % SIGNAL_RELOAD) {
		log_info("stopping");
		d->stopping = true;
	} else {
		reload(d);
	}
}

static void handle_event(struct daemon *d, const struct epoll_event *event)
{
	struct session *s = (struct session *)(uintptr_t)(event->data.u64 & ~(uint64_t)SOURCE_MASK);

	switch ((enum daemon_source)(event->data.u64 & SOURCE_MASK)) {
	case SOURCE_LISTENER: accept_clients(d); break;
	case SOURCE_SIGNALS: take_signal(d); break;
	case SOURCE_WORKERS: workers_reap(d->workers); break;
	case SOURCE_STORE: cache_reap(d->cache); break;
	case SOURCE_SOCKET:
		if (session_is_waiting(s) && (event->events & (EPOLLHUP | EPOLLERR)))
			session_close(s, "the client has gone");
		else
			session_receive(s);
		break;
	case SOURCE_DOORBELL: session_rung(s); break;
	case SOURCE_LEARN: learn_run(d->learn); break;
	case SOURCE_FIDELITY: fidelity_reap(d->fidelity); break;
	case SOURCE_STEWARD: steward_run(d->steward); break;
	case SOURCE_PROCESS: session_close(s, "its process has ended"); break;
	case SOURCE_GPU: gpu_reap(d->gpu); break;
	}
}

static uint32_t consume_all(struct daemon *d)
{
	uint32_t n = 0;

	for (struct session *s = d->sessions; s; s = s->next)
		n += session_consume(s, REQUESTS_PER_ROUND);
	return n;
}

static void publish_all(struct daemon *d)
{
	while (d->dirty) {
		struct session *s = d->dirty;

		d->dirty = s->next_dirty;
		s->dirty = false;
		session_publish(s);
	}
}

/* Closed sessions go here, at the end of a round, when no event can name them any more. Returns how many
 * connections have yet to say hello. */
static uint32_t sweep(struct daemon *d)
{
	const uint64_t now = daemon_now_ms();
	uint32_t n_silent = 0;

	for (struct session *s = d->sessions, *next; s; s = next) {
		next = s->next;
		if (!s->attached && !s->watching && !s->closed && !s->n_requests) {
			n_silent++;
			if (now - s->since_ms > HELLO_MS)
				session_close(s, "it never said hello");
		}
		if (!s->closed || s->n_requests)
			continue;
		if (s->previous)
			s->previous->next = s->next;
		else
			d->sessions = s->next;
		if (s->next)
			s->next->previous = s->previous;
		session_free(s);
		d->n_sessions--;
	}
	return n_silent;
}

/* Announces sleep on every ring; false: there is something to do after all. */
static bool may_sleep(struct daemon *d)
{
	bool idle = true;

	for (struct session *s = d->sessions; s; s = s->next)
		idle = !session_sleep(s) && idle;
	return idle;
}

/* Of two timeouts, of which -1 is none. */
static int sooner(int a_ms, int b_ms)
{
	return a_ms < 0 || (b_ms >= 0 && b_ms < a_ms) ? b_ms : a_ms;
}

int daemon_run(struct daemon *d)
{
	struct epoll_event events[EVENTS_MAX];
	uint64_t busy_until_us = 0;
	uint32_t n_silent = 0;
	char status[160];

	snprintf(status, sizeof status, "serving on %s", d->config->socket);
	notify_ready(&d->notify, status);
	while (!d->stopping) {
		const uint32_t n_consumed = consume_all(d);
		const int tick_ms = sooner(cache_tick(d->cache),
			sooner(steward_tick(d->steward), fidelity_tick(d->fidelity, daemon_now_ms())));
		int n, timeout_ms = n_silent ? 1000 : -1;
		bool slept = false;

		d->board->changed |= n_consumed > 0;
		timeout_ms = sooner(timeout_ms, tick_ms);
		publish_all(d);
		if (n_consumed && d->config->spin_us)
			busy_until_us = now_us() + d->config->spin_us;
		if (n_consumed || (busy_until_us && now_us() < busy_until_us)) {
			timeout_ms = 0;
		} else {
			busy_until_us = 0;
			slept = true;
			if (!may_sleep(d))
				timeout_ms = 0;
		}
		if (d->gpu)
			timeout_ms = gpu_tick(d->gpu, timeout_ms);
		timeout_ms = gauges_publish(d, timeout_ms);
		timeout_ms = notify_alive(&d->notify, daemon_now_ms(), timeout_ms);
		/* Spinning looks at the descriptors as well, but the rings come first. */
		n = epoll_wait(d->epoll, events, EVENTS_MAX, timeout_ms);
		if (n < 0 && errno != EINTR)
			return -errno;
		for (struct session *s = d->sessions; slept && s; s = s->next)
			session_wake(s);
		d->board->changed |= n > 0;
		for (int i = 0; i < n; i++)
			handle_event(d, &events[i]);
		publish_all(d);
		n_silent = sweep(d);
	}
	notify_stopping();
	return 0;
}

/* The driver does not come back with something that a session wants: what can be saved is, and the process
 * ends without the rest, which is in use still. */
static void end_without_gpu(struct daemon *d)
{
	log_error("device: a call has not come back: the daemon ends without it");
	d->store = store_close(d->store);
	_exit(EXIT_FAILURE);
}

/* Lets everything in flight end: sessions are closed, so no new work comes. */
static void drain(struct daemon *d)
{
	const uint64_t give_up_ms = daemon_now_ms() + GPU_END_MS;
	struct epoll_event events[EVENTS_MAX];

	for (struct session *s = d->sessions; s; s = s->next)
		session_close(s, "the daemon stops");
	d->dirty = NULL;
	learn_stop(d->learn);
	fidelity_stop(d->fidelity);
	steward_stop(d->steward);
	while (d->sessions || (d->workers && workers_n_busy(d->workers)) ||
		(d->cache && cache_n_busy(d->cache)) || (d->learn && !learn_is_idle(d->learn)) ||
		(d->gpu && !gpu_is_idle(d->gpu))) {
		if (d->workers)
			workers_reap(d->workers);
		if (d->gpu)
			gpu_reap(d->gpu);
		if (d->gpu && !gpu_is_idle(d->gpu) && daemon_now_ms() > give_up_ms &&
			!workers_n_busy(d->workers) && !cache_n_busy(d->cache))
			end_without_gpu(d);
		if (d->cache) {
			cache_reap(d->cache);
			cache_tick(d->cache);
		}
		sweep(d);
		if (d->sessions || workers_n_busy(d->workers) || cache_n_busy(d->cache) ||
			(d->gpu && !gpu_is_idle(d->gpu)))
			epoll_wait(d->epoll, events, EVENTS_MAX, 10);
	}
}

void daemon_fini(struct daemon *d)
{
	if (d->listener >= 0) {
		close(d->listener);
		unlink(d->config->socket);
	}
	if (d->workers)
		drain(d);
	d->workers = workers_free(d->workers);
	if (d->cache)
		cache_tell_gone(d->cache, NULL, NULL);
	d->gpu = gpu_free(d->gpu);
	d->learn = learn_free(d->learn);
	d->fidelity = fidelity_free(d->fidelity);
	d->steward = steward_free(d->steward);
	d->store = store_close(d->store);
	if (d->cache)
		cache_attach(d->cache, NULL);
	d->cache = cache_free(d->cache);
	d->exporter = exporter_free(d->exporter);
	d->board = board_free(d->board);
	d->pool = pool_free(d->pool);
	d->registry = registry_free(d->registry);
	d->governor = governor_free(d->governor);
	d->policies = policies_free(d->policies);
	d->events = events_free(d->events);
	if (d->signals >= 0) {
		/* From here on a signal ends the process as it would any other. */
		signal(SIGTERM, SIG_DFL);
		signal(SIGINT, SIG_DFL);
		close(d->signals);
	}
	if (d->epoll >= 0)
		close(d->epoll);
	*d = (struct daemon){.epoll = -1, .listener = -1, .signals = -1};
}
