#include "tools/engine/model.h"

#include <errno.h>
#include <dirent.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <xxhash.h>

#include "base/file.h"
#include "base/safetensors.h"
#include "tools/engine/vector.h"

enum { LAYERS_MAX = 64, WIDTH_MAX = 8192, CONTEXT_MAX = 1 << 20 };

/* Where errors go. */
struct reason {
	char *text;
	size_t len;
};

__attribute__((format(printf, 3, 4))) static int fail(
	const struct reason *why, int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	if (why->text && why->len)
		vsnprintf(why->text, why->len, format, args);
	va_end(args);
	return code;
}

static int config_integer(
	const json_t *config, const char *key, uint32_t max, uint32_t *out, const struct reason *why)
{
	const json_t *value = json_object_get(config, key);
	json_int_t n = json_integer_value(value);

	if (!json_is_integer(value) || n < 1 || n > max)
		return fail(why, -EINVAL, "config.json: %s is not a number from 1 to %u", key, max);
	*out = (uint32_t)n;
	return 0;
}

/* What the file may ask for and this engine does not do. */
static int config_supported(const json_t *config, const struct reason *why)
{
	static const struct {
		const char *key, *text;
	} words[] = {{"model_type", "llama"}, {"hidden_act", "silu"}};
	static const struct {
		const char *key;
		bool value;
	} flags[] = {{"tie_word_embeddings", true}, {"attention_bias", false}, {"mlp_bias", false}};
	const json_t *scaling = json_object_get(config, "rope_scaling");

	for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
		const char *text = json_string_value(json_object_get(config, words[i].key));

		if (!text || strcmp(text, words[i].text) != 0)
			return fail(
				why, -EINVAL, "config.json: %s must be \"%s\"", words[i].key, words[i].text);
	}
	for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
		const json_t *flag = json_object_get(config, flags[i].key);

		if (flags[i].value ? !json_is_true(flag) : json_is_true(flag))
			return fail(why, -EINVAL, "config.json: %s must be %s", flags[i].key,
				flags[i].value ? "true" : "false");
	}
	if (scaling && !json_is_null(scaling))
		return fail(why, -EINVAL, "config.json: rope_scaling is not supported");
	return 0;
}

static int config_parse(struct model *m, const json_t *config, double *theta, const struct reason *why)
{
	const struct {
		const char *key;
		uint32_t max;
		uint32_t *out;
	} numbers[] = {
		{"num_hidden_layers", LAYERS_MAX, &m->n_layers},
		{"hidden_size", WIDTH_MAX, &m->hidden},
		{"intermediate_size", 4 * WIDTH_MAX, &m->ffn},
		{"num_attention_heads", WIDTH_MAX, &m->n_heads},
		{"num_key_value_heads", WIDTH_MAX, &m->n_kv_heads},
		{"head_dim", WIDTH_MAX, &m->head_dim},
		{"vocab_size", 1 << 20, &m->vocab},
		{"max_position_embeddings", CONTEXT_MAX, &m->context},
	};
	const json_t *eps = json_object_get(config, "rms_norm_eps");
	int r = config_supported(config, why);

	for (size_t i = 0; i < sizeof numbers / sizeof *numbers && r == 0; i++)
		r = config_integer(config, numbers[i].key, numbers[i].max, numbers[i].out, why);
	if (r < 0)
		return r;
	if (m->n_heads % m->n_kv_heads)
		return fail(why, -EINVAL, "config.json: %u query heads cannot share %u key heads", m->n_heads,
			m->n_kv_heads);
	if (m->hidden % 16 || m->ffn % 16 || m->head_dim % 16)
		return fail(why, -EINVAL, "config.json: widths must be multiples of 16");
	if ((uint64_t)m->n_heads * m->head_dim > WIDTH_MAX)
		return fail(why, -EINVAL, "config.json: the heads are wider than %u", WIDTH_MAX);
	*theta = json_number_value(json_object_get(config, "rope_theta"));
	if (!(*theta > 1) || !isfinite(*theta))
		return fail(why, -EINVAL, "config.json: rope_theta must be above 1");
	m->rms_eps = (float)json_number_value(eps);
	if (!json_is_number(eps) || !(m->rms_eps >= 0 && m->rms_eps < 1))
		return fail(why, -EINVAL, "config.json: rms_norm_eps must be from 0 to 1");
	return 0;
}

