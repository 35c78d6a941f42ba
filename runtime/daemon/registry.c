#include "runtime/daemon/registry.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"

struct loaded {
	struct transform *transform;
	size_t len_bytes;
	uint32_t n_users;
};

struct registry {
	struct model *models[REGISTRY_MODELS_MAX];
	size_t n_models;
	struct loaded *transforms;
	size_t n_transforms;
};

struct registry *registry_new(void)
{
	return calloc(1, sizeof(struct registry));
}

struct registry *registry_free(struct registry *r)
{
	if (!r)
		return NULL;
	for (size_t i = 0; i < r->n_models; i++)
		free(r->models[i]);
	for (size_t i = 0; i < r->n_transforms; i++)
		transform_unref(r->transforms[i].transform);
	free(r->transforms);
	free(r);
	return NULL;
}

static const struct transform *latest_for(const struct registry *r, const uint8_t fingerprint[16])
{
	for (size_t i = r->n_transforms; i-- > 0;)
		if (!memcmp(r->transforms[i].transform->fingerprint, fingerprint, 16))
			return r->transforms[i].transform;
	return NULL;
}

static struct loaded *find(const struct registry *r, const uint8_t id[16])
{
	for (size_t i = 0; i < r->n_transforms; i++)
		if (!memcmp(r->transforms[i].transform->id, id, 16))
			return &r->transforms[i];
	return NULL;
}

static void choose_latest(struct registry *r)
{
	for (size_t i = 0; i < r->n_models; i++)
		r->models[i]->transform = latest_for(r, r->models[i]->fingerprint);
}

/* As if it had been loaded now. */
static void make_latest(struct registry *r, const uint8_t id[16])
{
	struct loaded *l = find(r, id), *last = &r->transforms[r->n_transforms - 1];
	const struct loaded moved = *l;

	memmove(l, l + 1, (size_t)(last - l) * sizeof *l);
	*last = moved;
	choose_latest(r);
}

int registry_add_transform(struct registry *r, struct transform *t, size_t len_bytes)
{
	struct loaded *more;

	if (find(r, t->id))
		return -EEXIST;
	more = realloc(r->transforms, (r->n_transforms + 1) * sizeof *more);
	if (!more)
		return -ENOMEM;
	r->transforms = more;
	r->transforms[r->n_transforms++] = (struct loaded){.transform = t, .len_bytes = len_bytes};
	choose_latest(r);
	return 0;
}

int registry_remove_transform(struct registry *r, const uint8_t id[16])
{
	struct loaded *l = find(r, id);

	if (!l || l->n_users)
		return l ? -EBUSY : -ENOENT;
	transform_unref(l->transform);
	memmove(l, l + 1, (size_t)(r->transforms + --r->n_transforms - l) * sizeof *l);
	choose_latest(r);
	return 0;
}

void registry_hold(struct registry *r, const struct transform *t)
{
	find(r, t->id)->n_users++;
}

void registry_release(struct registry *r, const struct transform *t)
{
	find(r, t->id)->n_users--;
}

int registry_load_transform(struct registry *r, const char *path)
{
	struct transform *t;
	char why[256] = "";
	void *data;
	size_t len;
	int status = file_read(path, &data, &len);

	if (status) {
		log_error("%s: %s", path, strerror(-status));
		return status;
	}
	status = transform_parse(data, len, &t, why, sizeof why);
	free(data);
	if (status) {
		log_error("%s: not a usable transform: %s", path, why);
		return status;
	}
	if (find(r, t->id))
		make_latest(r, t->id);
	status = registry_add_transform(r, t, len);
	if (status) {
		transform_unref(t);
		return status == -EEXIST ? 0 : status;
	}
	log_info("transform %s: %u parts, %u rungs, %zu bytes", path, t->n_parts, t->n_rungs, len);
	return 0;
}

const struct transform *registry_transform(const struct registry *r, const uint8_t id[16])
{
	const struct loaded *l = find(r, id);

	return l ? l->transform : NULL;
}

int registry_model(struct registry *r, const struct geometry *g, struct model **out)
{
	uint8_t fingerprint[16];
	struct model *m;
	char why[256];

	geometry_fingerprint(g, fingerprint);
	for (size_t i = 0; i < r->n_models; i++)
		if (!memcmp(r->models[i]->fingerprint, fingerprint, 16)) {
			*out = r->models[i];
			return 0;
		}
	if (r->n_models == REGISTRY_MODELS_MAX)
		return -ENOSPC;
	m = calloc(1, sizeof *m);
	if (!m)
		return -ENOMEM;
	m->geometry = *g;
	memcpy(m->fingerprint, fingerprint, 16);
	m->transform = latest_for(r, fingerprint);
	if (m->transform && transform_fits(m->transform, g, why, sizeof why)) {
		log_warning("model %s: its transform does not fit: %s", g->name, why);
		m->transform = NULL;
	}
	r->models[r->n_models++] = m;
	log_info("model %s: %u layers, %zu bytes a token, %s", g->name, g->n_layers, geometry_token_bytes(g),
		m->transform ? "with a transform" : "no transform: the plain 8-bit codec");
	*out = m;
	return 0;
}

size_t registry_n_models(const struct registry *r)
{
	return r->n_models;
}

const struct model *registry_model_at(const struct registry *r, size_t i)
{
	return r->models[i];
}

size_t registry_n_transforms(const struct registry *r)
{
	return r->n_transforms;
}

size_t registry_transform_bytes(const struct registry *r)
{
	size_t sum = 0;

	for (size_t i = 0; i < r->n_transforms; i++)
		sum += r->transforms[i].len_bytes;
	return sum;
}
