#include "runtime/daemon/learn/learn.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/log.h"
#include "policy/learner.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/learn/student.h"
#include "runtime/daemon/learn/upkeep.h"
#include "runtime/daemon/learn/versions.h"

enum {
	BUFFERS_MAX = 16,
	BUFFERS_BYTES_MAX = 64 << 20, /* of one model; one buffer at least */
	DIRECTORY_MAX = CONFIG_PATH_MAX + 16,
};

/* A model that is learned for. Never freed before the daemon ends. */
struct pupil {
	struct learn *learn;
	struct pupil *next;
	const struct model *model;
	struct learner learner;
	struct student *student; /* the background thread's, while tasks are in flight; NULL: declined */
	struct sample *free;
	uint32_t n_buffers, n_buffers_max;
	uint64_t n_samples, n_missed, copy_ns, copied_bytes;
};

/* Forgetting and learning, on the background thread. */
struct lesson {
	struct task task;
	struct pupil *pupil;
	struct background *background; /* while it runs */
	uint64_t fade_to;              /* 0: does not forget */
	bool learns;
	struct known known;
	void *data;
	struct transform *transform;
	int status;
};

struct learn {
	struct daemon *daemon;
	char directory[DIRECTORY_MAX]; /* empty: versions are not kept */
	struct background *background; /* NULL: not enabled */
	struct upkeep *upkeep;
	int epoll, timer;
	bool stopped;
	struct pupil *pupils;
	uint32_t last_number; /* of a version */
};

/* ---- versions from before ---- */

static void found(void *arg, const char *path, const struct version *v)
{
	struct learn *l = arg;
	struct known k = {.version = *v};
	const struct transform *t;

	if (v->number > l->last_number)
		l->last_number = v->number;
	/* One that cannot be read makes its frames misses, and stays for whoever wants to look. */
	if (registry_load_transform(l->daemon->registry, path))
		return;
	t = registry_transform(l->daemon->registry, v->id);
	if (!t) {
		log_warning("%s: holds another transform than its name says", path);
		return;
	}
	memcpy(k.fingerprint, t->fingerprint, 16);
	if (upkeep_add(l->upkeep, &k))
		log_warning("%s: no memory to take note of it", path);
}

static int load_versions(struct learn *l)
{
	const struct config *c = l->daemon->config;
	int r;

	if (!c->store_dir[0])
		return 0;
	snprintf(l->directory, sizeof l->directory, "%s/transforms", c->store_dir);
	if (!c->learn.enabled && access(l->directory, F_OK))
		return 0;
	r = versions_scan(l->directory, found, l);
	if (r)
		log_error("%s: %s", l->directory, strerror(-r));
	return r;
}

int learn_new(struct daemon *d, struct learn **out)
{
	struct learn *l = calloc(1, sizeof *l);
	int r;

	if (!l)
		return -ENOMEM;
	l->daemon = d;
	l->epoll = l->timer = -1;
	l->upkeep = upkeep_new(d);
	r = l->upkeep ? load_versions(l) : -ENOMEM;
	if (r)
		learn_free(l);
	else
		*out = l;
	return r;
}