/* The weights, taken one after the other out of the file and into the model's memory. */
struct loading {
	const struct safetensors *file;
	const struct vector_ops *ops;
	float *at;
	struct reason why;
};

/* cols 0: a vector. */
static int take(struct loading *l, uint32_t rows, uint32_t cols, const char *format, ...)
{
	size_t n = (size_t)rows * (cols ? cols : 1);
	uint32_t n_dims = cols ? 2 : 1;
	const struct safetensor *t;
	char name[96];
	va_list args;

	va_start(args, format);
	vsnprintf(name, sizeof name, format, args);
	va_end(args);
	t = safetensors_find(l->file, name);
	if (!t)
		return fail(&l->why, -EBADMSG, "weights: no tensor %s", name);
	if (t->type != SAFETENSORS_F16)
		return fail(&l->why, -EBADMSG, "weights: %s is not of type F16", name);
	if (t->n_dims != n_dims || t->dims[0] != rows || (cols && t->dims[1] != cols))
		return fail(&l->why, -EBADMSG, "weights: %s is not of the shape %u x %u", name, rows,
			cols ? cols : 1);
	l->ops->from_half(t->data, n, l->at);
	for (size_t i = 0; i < n; i++)
		if (!isfinite(l->at[i]))
			return fail(&l->why, -EBADMSG, "weights: %s holds values that are not finite", name);
	l->at += n;
	return 0;
}

static int take_layer(struct loading *l, const struct model *m, uint32_t i, struct model_layer *layer)
{
	uint32_t q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim;
	int r;

#define TAKE(rows, cols, name)                                                                               \
	if ((r = take(l, rows, cols, "model.layers.%u." name ".weight", i)) < 0)                             \
	return r
	layer->attention_norm = l->at;
	TAKE(m->hidden, 0, "input_layernorm");
	layer->qkv = l->at;
	TAKE(q, m->hidden, "self_attn.q_proj");
	TAKE(kv, m->hidden, "self_attn.k_proj");
	TAKE(kv, m->hidden, "self_attn.v_proj");
	layer->out = l->at;
	TAKE(m->hidden, q, "self_attn.o_proj");
	layer->ffn_norm = l->at;
	TAKE(m->hidden, 0, "post_attention_layernorm");
	layer->gate_up = l->at;
	TAKE(m->ffn, m->hidden, "mlp.gate_proj");
	TAKE(m->ffn, m->hidden, "mlp.up_proj");
	layer->down = l->at;
	TAKE(m->hidden, m->ffn, "mlp.down_proj");
#undef TAKE
	return 0;
}

static size_t n_floats(const struct model *m)
{
	size_t attention = (size_t)(2 * m->n_heads + 2 * m->n_kv_heads) * m->head_dim * m->hidden;
	size_t layer = 2 * (size_t)m->hidden + attention + 3 * (size_t)m->ffn * m->hidden;

	return m->head_dim / 2 + (size_t)m->vocab * m->hidden + m->hidden + m->n_layers * layer;
}

static int take_all(struct model *m, struct loading *l, double theta)
{
	int r;

	m->memory = l->at = malloc(n_floats(m) * sizeof(float));
	m->layers = calloc(m->n_layers, sizeof *m->layers);
	if (!m->memory || !m->layers)
		return fail(&l->why, -ENOMEM, "no memory for the weights");
	m->inv_freq = l->at;
	for (uint32_t i = 0; i < m->head_dim; i += 2)
		*l->at++ = (float)pow(theta, -(double)i / m->head_dim);
	m->embedding = l->at;
	r = take(l, m->vocab, m->hidden, "model.embed_tokens.weight");
	if (r < 0)
		return r;
	m->norm = l->at;
	r = take(l, m->hidden, 0, "model.norm.weight");
	for (uint32_t i = 0; i < m->n_layers && r == 0; i++)
		r = take_layer(l, m, i, &m->layers[i]);
	return r;
}

