/* Loading a model: the committed one has the shapes it says; folders that are damaged or ask for what the
 * engine does not do are refused, with a reason. The model's folder is the first argument. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "base/file.h"
#include "tools/engine/model.h"

struct world {
	const char *dir;
	json_t *config;
	void *weights;
	size_t weights_len;
};

/* A folder to spoil: config and weights as committed, unless given otherwise. weights NULL: none. */
struct folder {
	char path[32];
};

static void put_file(const struct folder *f, const char *name, const void *data, size_t len)
{
	char path[128];

	snprintf(path, sizeof path, "%s/%s", f->path, name);
	assert_int_equal(file_write(path, data, len), 0);
}

static void remove_file(const struct folder *f, const char *name)
{
	char path[128];

	snprintf(path, sizeof path, "%s/%s", f->path, name);
	unlink(path);
}

static void folder_make(struct folder *f, const json_t *config, const void *weights, size_t len)
{
	char *text = json_dumps(config, 0);

	strcpy(f->path, "/tmp/test-model.XXXXXX");
	assert_non_null(mkdtemp(f->path));
	assert_non_null(text);
	put_file(f, "config.json", text, strlen(text));
	free(text);
	if (weights)
		put_file(f, "weights.safetensors", weights, len);
}

static void folder_remove(const struct folder *f)
{
	remove_file(f, "config.json");
	remove_file(f, "weights.safetensors");
	remove_file(f, "other.safetensors");
	assert_int_equal(rmdir(f->path), 0);
}

static void refused(const char *dir, int code, const char *word)
{
	struct model *m = NULL;
	char why[256] = "";

	assert_int_equal(model_load(dir, &m, why, sizeof why), code);
	assert_null(m);
	if (!strstr(why, word))
		fail_msg("\"%s\" does not mention %s", why, word);
}

static void loads_the_committed_model(void **state)
{
	const struct world *w = *state;
	struct cistern_plane planes[2];
	struct cistern_model description;
	struct model *m;
	char why[256] = "";

	assert_int_equal(model_load(w->dir, &m, why, sizeof why), 0);
	assert_int_equal(m->n_layers, 5);
	assert_int_equal(m->hidden, 256);
	assert_int_equal(m->n_heads, 4);
	assert_int_equal(m->n_kv_heads, 2);
	assert_int_equal(m->context, 2048);
	assert_true(m->inv_freq[0] == 1);
	assert_memory_equal(m->name, "cistern-mini-", 13);
	model_describe(m, planes, &description);
	assert_int_equal(description.n_planes, 2);
	assert_int_equal(planes[0].rope_dim, 64);
	assert_int_equal(planes[1].rope_kind, CISTERN_ROPE_NONE);
	model_free(m);
}

static void bad_configurations(void **state)
{
	const struct world *w = *state;
	static const struct {
		const char *key, *value; /* NULL: left out */
		int code;
		const char *word;
	} cases[] = {
		{"model_type", "\"gpt2\"", -EINVAL, "model_type"},
		{"hidden_act", "\"gelu\"", -EINVAL, "hidden_act"},
		{"tie_word_embeddings", "false", -EINVAL, "tie_word_embeddings"},
		{"attention_bias", "true", -EINVAL, "attention_bias"},
		{"rope_scaling", "{\"type\": \"yarn\"}", -EINVAL, "rope_scaling"},
		{"num_hidden_layers", NULL, -EINVAL, "num_hidden_layers"},
		{"num_hidden_layers", "0", -EINVAL, "num_hidden_layers"},
		{"num_hidden_layers", "1000000", -EINVAL, "num_hidden_layers"},
		{"num_hidden_layers", "6", -EBADMSG, "model.layers.5."},
		{"hidden_size", "-256", -EINVAL, "hidden_size"},
		{"hidden_size", "256.0", -EINVAL, "hidden_size"},
		{"hidden_size", "250", -EINVAL, "multiples of 16"},
		{"hidden_size", "128", -EBADMSG, "embed_tokens"},
		{"intermediate_size", "1024", -EBADMSG, "gate_proj"},
		{"num_key_value_heads", "3", -EINVAL, "3 key heads"},
		{"num_key_value_heads", "1", -EBADMSG, "k_proj"},
		{"head_dim", "8192", -EINVAL, "wider"},
		{"vocab_size", "265", -EBADMSG, "embed_tokens"},
		{"rope_theta", "0", -EINVAL, "rope_theta"},
		{"rope_theta", "\"x\"", -EINVAL, "rope_theta"},
		{"rms_norm_eps", "2", -EINVAL, "rms_norm_eps"},
		{"max_position_embeddings", "4294967296", -EINVAL, "max_position_embeddings"},
	};

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		json_t *config = json_deep_copy(w->config);
		struct folder f;

		if (cases[i].value)
			json_object_set_new(
				config, cases[i].key, json_loads(cases[i].value, JSON_DECODE_ANY, NULL));
		else
			json_object_del(config, cases[i].key);
		folder_make(&f, config, w->weights, w->weights_len);
		refused(f.path, cases[i].code, cases[i].word);
		folder_remove(&f);
		json_decref(config);
	}
}

static void bad_folders(void **state)
{
	const struct world *w = *state;
	struct folder f;

	refused("/nowhere/at/all", -ENOENT, "config.json");
	folder_make(&f, w->config, NULL, 0);
	refused(f.path, -ENOENT, "no .safetensors");
	put_file(&f, "weights.safetensors", w->weights, w->weights_len);
	put_file(&f, "other.safetensors", w->weights, w->weights_len);
	refused(f.path, -EINVAL, "more than one");
	remove_file(&f, "other.safetensors");
	put_file(&f, "config.json", "{\"model_type\": ", 15);
	refused(f.path, -EINVAL, "config.json");
	folder_remove(&f);
}

static void bad_weights(void **state)
{
	const struct world *w = *state;
	static const uint16_t nan = 0x7e00;
	uint8_t *data = malloc(w->weights_len);
	struct folder f;

	assert_non_null(data);
	folder_make(&f, w->config, w->weights, w->weights_len - 1);
	refused(f.path, -EBADMSG, f.path);
	put_file(&f, "weights.safetensors", w->weights, 5);
	refused(f.path, -EBADMSG, f.path);
	memcpy(data, w->weights, w->weights_len);
	memcpy(data + w->weights_len - 2, &nan, 2);
	put_file(&f, "weights.safetensors", data, w->weights_len);
	refused(f.path, -EBADMSG, "not finite");
	folder_remove(&f);
	free(data);
}

int main(int argc, char **argv)
{
	struct world w = {.dir = argc > 1 ? argv[1] : "model"};
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(loads_the_committed_model, &w),
		cmocka_unit_test_prestate(bad_configurations, &w),
		cmocka_unit_test_prestate(bad_folders, &w),
		cmocka_unit_test_prestate(bad_weights, &w),
	};
	char path[512];
	int failed;

	snprintf(path, sizeof path, "%s/config.json", w.dir);
	w.config = json_load_file(path, 0, NULL);
	snprintf(path, sizeof path, "%s/cistern-mini.safetensors", w.dir);
	if (!w.config || file_read(path, &w.weights, &w.weights_len) < 0)
		return 1;
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	json_decref(w.config);
	free(w.weights);
	return failed;
}
