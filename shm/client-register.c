#include "shm/client-device.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* What fits into one message. */
enum { LAYOUTS_MAX = (WIRE_MESSAGE_MAX - sizeof(struct wire_register_memory)) / sizeof(struct wire_layout) };

/* Grows on demand: an engine registers a handful of each, once. */
void *client_grow(void *list, uint32_t n, size_t item_bytes)
{
	return (n & (n - 1)) ? list : realloc(list, (n ? 2 * (size_t)n : 1) * item_bytes);
}

/* One request and its answer on the socket. */
int client_ask(struct cistern *c, const void *message, size_t len, const int *fds, uint32_t n_fds,
	int timeout_ms, uint32_t *id)
{
	union {
		struct wire_header header;
		struct wire_registered registered;
		struct wire_error error;
	} answer;
	const char *why;
	int r;

	if (c->gone)
		return -ENOTCONN;
	r = message_send(c->socket, message, len, fds, n_fds, CLIENT_REGISTER_MS);
	if (r < 0 && r != -ENOTCONN)
		return client_fail(c, r, "cannot ask the daemon: %s", strerror(-r));
	if (r == 0)
		r = message_receive(c->socket, &answer, sizeof(answer), &len, NULL, timeout_ms);
	if (r == -ENOTCONN)
		return client_lost(c, false, "the daemon has hung up");
	if (r < 0)
		/* A late answer would be taken for the next one's. */
		return client_lost(c, true, "no answer from the daemon: %s", strerror(-r));
	if (message_check(&answer, len, &why) < 0)
		return client_lost(c, true, "the daemon's answer is %s", why);
	if (answer.header.type == WIRE_ERROR && answer.error.status < 0) {
		message_terminate(answer.error.text, sizeof(answer.error.text));
		return client_fail(c, answer.error.status, "%s", answer.error.text);
	}
	if (answer.header.type != WIRE_REGISTERED || len != sizeof(answer.registered))
		return client_lost(c, true, "the daemon's answer is of a type that was not asked for");
	*id = answer.registered.id;
	return 0;
}

/* ---- models ---- */

static int fill_plane(
	struct cistern *c, uint32_t i, const struct cistern_plane *plane, struct wire_plane *out)
{
	if (plane->rope_kind != CISTERN_ROPE_NONE && plane->rope_dim && !plane->inv_freq)
		return client_fail(c, -EINVAL, "plane %u: inv_freq is missing", i);
	*out = (struct wire_plane){
		.n_heads = plane->n_heads,
		.dim = plane->dim,
		.dtype = plane->dtype,
		.rope_kind = plane->rope_kind,
		.rope_offset = plane->rope_offset,
		.rope_dim = plane->rope_dim,
		.rope_scale = plane->rope_scale == 0 ? 1 : plane->rope_scale,
	};
	return 0;
}

/* The message, malloc'd, in *out. */
static int fill_model(struct cistern *c, const struct cistern_model *model, struct wire_register_model **out,
	size_t *out_len)
{
	struct wire_register_model *m;
	size_t len = sizeof(*m);
	uint8_t *at;
	int r = 0;

	if (!model->name || !*model->name || strlen(model->name) >= sizeof(m->name))
		return client_fail(
			c, -EINVAL, "the model's name must have 1 to %zu bytes", sizeof(m->name) - 1);
	if (!model->planes || model->n_planes == 0 || model->n_planes > 2)
		return client_fail(c, -EINVAL, "a model has 1 or 2 planes, not %u", model->n_planes);
	if (model->n_layers == 0 || model->n_layers > LAYOUTS_MAX / model->n_planes)
		return client_fail(c, -EINVAL, "n_layers is out of range: %u", model->n_layers);
	for (uint32_t i = 0; i < model->n_planes; i++)
		if (model->planes[i].rope_kind != CISTERN_ROPE_NONE)
			len += (size_t)(model->planes[i].rope_dim / 2) * sizeof(float);
	if (len > WIRE_MESSAGE_MAX)
		return client_fail(c, -EINVAL, "rope_dim is out of range");
	m = calloc(1, len);
	if (!m)
		return client_fail(c, -ENOMEM, "out of memory");
	message_header(m, WIRE_REGISTER_MODEL, len);
	memcpy(m->name, model->name, strlen(model->name));
	m->n_layers = model->n_layers;
	m->n_planes = model->n_planes;
	m->tp_rank = model->tp_rank;
	m->tp_size = model->tp_size ? model->tp_size : 1;
	at = (uint8_t *)(m + 1);
	for (uint32_t i = 0; i < model->n_planes && r == 0; i++) {
		const struct cistern_plane *plane = &model->planes[i];

		r = fill_plane(c, i, plane, &m->planes[i]);
		if (r == 0 && plane->rope_kind != CISTERN_ROPE_NONE && plane->rope_dim) {
			size_t n_bytes = (size_t)(plane->rope_dim / 2) * sizeof(float);

			memcpy(at, plane->inv_freq, n_bytes);
			at += n_bytes;
		}
	}
	if (r < 0) {
		free(m);
		return r;
	}
	*out = m;
	*out_len = len;
	return 0;
}

