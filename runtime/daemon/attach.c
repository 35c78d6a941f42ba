#include "runtime/daemon/attach.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/log.h"
#include "runtime/daemon/control.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/device/register.h"
#include "shm/doorbell.h"
#include "shm/message.h"

/* One client's messages may not keep the others waiting; the rest is taken in the next round. */
enum { MESSAGES_PER_ROUND = 16 };

/* Where one received message lies while it is handled. */
struct received {
	struct session *session;
	const uint8_t *data;
	size_t len;
	struct message_fds *fds;
};

/* An answer never waits: a client that does not read its answers is cut off. */
static void send_answer(struct session *s, const void *message, size_t len, const int *fds, uint32_t n_fds)
{
	if (!s->closed && message_send(s->socket, message, len, fds, n_fds, 0))
		session_close(s, "it does not take its answers");
}

void attach_refuse(struct session *s, int status, const char *text)
{
	struct wire_error e;

	message_error(&e, status, text);
	send_answer(s, &e, sizeof e, NULL, 0);
}

void attach_registered(struct session *s, uint32_t id)
{
	struct wire_registered answer = {.id = id};

	message_header(&answer, WIRE_REGISTERED, sizeof answer);
	send_answer(s, &answer, sizeof answer, NULL, 0);
}

void attach_unregistered(struct session *s)
{
	attach_registered(s, s->leaving_id);
	if (!s->closed)
		daemon_pause_socket(s->daemon, s, false);
}

static bool may_attach(const struct config_namespace *n, uid_t uid)
{
	if (n->any_uid)
		return true;
	for (uint32_t i = 0; i < n->n_uids; i++)
		if (n->uids[i] == uid)
			return true;
	return !n->n_uids && (uid == 0 || uid == geteuid());
}

void attach_name_space_id(const char *name, uint8_t out[16])
{
	XXH128_canonical_t id;

	XXH128_canonicalFromHash(&id, XXH3_128bits(name, strlen(name)));
	memcpy(out, id.digest, 16);
}