static int watch(const struct learn *l, int fd)
{
	struct epoll_event event = {.events = EPOLLIN};

	return epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

int learn_start(struct learn *l)
{
	const struct itimerspec second = {.it_interval.tv_sec = 1, .it_value.tv_sec = 1};
	const struct config *c = l->daemon->config;
	int r;

	if (!c->learn.enabled)
		return 0;
	l->epoll = epoll_create1(EPOLL_CLOEXEC);
	l->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (l->epoll < 0 || l->timer < 0 || timerfd_settime(l->timer, 0, &second, NULL))
		return -errno;
	r = background_new(
		c->learn.cpu_percent / 100.0, c->learn.only_idle, l->daemon->kernels, &l->background);
	if (!r)
		r = watch(l, background_fd(l->background));
	if (!r)
		r = watch(l, l->timer);
	if (r)
		return r;
	upkeep_begin(l->upkeep, l->background, l->directory);
	log_info("learning transforms: %u%% of a core, %s", c->learn.cpu_percent,
		l->directory[0] ? l->directory : "kept in memory only, as there is no store");
	return 0;
}

/* ---- models ---- */

/* The tokens that the model's transform was learned from. */
static uint64_t n_rested(const struct learn *l, const struct model *m)
{
	if (!m->transform)
		return 0;
	for (size_t i = 0; i < upkeep_n_known(l->upkeep); i++)
		if (!memcmp(upkeep_known(l->upkeep, i)->version.id, m->transform->id, 16))
			return upkeep_known(l->upkeep, i)->version.n_tokens;
	return UINT64_MAX;
}

static uint64_t memory_left(const struct learn *l)
{
	uint64_t left = l->daemon->config->learn.memory_bytes;

	for (const struct pupil *p = l->pupils; p; p = p->next) {
		const uint64_t bytes = p->student ? student_bytes(p->student) : 0;

		left -= bytes < left ? bytes : left;
	}
	return left;
}

static void make_student(struct pupil *p)
{
	const struct learn *l = p->learn;
	const struct student_options options = {
		.chunk_tokens = l->daemon->config->chunk_tokens, .memory_bytes = memory_left(l)};
	const char *name = p->model->geometry.name;
	char why[200] = "out of memory";
	uint64_t needed = 0;
	const int r = student_new(
		&p->model->geometry, l->daemon->kernels, &options, &p->student, &needed, why, sizeof why);

	if (r == -ENOSPC)
		events_add(l->daemon->events, EVENT_MODEL, EVENT_NOBODY, NULL,
			"model %s: nothing is learned: its covariances need %llu MiB, and of [learn] memory "
			"%llu MiB are left",
			name, (unsigned long long)(needed >> 20) + 1,
			(unsigned long long)options.memory_bytes >> 20);
	else if (r)
		events_add(l->daemon->events, EVENT_MODEL, EVENT_NOBODY, NULL,
			"model %s: nothing is learned: %s", name, why);
}

static struct pupil *pupil_of(struct learn *l, const struct model *m)
{
	const struct config *c = l->daemon->config;
	const struct learner_options options = {
		.first_tokens = c->learn.first_tokens, .drift = c->learn.drift_percent / 100.0};
	const uint64_t bytes = geometry_token_bytes(&m->geometry) * c->chunk_tokens;
	struct pupil *p = l->pupils;

	while (p && p->model != m)
		p = p->next;
	if (p)
		return p;
	p = calloc(1, sizeof *p);
	if (!p)
		return NULL;
	p->learn = l;
	p->model = m;
	p->n_buffers_max = bytes * BUFFERS_MAX <= BUFFERS_BYTES_MAX ? BUFFERS_MAX
			   : bytes < BUFFERS_BYTES_MAX              ? (uint32_t)(BUFFERS_BYTES_MAX / bytes)
								    : 1;
	learner_init(&p->learner, &options, n_rested(l, m));
	make_student(p);
	p->next = l->pupils;
	l->pupils = p;
	return p;
}

/* ---- learning ---- */

static bool rest(void *arg)
{
	return background_rest(arg);
}

static void lesson_run(struct task *task, struct background *b)
{
	struct lesson *s = (struct lesson *)task;
	const char *directory = s->pupil->learn->directory;
	size_t len;

	if (s->fade_to)
		student_fade(s->pupil->student, s->fade_to);
	if (!s->learns)
		return;
	s->status = student_learn(s->pupil->student, rest, b, &s->data, &len, &s->transform);
	if (s->status)
		return;
	s->known.len_bytes = len;
	memcpy(s->known.version.id, s->transform->id, 16);
	if (directory[0])
		s->status = versions_write(directory, &s->known.version, s->data, len);
}

static void advance(struct pupil *p);

/* From here on the model's new chunks are made with it. */
static int publish(struct lesson *s)
{
	struct learn *l = s->pupil->learn;
	int r = registry_add_transform(l->daemon->registry, s->transform, s->known.len_bytes);

	if (!r) {
		s->transform = NULL; /* the registry's */
		r = upkeep_add(l->upkeep, &s->known);
	}
	if (r)
		return r;
	upkeep_hurry(l->upkeep);
	events_add(l->daemon->events, EVENT_MODEL, EVENT_NOBODY, NULL,
		"model %s: transform version %u learned from %llu tokens, %llu bytes",
		s->pupil->model->geometry.name, s->known.version.number,
		(unsigned long long)s->known.version.n_tokens, (unsigned long long)s->known.len_bytes);
	return 0;
}

static void lesson_done(struct task *task, bool ran)
{
	struct lesson *s = (struct lesson *)task;
	struct pupil *p = s->pupil;

	if (s->learns) {
		const int r = !ran ? -ECANCELED : s->status ? s->status : publish(s);

		if (r && r != -ECANCELED)
			events_add(p->learn->daemon->events, EVENT_MODEL, EVENT_NOBODY, NULL,
				"model %s: no transform could be learned (%s)", p->model->geometry.name,
				strerror(-r));
		learner_learned(&p->learner, !r);
	}
	free(s->data);
	transform_unref(s->transform);
	free(s);
	advance(p);
}

static void give_lesson(struct pupil *p, uint64_t fade_to, bool learns)
{
	struct lesson *s = calloc(1, sizeof *s);

	if (!s) {
		if (learns)
			learner_learned(&p->learner, false);
		return;
	}
	s->task.run = lesson_run;
	s->task.done = lesson_done;
	s->pupil = p;
	s->fade_to = fade_to;
	s->learns = learns;
	s->known.version = (struct version){
		.number = learns ? ++p->learn->last_number : 0, .n_tokens = p->learner.n_taken};
	memcpy(s->known.fingerprint, p->model->fingerprint, 16);
	background_submit(p->learn->background, &s->task);
}

static void advance(struct pupil *p)
{
	const struct learn *l = p->learn;
	const bool was_blocked = p->learner.blocked;
	uint64_t fade_to;

	if (l->stopped)
		return;
	fade_to = learner_fade(&p->learner);
	if (fade_to) {
		events_add(l->daemon->events, EVENT_MODEL, EVENT_NOBODY, NULL,
			"model %s: its transform captures less than it did: learning another",
			p->model->geometry.name);
		give_lesson(p, fade_to, false);
	}
	if (learner_begin(&p->learner,
		    upkeep_n_versions(l->upkeep, p->model->fingerprint) < l->daemon->config->learn.versions))
		give_lesson(p, 0, true);
	else if (p->learner.blocked && !was_blocked)
		events_add(l->daemon->events, EVENT_MODEL, EVENT_NOBODY, NULL,
			"model %s: a better transform could be learned, but %u versions are in use",
			p->model->geometry.name, l->daemon->config->learn.versions);
}

/* ---- samples ---- */

static struct sample *sample_free(struct sample *s)
{
	if (s)
		chunk_copy_free(s->copy);
	free(s);
	return NULL;
}

static struct sample *sample_new(struct pupil *p)
{
	struct sample *s = calloc(1, sizeof *s);

	if (!s)
		return NULL;
	s->pupil = p;
	s->copy = chunk_copy_new(&p->model->geometry, p->learn->daemon->config->chunk_tokens);
	return s->copy ? s : sample_free(s);
}

struct sample *learn_sample(struct learn *l, const struct model *m, uint32_t n_tokens)
{
	struct pupil *p = l->background && !l->stopped ? pupil_of(l, m) : NULL;
	struct sample *s;

	if (!p || !learner_offer(&p->learner, n_tokens) || !p->student)
		return NULL;
	s = p->free;
	if (s) {
		p->free = s->next;
	} else if (p->n_buffers < p->n_buffers_max && (s = sample_new(p))) {
		p->n_buffers++;
	}
	p->n_missed += !s;
	if (s)
		s->filled = false;
	return s;
}

static void put_back(struct sample *s)
{
	s->next = s->pupil->free;
	s->pupil->free = s;
}

static void sample_run(struct task *task, struct background *b)
{
	struct sample *s = (struct sample *)task;

	(void)b;
	s->status = student_take(
		s->pupil->student, s->copy, s->classes, s->transform, s->rung, &s->inside, &s->total);
}

static void sample_done(struct task *task, bool ran)
{
	struct sample *s = (struct sample *)task;
	struct pupil *p = s->pupil;

	if (s->transform)
		registry_release(p->learn->daemon->registry, s->transform);
	if (ran && !s->status)
		learner_take(&p->learner, s->n_coded, s->inside, s->total);
	put_back(s);
	advance(p);
}

void learn_take(struct learn *l, struct sample *s)
{
	struct pupil *p = s->pupil;

	if (!s->filled || !s->n_coded || l->stopped) {
		put_back(s);
		return;
	}
	p->n_samples++;
	p->copy_ns += s->copy_ns;
	p->copied_bytes += geometry_token_bytes(&p->model->geometry) * s->copy->n_tokens;
	s->task.run = sample_run;
	s->task.done = sample_done;
	s->transform = p->model->transform;
	if (s->transform) {
		registry_hold(l->daemon->registry, s->transform);
		s->rung = transform_rung(s->transform, policies_now(l->daemon->policies, 0)->policy[0].ratio);
	}
	background_submit(l->background, &s->task);
}

/* ---- the story ---- */

int learn_fd(const struct learn *l)
{
	return l->epoll;
}

void learn_run(struct learn *l)
{
	uint64_t n_ticks;

	if (!l->background)
		return;
	background_reap(l->background);
	if (read(l->timer, &n_ticks, sizeof n_ticks) != sizeof n_ticks || l->stopped)
		return;
	upkeep_tick(l->upkeep);
	/* Room for a version may have come. */
	for (struct pupil *p = l->pupils; p; p = p->next)
		if (p->learner.blocked)
			advance(p);
}

void learn_stop(struct learn *l)
{
	if (!l || l->stopped)
		return;
	l->stopped = true;
	upkeep_stop(l->upkeep);
	background_stop(l->background);
	if (l->background)
		background_reap(l->background);
}

bool learn_is_idle(const struct learn *l)
{
	return (!l->background || !background_n_busy(l->background)) && upkeep_is_idle(l->upkeep);
}

struct learn *learn_free(struct learn *l)
{
	if (!l)
		return NULL;
	l->background = background_free(l->background);
	l->upkeep = upkeep_free(l->upkeep);
	while (l->pupils) {
		struct pupil *p = l->pupils;

		l->pupils = p->next;
		while (p->free) {
			struct sample *s = p->free;

			p->free = s->next;
			sample_free(s);
		}
		student_free(p->student);
		free(p);
	}
	if (l->epoll >= 0)
		close(l->epoll);
	if (l->timer >= 0)
		close(l->timer);
	free(l);
	return NULL;
}

/* ---- what operators see ---- */

static json_t *number(uint64_t n)
{
	return json_integer((json_int_t)n);
}

static json_t *versions_array(const struct learn *l, const struct model *m)
{
	json_t *array = json_array();

	for (size_t i = 0; i < upkeep_n_known(l->upkeep); i++) {
		const struct known *k = upkeep_known(l->upkeep, i);

		if (!memcmp(k->fingerprint, m->fingerprint, 16))
			json_array_append_new(array,
				json_pack("{s:I, s:o, s:o, s:o}", "number", (json_int_t)k->version.number,
					"tokens", number(k->version.n_tokens), "bytes", number(k->len_bytes),
					"frames", number(k->n_frames)));
	}
	return array;
}

static const char *state_name(const struct pupil *p)
{
	static const char *const names[] = {"collecting", "learning", "watching"};

	return !p->student ? "declined" : p->learner.blocked ? "blocked" : names[p->learner.state];
}

static json_t *share(double x)
{
	return x < 0 ? json_null() : json_real(x);
}

const char *learn_state(const struct learn *l, const struct model *m, double *captured)
{
	const struct pupil *p = l->background ? l->pupils : NULL;

	while (p && p->model != m)
		p = p->next;
	*captured = p ? p->learner.captured : -1;
	return p ? state_name(p) : "";
}

json_t *learn_status(const struct learn *l, const struct model *m)
{
	const struct pupil *p = l->pupils;
	struct upkeep_counts counts;

	while (p && p->model != m)
		p = p->next;
	if (!l->background || !p)
		return json_null();
	upkeep_get_counts(l->upkeep, m, &counts);
	return json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}",
		"state", state_name(p), "tokens_seen", number(p->learner.n_seen), "tokens_taken",
		number(p->learner.n_taken), "learned", number(p->learner.n_learned), "drifted",
		number(p->learner.n_drifted), "captured_energy", share(p->learner.captured),
		"captured_energy_first", share(p->learner.baseline), "versions", versions_array(l, m),
		"plain_chunks", number(counts.n_plain), "plain_in_vain", number(counts.n_in_vain), "samples",
		number(p->n_samples), "samples_missed", number(p->n_missed), "sample_ns", number(p->copy_ns),
		"memory_bytes", number(p->student ? student_bytes(p->student) : 0), "cpu_ms",
		number(background_cpu_ns(l->background) / 1000000));
}