static int weights_load(struct model *m, const char *path, double theta, const struct reason *why)
{
	struct loading l = {.ops = vector_ops(), .why = *why};
	struct safetensors *file = NULL;
	const char *slash = strrchr(path, '/'), *dot = strrchr(path, '.');
	char sentence[128] = "";
	void *data = NULL;
	size_t len;
	int r = file_read(path, &data, &len);

	if (r < 0)
		return fail(why, r, "%s: %s", path, strerror(-r));
	r = safetensors_parse(data, len, &file, sentence, sizeof sentence);
	if (r < 0) {
		fail(why, r, "%s: %s", path, sentence);
		goto out;
	}
	l.file = file;
	slash = slash ? slash + 1 : path;
	snprintf(m->name, sizeof m->name, "%.*s-%08" PRIx32,
		(int)(dot - slash) > 50 ? 50 : (int)(dot - slash), slash,
		(uint32_t)(XXH3_64bits(data, len) >> 32));
	r = take_all(m, &l, theta);
out:
	safetensors_free(file);
	free(data);
	return r;
}

/* The only .safetensors file in dir, malloc'd. */
static int weights_path(const char *dir, char **out, const struct reason *why)
{
	static const char suffix[] = ".safetensors";
	char *found = NULL;
	const struct dirent *e;
	DIR *d = opendir(dir);
	int r = 0;

	if (!d)
		return fail(why, -errno, "%s: %s", dir, strerror(errno));
	while (r == 0 && (e = readdir(d))) {
		size_t len = strlen(e->d_name);

		if (len < sizeof suffix || strcmp(e->d_name + len - (sizeof suffix - 1), suffix) != 0)
			continue;
		if (found)
			r = fail(why, -EINVAL, "%s: more than one .safetensors file", dir);
		else if (asprintf(&found, "%s/%s", dir, e->d_name) < 0)
			r = fail(why, -ENOMEM, "no memory");
	}
	closedir(d);
	if (r == 0 && !found)
		r = fail(why, -ENOENT, "%s: no .safetensors file", dir);
	if (r < 0)
		free(found);
	else
		*out = found;
	return r;
}

int model_load(const char *dir, struct model **out, char *why_text, size_t why_len)
{
	const struct reason why = {why_text, why_len};
	struct model *m = calloc(1, sizeof *m);
	json_t *config = NULL;
	json_error_t error;
	char *path = NULL;
	double theta = 0;
	int r;

	if (!m || asprintf(&path, "%s/config.json", dir) < 0) {
		path = NULL;
		r = fail(&why, -ENOMEM, "no memory");
		goto out;
	}
	config = json_load_file(path, 0, &error);
	if (!config) {
		r = json_error_code(&error) == json_error_cannot_open_file ? -ENOENT : -EINVAL;
		fail(&why, r, "%s:%d: %s", path, error.line, error.text);
		goto out;
	}
	r = config_parse(m, config, &theta, &why);
	if (r < 0)
		goto out;
	free(path);
	path = NULL;
	r = weights_path(dir, &path, &why);
	if (r == 0)
		r = weights_load(m, path, theta, &why);
out:
	if (r == 0) {
		*out = m;
		m = NULL;
	}
	model_free(m);
	json_decref(config);
	free(path);
	return r;
}

struct model *model_free(struct model *m)
{
	if (m) {
		free(m->layers);
		free(m->memory);
		free(m);
	}
	return NULL;
}

void model_describe(const struct model *m, struct cistern_plane planes[2], struct cistern_model *out)
{
	for (int i = 0; i < 2; i++)
		planes[i] = (struct cistern_plane){
			.n_heads = m->n_kv_heads,
			.dim = m->head_dim,
			.dtype = CISTERN_F16,
			.rope_kind = i == 0 ? CISTERN_ROPE_HALF : CISTERN_ROPE_NONE,
			.rope_dim = i == 0 ? m->head_dim : 0,
			.rope_scale = 1,
			.inv_freq = i == 0 ? m->inv_freq : NULL,
		};
	*out = (struct cistern_model){
		.name = m->name, .n_layers = m->n_layers, .n_planes = 2, .planes = planes, .tp_size = 1};
}

void model_geometry(const struct model *m, struct geometry *g)
{
	*g = (struct geometry){.n_layers = m->n_layers, .n_planes = 2, .tp_size = 1};
	snprintf(g->name, sizeof g->name, "%s", m->name);
	for (int i = 0; i < 2; i++)
		g->planes[i] = (struct plane){
			.n_heads = m->n_kv_heads, .dim = m->head_dim, .dtype = DTYPE_F16, .rope_scale = 1};
	g->planes[0].rope_kind = ROPE_HALF;
	g->planes[0].rope_dim = m->head_dim;
	memcpy(g->planes[0].inv_freq, m->inv_freq, m->head_dim / 2 * sizeof *m->inv_freq);
}