static int send_welcome(struct session *s, const struct wire_hello *hello)
{
	struct daemon *d = s->daemon;
	struct wire_welcome welcome;
	int fds[WIRE_WELCOME_FDS] = {-1, -1, -1}, sq_sleeper = -1, cq_ringer = -1;
	int r = segment_create(hello->n_entries, hello->arena_bytes, &s->segment, &fds[0]);

	if (!r)
		r = doorbell_new(&fds[1], &sq_sleeper);
	if (!r)
		r = doorbell_new(&cq_ringer, &fds[2]);
	if (!r)
		r = daemon_watch(d, sq_sleeper, SOURCE_DOORBELL, s);
	if (!r) {
		segment_sq_consumer(&s->segment, &s->sq);
		segment_cq_producer(&s->segment, &s->cq);
		s->sq_doorbell = sq_sleeper;
		s->cq_doorbell = cq_ringer;
		s->attached = true;
		segment_welcome(&s->segment, d->config->chunk_tokens, s->id, &welcome);
		send_answer(s, &welcome, sizeof welcome, fds, WIRE_WELCOME_FDS);
	} else {
		if (sq_sleeper >= 0)
			close(sq_sleeper);
		if (cq_ringer >= 0)
			close(cq_ringer);
		segment_fini(&s->segment);
	}
	for (int i = 0; i < WIRE_WELCOME_FDS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return r;
}

static void on_hello(const struct received *m)
{
	struct session *s = m->session;
	const struct config_namespace *n;
	struct wire_hello hello;
	int r;

	if (s->attached || m->len != sizeof hello) {
		attach_refuse(s, -EPROTO, "a hello of the wrong size, or a second one");
		session_close(s, "bad hello");
		return;
	}
	memcpy(&hello, m->data, sizeof hello);
	message_terminate(hello.name_space, sizeof hello.name_space);
	n = config_namespace(s->daemon->config, hello.name_space);
	if (!n || !may_attach(n, s->uid)) {
		char text[128];

		snprintf(text, sizeof text, "uid %u may not use the namespace, or there is no such namespace",
			(unsigned)s->uid);
		attach_refuse(s, -EACCES, text);
		session_close(s, "not allowed");
		return;
	}
	if (s->daemon->draining) {
		attach_refuse(
			s, -ESHUTDOWN, "the daemon takes no new engines: an operator is about to stop it");
		session_close(s, "draining");
		return;
	}
	if (segment_check(hello.n_entries, hello.arena_bytes)) {
		attach_refuse(s, -EINVAL, "the ring or arena size is out of range");
		session_close(s, "bad hello");
		return;
	}
	memcpy(s->name_space_name, hello.name_space, sizeof s->name_space_name);
	attach_name_space_id(hello.name_space, s->name_space);
	s->tenant = (uint32_t)policies_find(s->daemon->policies, n->name);
	r = send_welcome(s, &hello);
	if (r) {
		attach_refuse(s, r, "the daemon could not make the shared segment");
		session_close(s, "no segment");
	} else {
		log_debug("session %u: uid %u, namespace %s", s->id, (unsigned)s->uid, hello.name_space);
	}
}

/* The message's geometry, checked; 0 or -EINVAL with why. */
static int read_geometry(const struct received *m, struct geometry *g, char *why, size_t why_len)
{
	struct wire_register_model w;
	size_t at = sizeof w;

	snprintf(why, why_len, "the message has the wrong size");
	if (m->len < sizeof w)
		return -EINVAL;
	memcpy(&w, m->data, sizeof w);
	*g = (struct geometry){
		.n_layers = w.n_layers, .n_planes = w.n_planes, .tp_rank = w.tp_rank, .tp_size = w.tp_size};
	message_terminate(w.name, sizeof w.name);
	memcpy(g->name, w.name, sizeof g->name);
	if (w.n_planes < 1 || w.n_planes > GEOMETRY_PLANES_MAX) {
		snprintf(why, why_len, "%u planes: a model has 1 or 2", w.n_planes);
		return -EINVAL;
	}
	for (uint32_t i = 0; i < w.n_planes; i++) {
		const struct wire_plane *p = &w.planes[i];
		const size_t bytes = (size_t)(p->rope_dim / 2) * sizeof(float);

		g->planes[i] = (struct plane){.n_heads = p->n_heads,
			.dim = p->dim,
			.dtype = p->dtype,
			.rope_kind = p->rope_kind,
			.rope_offset = p->rope_offset,
			.rope_dim = p->rope_dim,
			.rope_scale = p->rope_scale};
		if (p->rope_kind == ROPE_NONE)
			continue;
		if (p->rope_dim > GEOMETRY_ROPE_MAX || m->len - at < bytes)
			return -EINVAL;
		memcpy(g->planes[i].inv_freq, m->data + at, bytes);
		at += bytes;
	}
	if (at != m->len)
		return -EINVAL;
	return geometry_check(g, why, why_len);
}

static void on_register_model(const struct received *m)
{
	struct session *s = m->session;
	struct geometry g;
	struct model *model;
	char why[200];
	int r = read_geometry(m, &g, why, sizeof why);

	if (!r) {
		snprintf(why, sizeof why, "the daemon has no room for another model");
		r = registry_model(s->daemon->registry, &g, &model);
	}
	for (uint32_t i = 0; !r && i < s->n_models; i++)
		if (s->models[i] == model) {
			attach_registered(s, i + 1);
			return;
		}
	if (!r && s->n_models == SESSION_MODELS_MAX)
		r = -ENOSPC;
	if (r) {
		attach_refuse(s, r, why);
		return;
	}
	s->models[s->n_models++] = model;
	attach_registered(s, s->n_models);
}

static void on_register_memory(const struct received *m)
{
	struct session *s = m->session;
	struct wire_register_memory w;
	const struct model *model;
	struct wire_layout *layouts;
	size_t n, slot = 0;
	char why[200] = "";
	bool on_device;
	int fd, r;

	if (m->len < sizeof w) {
		attach_refuse(s, -EINVAL, "the message has the wrong size");
		return;
	}
	memcpy(&w, m->data, sizeof w);
	model = session_model(s, w.model_id);
	if (!model) {
		attach_refuse(s, -ENOENT, "no such model");
		return;
	}
	n = (size_t)model->geometry.n_layers * model->geometry.n_planes;
	on_device = w.kind == WIRE_MEMORY_CUDA_IPC || w.kind == WIRE_MEMORY_CUDA_VMM;
	if (!on_device &&
		(w.kind != WIRE_MEMORY_MEMFD || m->len != sizeof w + n * sizeof *layouts || m->fds->n != 1)) {
		attach_refuse(s, -EINVAL,
			"a memfd and one layout for each layer and plane must come with the message");
		return;
	}
	while (slot < SESSION_MEMORIES_MAX && s->memories[slot])
		slot++;
	if (slot == SESSION_MEMORIES_MAX) {
		attach_refuse(s, -ENOSPC, "this connection has as many memories as it may");
		return;
	}
	if (w.size_bytes > s->daemon->config->max_memory_bytes ||
		s->memory_bytes > s->daemon->config->max_memory_bytes - w.size_bytes) {
		attach_refuse(
			s, -ENOSPC, "this connection would register more memory than it may (max_memory)");
		return;
	}
	if (on_device) {
		device_register_memory(
			s, model, &w, m->data + sizeof w, m->len - sizeof w, m->fds, (uint32_t)slot);
		return;
	}
	layouts = malloc(n * sizeof *layouts);
	if (!layouts) {
		attach_refuse(s, -ENOMEM, "out of memory");
		return;
	}
	memcpy(layouts, m->data + sizeof w, n * sizeof *layouts);
	fd = message_fds_take(m->fds, 0);
	r = mapping_new(model, &w, layouts, fd, &s->memories[slot], why, sizeof why);
	close(fd);
	free(layouts);
	if (!r)
		s->memory_bytes += w.size_bytes;
	if (r)
		attach_refuse(s, r, why[0] ? why : strerror(-r));
	else
		attach_registered(s, (uint32_t)slot + 1);
}

static void on_unregister_memory(const struct received *m)
{
	struct session *s = m->session;
	struct wire_unregister_memory w;
	struct mapping *mapping = NULL;

	if (m->len == sizeof w) {
		memcpy(&w, m->data, sizeof w);
		mapping = session_memory(s, w.memory_id);
	}
	if (!mapping) {
		attach_refuse(s, -ENOENT, "no such memory");
		return;
	}
	s->memories[w.memory_id - 1] = NULL;
	s->memory_bytes -= mapping->size_bytes;
	if (mapping->n_refs > 1) {
		s->leaving = mapping;
		s->leaving_id = w.memory_id;
		daemon_pause_socket(s->daemon, s, true);
		return;
	}
	if (mapping->device) {
		device_unregister_memory(s, mapping, w.memory_id);
		return;
	}
	mapping_unref(mapping);
	attach_registered(s, w.memory_id);
}

static bool may_control(const struct session *s)
{
	const struct config *c = s->daemon->config;

	for (uint32_t i = 0; i < c->n_admins; i++)
		if (c->admins[i] == s->uid)
			return true;
	return s->uid == 0 || s->uid == geteuid();
}

/* Sends a control command's answer, which is taken; NULL: there was no memory for one. */
static void send_text(struct session *s, char *text)
{
	const size_t head = sizeof(struct wire_header), len = text ? strlen(text) : 0;
	char *message = text && len + head <= WIRE_MESSAGE_MAX ? malloc(len + head) : NULL;

	if (message) {
		memcpy(message + head, text, len);
		message_header(message, WIRE_CONTROL, len + head);
		send_answer(s, message, len + head, NULL, 0);
	} else {
		attach_refuse(s, text ? -EMSGSIZE : -ENOMEM, "the answer could not be made");
	}
	free(message);
	free(text);
}

void attach_answer(struct session *s, json_t *answer)
{
	send_text(s, answer ? json_dumps(answer, JSON_COMPACT) : NULL);
	json_decref(answer);
}

static void on_control(const struct received *m)
{
	struct session *s = m->session;
	const size_t head = sizeof(struct wire_header);
	char *text;

	if (!may_control(s)) {
		attach_refuse(s, -EACCES,
			"control is for root, the daemon's own user and the admins of its configuration");
		return;
	}
	s->daemon->asking = s;
	text = control_answer(s->daemon, s->uid, (const char *)m->data + head, m->len - head);
	if (s->daemon->asking || text)
		send_text(s, text);
	s->daemon->asking = NULL;
}

static void on_statistics(const struct received *m)
{
	struct session *s = m->session;
	struct wire_header answer;
	const int page = board_fd(s->daemon->board);

	if (!may_control(s)) {
		attach_refuse(s, -EACCES, "statistics are for root and the daemon's own user");
		return;
	}
	message_header(&answer, WIRE_STATISTICS, sizeof answer);
	send_answer(s, &answer, sizeof answer, &page, 1);
	s->watching = true;
}

static void handle(const struct received *m)
{
	struct session *s = m->session;
	const enum wire_type type = message_type(m->data);

	if (type == WIRE_HELLO)
		on_hello(m);
	else if (type == WIRE_CONTROL)
		on_control(m);
	else if (type == WIRE_STATISTICS)
		on_statistics(m);
	else if (!s->attached)
		attach_refuse(s, -EPROTO, "say hello first");
	else if (type == WIRE_REGISTER_MODEL)
		on_register_model(m);
	else if (type == WIRE_REGISTER_MEMORY)
		on_register_memory(m);
	else if (type == WIRE_UNREGISTER_MEMORY)
		on_unregister_memory(m);
	else if (type == WIRE_REGISTER_EVENTS)
		device_register_events(s, m->data, m->len);
	else if (type == WIRE_UNREGISTER_EVENTS)
		device_unregister_events(s, m->data, m->len);
	else
		attach_refuse(s, -EPROTO, "a message of a type that the daemon does not take");
}

void session_receive(struct session *s)
{
	uint8_t *const buffer = s->daemon->message;
	struct message_fds fds = {0};
	const char *why = NULL;
	size_t len;
	int r;

	/* Behind one that is waiting, messages wait too: answers come in order. */
	for (int n = 0; n < MESSAGES_PER_ROUND && !s->closed && !session_is_waiting(s); n++) {
		r = message_receive(s->socket, buffer, WIRE_MESSAGE_MAX, &len, &fds, 0);
		if (r == -EAGAIN || r == -EINTR)
			return;
		if (r) {
			session_close(s, r == -ENOTCONN ? "the client has gone" : "a garbled message");
			return;
		}
		if (message_check(buffer, len, &why)) {
			attach_refuse(s, -EPROTO, why);
			session_close(s, why);
		} else {
			const struct received m = {.session = s, .data = buffer, .len = len, .fds = &fds};

			handle(&m);
		}
		message_fds_close(&fds);
	}
}