const struct client_model *client_model(const struct cistern *c, uint32_t id)
{
	for (uint32_t i = 0; i < c->n_models; i++)
		if (c->models[i].id == id)
			return &c->models[i];
	return NULL;
}

int cistern_register_model(struct cistern *c, const struct cistern_model *model, uint32_t *model_id)
{
	struct wire_register_model *m = NULL;
	struct client_model *models;
	size_t len = 0;
	uint32_t id, public_id;
	int r = fill_model(c, model, &m, &len);

	if (r < 0)
		return r;
	models = client_grow(c->models, c->n_models, sizeof(models[0]));
	if (!models) {
		r = client_fail(c, -ENOMEM, "out of memory");
		goto out;
	}
	c->models = models;
	r = client_ask(c, m, len, NULL, 0, CLIENT_REGISTER_MS, &id);
	if (r < 0)
		goto out;
	for (uint32_t i = 0; i < c->n_models; i++)
		if (c->models[i].wire_id == id) {
			*model_id = c->models[i].id;
			goto out;
		}
	public_id = id;
	while (client_model(c, public_id))
		public_id++;
	c->models[c->n_models] = (struct client_model){.id = public_id,
		.wire_id = id,
		.n_layouts = model->n_layers * model->n_planes,
		.key_head_bytes = model->planes[0].dim * (model->planes[0].dtype == CISTERN_F32 ? 4 : 2),
		.message = m,
		.message_len = len};
	*model_id = c->models[c->n_models++].id;
	m = NULL; /* kept, to register it anew */
out:
	free(m);
	return r;
}

/* ---- memory ---- */

const struct client_memory *client_memory(const struct cistern *c, uint32_t id)
{
	for (uint32_t i = 0; i < c->n_memories; i++)
		if (c->memories[i].id == id)
			return &c->memories[i];
	return NULL;
}

/* The message, malloc'd, in *out; fds are the caller's still. */
static int fill_memory(struct cistern *c, const struct cistern_memory *memory,
	const struct client_model *model, struct wire_register_memory **out, size_t *out_len,
	int fds[WIRE_PART_FDS_MAX], uint32_t *n_fds)
{
	const size_t layouts_len = (size_t)model->n_layouts * sizeof(struct wire_layout);
	const int64_t device_len = client_device_bytes(c, memory);
	struct wire_register_memory *m;
	size_t len;

	_Static_assert(sizeof(struct wire_layout) == sizeof(struct cistern_layout), "travel as they are");
	if (device_len < 0)
		return (int)device_len;
	if ((!device_len && memory->fd < 0) || !memory->layouts || memory->block_tokens == 0 ||
		memory->n_blocks == 0)
		return client_fail(c, -EINVAL, "fd, layouts, block_tokens or n_blocks is missing");
	len = sizeof(*m) + (size_t)device_len + layouts_len;
	if (len > WIRE_MESSAGE_MAX)
		return client_fail(c, -EINVAL, "more layouts and parts than a message holds");
	m = calloc(1, len);
	if (!m)
		return client_fail(c, -ENOMEM, "out of memory");
	message_header(m, WIRE_REGISTER_MEMORY, len);
	m->model_id = model->wire_id;
	m->block_tokens = memory->block_tokens;
	m->size_bytes = memory->size_bytes;
	m->n_blocks = memory->n_blocks;
	m->kind = device_len ? memory->kind : WIRE_MEMORY_MEMFD;
	if (device_len) {
		client_device_fill(memory, (uint8_t *)(m + 1), fds, n_fds);
	} else {
		fds[0] = memory->fd;
		*n_fds = 1;
	}
	memcpy((uint8_t *)(m + 1) + device_len, memory->layouts, layouts_len);
	*out = m;
	*out_len = len;
	return 0;
}

/* Descriptors of our own in the place of the caller's: all or none. */
static int own_fds(struct cistern *c, int *fds, uint32_t n_fds)
{
	int r;

	for (uint32_t i = 0; i < n_fds; i++) {
		fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
		if (fds[i] >= 0)
			continue;
		r = client_fail(c, -errno, "the descriptor: %s", strerror(errno));
		while (i > 0)
			close(fds[--i]);
		return r;
	}
	return 0;
}

int cistern_register_memory(struct cistern *c, const struct cistern_memory *memory, uint32_t *memory_id)
{
	const struct client_model *model = client_model(c, memory->model_id);
	struct client_memory *memories;
	struct client_memory mine = {.model_id = memory->model_id,
		.block_tokens = memory->block_tokens,
		.n_blocks = memory->n_blocks,
		.on_device = memory->kind != CISTERN_MEMORY_MEMFD};
	struct wire_register_memory *m = NULL;
	int r;

	if (c->gone)
		return -ENOTCONN;
	if (!model)
		return client_fail(c, -ENOENT, "model %u is not registered", memory->model_id);
	memories = client_grow(c->memories, c->n_memories, sizeof(memories[0]));
	if (!memories)
		return client_fail(c, -ENOMEM, "out of memory");
	c->memories = memories;
	r = fill_memory(c, memory, model, &m, &mine.message_len, mine.fds, &mine.n_fds);
	if (r < 0)
		return r;
	mine.message = m;
	r = own_fds(c, mine.fds, mine.n_fds);
	if (r < 0) {
		free(m);
		return r;
	}
	r = client_ask(c, m, mine.message_len, mine.fds, mine.n_fds, CLIENT_REGISTER_MS, &mine.wire_id);
	if (r < 0) {
		client_forget_memory(&mine);
		return r;
	}
	mine.key_head_bytes = model->key_head_bytes;
	mine.id = mine.wire_id;
	while (client_memory(c, mine.id))
		mine.id++;
	c->memories[c->n_memories++] = mine;
	*memory_id = mine.id;
	return 0;
}

void client_forget_model(struct client_model *m)
{
	free(m->message);
}

void client_forget_memory(struct client_memory *m)
{
	free(m->message);
	for (uint32_t i = 0; i < m->n_fds; i++)
		close(m->fds[i]);
}

int cistern_unregister_memory(struct cistern *c, uint32_t memory_id)
{
	struct wire_unregister_memory w = {0};
	struct client_memory *m = NULL;
	uint32_t id;
	int r;

	/* What is queued refers to it still and would otherwise wait for ever. */
	r = cistern_submit(c);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < c->n_memories; i++)
		if (c->memories[i].id == memory_id)
			m = &c->memories[i];
	/* The daemon has the last word on what it never knew. */
	w.memory_id = m ? m->wire_id : UINT32_MAX;
	message_header(&w, WIRE_UNREGISTER_MEMORY, sizeof(w));
	r = client_ask(c, &w, sizeof(w), NULL, 0, -1, &id);
	if (r < 0)
		return r;
	if (m) {
		client_forget_memory(m);
		*m = c->memories[--c->n_memories];
	}
	return 0;
}

int cistern_memory_create(const char *name, uint64_t size_bytes, int *fd, void **addr)
{
	void *mapped;
	int r, memfd;

	if (size_bytes == 0 || size_bytes > SIZE_MAX / 2)
		return -EINVAL;
	memfd = memfd_create(name ? name : "cistern-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (memfd < 0)
		return -errno;
	if (ftruncate(memfd, (off_t)size_bytes) < 0 || fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK) < 0)
		goto fail;
	mapped = mmap(NULL, (size_t)size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (mapped == MAP_FAILED)
		goto fail;
	*fd = memfd;
	*addr = mapped;
	return 0;
fail:
	r = -errno;
	close(memfd);
	return r;
}
