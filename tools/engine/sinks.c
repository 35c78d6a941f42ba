/*
 * cistern-engine sinks: how well sinks are found, and what finding them is worth. A detector learns from some
 * text; on other text, with separators planted in the middle, its findings are compared with the attention
 * that the model really pays, and each way of protecting tokens is judged by the KL divergence of what
 * follows. The codec is called as the daemon calls it, in this process. One JSON object on stdout.
 */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "policy/policy.h"
#include "runtime/detection.h"
#include "tools/engine/evaluate.h"
#include "tools/engine/truth.h"

enum {
	PROMPT = 7 * FORWARD_CHUNK, /* then a chunk of continuation */
	LENGTH = PROMPT + FORWARD_CHUNK,
	PLANTED_MAX = 2,
	WINDOW = 128,
	FIRST = 4,
	TIMES_MAX = 4096,
};

/* Ways to protect tokens. */
enum way { NOTHING, FIRST_4, COLD, TRAINED, OBSERVED, ORACLE, FIRST_AS_MANY, WAYS };
static const char *const way_names[WAYS] = {
	"nothing", "first_4", "cold", "trained", "observed", "oracle", "first_as_many"};
enum { RUNGS = 3 };
static const double rungs[RUNGS] = {8, 16, 32};

static int by_rising(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

struct tally {
	uint64_t sinks, found, attended, attended_found, others, mistaken, planted, planted_found, protected;
	float *scores; /* of all tokens judged, with whether it is a sink */
	uint8_t *sink;
	size_t n;
};

struct judge {
	struct engine e;
	struct geometry g;
	struct kv_pages *pages;
	struct kv_table table, other;
	struct codec *codec;
	struct detection *detection;
	struct transform *transform;
	struct sinks_learner *learner;
	struct sinks_detector *cold, *trained;
	struct sinks_rules rules;
	struct tally tally[WAYS];
	struct evaluation worth[2][RUNGS][WAYS]; /* ordinary text; planted */
	double frame_bytes[2][RUNGS][WAYS], raw_bytes[2];
	uint32_t n_ordinary, n_planted;
	double search_ns[TIMES_MAX], encode_ns[TIMES_MAX]; /* of a chunk */
	size_t n_search, n_encode;
};

static double now_ns(void)
{
	return engine_now_ms() * 1e6;
}

static double median(double *times, size_t n)
{
	return n ? (qsort(times, n, sizeof *times, by_rising), times[n / 2]) : 0;
}

static struct codec_chunk chunk_at(const struct judge *j, const struct kv_table *table, uint32_t chunk)
{
	return (struct codec_chunk){.geometry = &j->g,
		.pages = j->pages,
		.run = {.blocks = table->blocks,
			.block_tokens = KV_BLOCK_TOKENS,
			.offset = chunk * FORWARD_CHUNK},
		.n_tokens = FORWARD_CHUNK,
		.position = (uint64_t)chunk * FORWARD_CHUNK};
}

/* BOS, then text with separators at the places given: after each the text goes on elsewhere. */
static void compose(
	const struct tokens *text, size_t start, const uint32_t *places, uint32_t n_places, uint32_t *out)
{
	const size_t room = text->n - LENGTH;
	size_t at = start % room;

	out[0] = TEXT_BOS;
	for (uint32_t i = 1; i < LENGTH; i++) {
		bool separator = false;

		for (uint32_t k = 0; k < n_places; k++)
			separator = separator || places[k] == i;
		if (separator) {
			out[i] = i % 2 ? TEXT_SEP : TEXT_BOS;
			at = (at + room / 3) % room;
		} else {
			out[i] = text->list[at++];
		}
	}
}

/* What OBSERVE would tell of these queries: logs of multiples, NAN where nothing is known. */
static int observe(struct judge *j, const struct kv_table *table, const struct truth *t, uint32_t n_tokens,
	float *resting)
{
	const struct model *m = j->e.model;
	const struct kv_run run = {.blocks = table->blocks, .block_tokens = KV_BLOCK_TOKENS};
	const uint32_t n_queries = n_tokens / FORWARD_CHUNK * TRUTH_QUERIES;
	float *others = malloc(2 * (size_t)n_tokens * sizeof *others);
	const struct observed o = {resting, others, others ? others + n_tokens : NULL};
	int r = others ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < n_tokens && others; i++)
		o.drawing[i] = o.resting[i] = o.asked[i] = NAN;
	for (uint32_t l = 0; l < m->n_layers && !r; l++) {
		const struct detection_queries q = {.n_queries = n_queries,
			.n_heads = m->n_heads,
			.positions = t->positions,
			.scale = 1 / sqrtf((float)m->head_dim),
			.values = t->queries +
				  (size_t)l * t->n_chunks * TRUTH_QUERIES * m->n_heads * m->head_dim};

		r = detection_observe(j->detection, &j->g.planes[0], &j->pages[2 * l], &run, n_tokens,
			FORWARD_CHUNK, &q, &o);
	}
	free(others);
	return r;
}

static int learn_from(struct judge *j, const uint32_t *tokens)
{
	struct truth t;
	float resting[LENGTH];
	int r = truth_compute(&j->e, &j->table, tokens, LENGTH, &t);

	if (r)
		return r;
	r = observe(j, &j->table, &t, LENGTH, resting);
	for (uint32_t c = 0; c < LENGTH / FORWARD_CHUNK && !r; c++) {
		const struct codec_chunk chunk = chunk_at(j, &j->table, c);

		r = detection_learn(j->detection, &chunk, j->learner, resting + c * FORWARD_CHUNK);
	}
	truth_fini(&t);
	return r;
}

static int learn_cold(struct judge *j, const uint32_t *tokens, struct sinks_learner *learner)
{
	int r = forward_run(j->e.forward,
		&(struct forward_request){
			.cache = j->e.cache, .table = &j->table, .tokens = tokens, .n_tokens = LENGTH});

	for (uint32_t c = 0; c < LENGTH / FORWARD_CHUNK && !r; c++) {
		const struct codec_chunk chunk = chunk_at(j, &j->table, c);

		r = detection_learn(j->detection, &chunk, learner, NULL);
	}
	return r;
}

static int learn(struct judge *j, const struct tokens *text, uint32_t n_sequences)
{
	struct sinks_learner *cold;
	uint32_t tokens[LENGTH];
	struct sinks_view view;
	int r = 0;

	sinks_view_init(&view, &j->g);
	j->learner = sinks_learner_new(&view);
	cold = sinks_learner_new(&view);
	if (!j->learner || !cold)
		r = -ENOMEM;
	for (uint32_t i = 0; i < n_sequences && !r; i++) {
		const uint32_t place = 200 + i * 331 % 1200;

		compose(text, i * text->n / n_sequences, &place, i % 2, tokens);
		r = learn_from(j, tokens);
		if (!r && i < 2)
			r = learn_cold(j, tokens, cold);
		fprintf(stderr, "\rlearning: sequence %u of %u", i + 1, n_sequences);
	}
	fputc('\n', stderr);
	if (!r)
		r = sinks_learner_detector(cold, j->rules.budget, log(j->rules.multiple), &j->cold);
	if (!r)
		r = sinks_learner_detector(j->learner, j->rules.budget, log(j->rules.multiple), &j->trained);
	sinks_learner_free(cold);
	return r;
}

/* Classes of the prompt's tokens under one way; scores (may be NULL) for the tally. */
static int classify(struct judge *j, enum way way, const struct truth *t, const float *resting,
	uint8_t *classes, float *scores)
{
	struct policy policy;
	struct sinks_finding findings[FORWARD_CHUNK];
	const struct sinks_detector *detector = way == COLD ? j->cold : j->trained;

	policy_init(&policy);
	policy.sink_tokens = way == NOTHING ? 0 : FIRST;
	policy.window_tokens = WINDOW;
	for (uint32_t c = 0; c < PROMPT / FORWARD_CHUNK; c++) {
		const struct codec_chunk chunk = chunk_at(j, &j->table, c);
		struct sinks_evidence evidence = {.n_tokens = FORWARD_CHUNK,
			.seen = way == OBSERVED ? resting + c * FORWARD_CHUNK : NULL,
			.trained = detector->trained,
			.threshold = detector->threshold};
		uint8_t *mine = classes + c * FORWARD_CHUNK;
		double start;
		int r;

		policy_classify(&policy, chunk.position, FORWARD_CHUNK, PROMPT, mine);
		if (way == ORACLE)
			for (uint32_t i = 0; i < FORWARD_CHUNK; i++)
				if (t->sink[c * FORWARD_CHUNK + i])
					mine[i] = TOKEN_SINK;
		if (way == NOTHING || way == FIRST_4 || way == ORACLE || way == FIRST_AS_MANY)
			continue;
		start = now_ns();
		r = detection_score(j->detection, &chunk, detector, &evidence);
		if (r)
			return r;
		sinks_decide(&j->rules, &evidence, mine, findings);
		if (j->n_search < TIMES_MAX)
			j->search_ns[j->n_search++] = now_ns() - start;
		for (uint32_t i = 0; i < FORWARD_CHUNK && scores; i++) {
			const float seen =
				evidence.seen ? evidence.seen[i] - logf((float)j->rules.multiple) : NAN;
			const float threshold =
				evidence.trained ? evidence.threshold : (float)j->rules.unusual;

			scores[c * FORWARD_CHUNK + i] = fmaxf(evidence.scores[i] - threshold, seen);
		}
	}
	return 0;
}

static int count(struct judge *j, enum way way, const struct truth *t, const uint8_t *classes,
	const float *scores, const uint32_t *tokens)
{
	struct tally *y = &j->tally[way];
	float *more_scores = realloc(y->scores, (y->n + PROMPT) * sizeof *y->scores);
	uint8_t *more_sink;

	if (!more_scores)
		return -ENOMEM;
	y->scores = more_scores;
	more_sink = realloc(y->sink, y->n + PROMPT);
	if (!more_sink)
		return -ENOMEM;
	y->sink = more_sink;
	for (uint32_t i = FIRST; i < PROMPT; i++) {
		const bool found = classes[i] == TOKEN_SINK;

		y->scores[y->n] = scores[i];
		y->sink[y->n++] = t->sink[i];
		y->sinks += t->sink[i];
		y->found += t->sink[i] && found;
		y->attended += t->attended[i];
		y->attended_found += t->attended[i] && found;
		y->others += !t->sink[i];
		y->mistaken += !t->sink[i] && found;
		y->protected += found;
		y->planted += tokens[i] >= TEXT_BOS;
		y->planted_found += tokens[i] >= TEXT_BOS && found;
	}
	return 0;
}

/* The prompt coded and restored into the other table, and what follows compared. */
static int weigh(
	struct judge *j, int planted, int rung, enum way way, const uint8_t *classes, const uint32_t *tokens)
{
	struct tokens prompt = {.n = PROMPT, .list = (uint32_t *)tokens};
	struct probe probe = {.given = {.n = LENGTH - PROMPT, .list = (uint32_t *)tokens + PROMPT}};

	for (uint32_t c = 0; c < PROMPT / FORWARD_CHUNK; c++) {
		const struct codec_chunk from = chunk_at(j, &j->table, c), to = chunk_at(j, &j->other, c);
		const struct codec_options options = {.transform = j->transform,
			.rung = transform_rung(j->transform, rungs[rung]),
			.classes = classes + c * FORWARD_CHUNK};
		const double start = now_ns();
		uint8_t *frame;
		size_t len;
		int r = codec_encode(j->codec, &from, &options, &frame, &len, NULL);

		if (r)
			return r;
		if (rungs[rung] == 16 && j->n_encode < TIMES_MAX)
			j->encode_ns[j->n_encode++] = now_ns() - start;
		j->frame_bytes[planted][rung][way] += (double)len;
		r = codec_decode(j->codec, frame, len, j->transform, &to, 0, j->g.n_layers);
		free(frame);
		if (r)
			return r;
	}
	return evaluate_probe(j->e.forward, j->e.model, j->e.cache, &j->table, &j->other, &prompt, &probe,
		&j->worth[planted][rung][way]);
}

/* As many tokens as others protect as sinks, but the first ones. */
static void classify_first(const uint8_t *others, uint8_t *classes)
{
	struct policy policy;

	policy_init(&policy);
	policy.sink_tokens = 0;
	policy.window_tokens = WINDOW;
	for (uint32_t t = 0; t < PROMPT; t++)
		policy.sink_tokens += others[t] == TOKEN_SINK;
	policy_classify(&policy, 0, PROMPT, PROMPT, classes);
}

static int judge_sequence(struct judge *j, int planted, const uint32_t *tokens)
{
	static uint8_t classes[WAYS][PROMPT];
	static float scores[PROMPT], resting[LENGTH];
	struct truth t;
	int r = truth_compute(&j->e, &j->table, tokens, LENGTH, &t);

	if (r)
		return r;
	/* An engine that has computed the prompt has its queries, and none of what follows. */
	r = observe(j, &j->table, &t, PROMPT, resting);
	for (int way = 0; way < FIRST_AS_MANY && !r; way++) {
		r = classify(j, (enum way)way, &t, resting, classes[way], scores);
		if (!r && way >= COLD && way <= OBSERVED)
			r = count(j, (enum way)way, &t, classes[way], scores, tokens);
	}
	classify_first(classes[TRAINED], classes[FIRST_AS_MANY]);
	j->raw_bytes[planted] += (double)geometry_token_bytes(&j->g) * PROMPT;
	for (int rung = 0; rung < RUNGS && !r && j->transform; rung++)
		for (int way = 0; way < WAYS && !r; way++)
			r = weigh(j, planted, rung, (enum way)way, classes[way], tokens);
	truth_fini(&t);
	return r;
}

/* ---- report ---- */

static int by_falling(const void *a, const void *b)
{
	const float x = *(const float *)a, y = *(const float *)b;

	return (x < y) - (x > y);
}

/* Of the sinks, those whose score is above all but a share of the others'. */
static double recall_at(const struct tally *y, double mistaken)
{
	float *others = malloc((y->n + 1) * sizeof *others), threshold;
	size_t n = 0, found = 0;

	if (!others || !y->sinks) {
		free(others);
		return NAN;
	}
	for (size_t i = 0; i < y->n; i++)
		if (!y->sink[i])
			others[n++] = y->scores[i];
	qsort(others, n, sizeof *others, by_falling);
	threshold = others[(size_t)(mistaken * (double)n)];
	for (size_t i = 0; i < y->n; i++)
		found += y->sink[i] && y->scores[i] > threshold;
	free(others);
	return (double)found / (double)y->sinks;
}

static json_t *tally_object(const struct tally *y)
{
	return json_pack("{s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:f}", "sinks", (json_int_t)y->sinks,
		"recall", (double)y->found / (double)y->sinks, "mistaken",
		(double)y->mistaken / (double)y->others, "recall_at_2pct", recall_at(y, 0.02),
		"recall_at_half_pct", recall_at(y, 0.005), "planted", (json_int_t)y->planted, "planted_found",
		(json_int_t)y->planted_found, "attended", (json_int_t)y->attended, "attended_recall",
		(double)y->attended_found / (double)y->attended);
}

static json_t *worth_array(const struct judge *j, int planted)
{
	json_t *array = json_array();

	for (int rung = 0; rung < RUNGS; rung++) {
		json_t *row = json_pack("{s:f}", "rung", rungs[rung]);

		for (int way = 0; way < WAYS; way++) {
			const struct evaluation *v = &j->worth[planted][rung][way];

			json_object_set_new(row, way_names[way],
				json_pack("{s:f, s:f}", "kl", v->kl / (double)v->n_tokens, "ratio",
					j->raw_bytes[planted] / j->frame_bytes[planted][rung][way]));
		}
		json_array_append_new(array, row);
	}
	return array;
}

static int report(struct judge *j)
{
	const struct sinks_detector *d = j->trained;
	json_t *object = json_pack("{s:i, s:i, s:{s:I, s:f, s:f, s:f, s:f}}", "ordinary_sequences",
		(int)j->n_ordinary, "planted_sequences", (int)j->n_planted, "detector", "observed_tokens",
		(json_int_t)d->n_observed, "correlation", (double)d->correlation, "caught", (double)d->caught,
		"mistaken", (double)d->mistaken, "threshold", (double)d->threshold);
	json_t *found = json_object();
	const double search = median(j->search_ns, j->n_search), encode = median(j->encode_ns, j->n_encode);
	int r;

	for (int way = COLD; way <= OBSERVED; way++)
		json_object_set_new(found, way_names[way], tally_object(&j->tally[way]));
	json_object_set_new(object, "found", found);
	json_object_set_new(object, "rules",
		json_pack("{s:f, s:f, s:f}", "budget", j->rules.budget, "multiple", j->rules.multiple,
			"unusual", j->rules.unusual));
	if (j->transform) {
		json_object_set_new(object, "cost",
			json_pack("{s:f, s:f, s:f}", "search_us", search / 1e3, "encode_us", encode / 1e3,
				"share", search / encode));
		json_object_set_new(object, "ordinary", worth_array(j, 0));
		json_object_set_new(object, "planted", worth_array(j, 1));
	}
	r = object && !json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6)) &&
			    putchar('\n') == '\n'
		    ? 0
		    : -EIO;
	json_decref(object);
	return r;
}

static int load_transform(struct judge *j, const char *path)
{
	char why[256] = "";
	void *data;
	size_t len;
	int r = file_read(path, &data, &len);

	if (!r) {
		r = transform_parse(data, len, &j->transform, why, sizeof why);
		free(data);
	}
	if (r)
		fprintf(stderr, "cistern-engine: %s: %s\n", path, why[0] ? why : strerror(-r));
	return r;
}

static int judge_open(struct judge *j, const struct options *o)
{
	int r = engine_open(o, 2, false, &j->e);

	if (r)
		return r;
	model_geometry(j->e.model, &j->g);
	j->pages = kv_cache_pages(j->e.cache);
	j->codec = codec_new(kernels_cpu(), (size_t)1 << 28);
	j->detection = detection_new(kernels_cpu());
	if (!j->pages || !j->codec || !j->detection)
		r = -ENOMEM;
	if (!r)
		r = kv_table_new(j->e.cache, LENGTH, &j->table);
	if (!r)
		r = kv_table_new(j->e.cache, LENGTH, &j->other);
	if (!r && o->transform)
		r = load_transform(j, o->transform);
	return r;
}

static void judge_close(struct judge *j)
{
	for (int way = 0; way < WAYS; way++) {
		free(j->tally[way].scores);
		free(j->tally[way].sink);
	}
	sinks_learner_free(j->learner);
	sinks_detector_unref(j->cold);
	sinks_detector_unref(j->trained);
	transform_unref(j->transform);
	codec_free(j->codec);
	detection_free(j->detection);
	free(j->pages);
	if (j->e.cache) {
		kv_table_free(j->e.cache, &j->table);
		kv_table_free(j->e.cache, &j->other);
	}
	engine_close(&j->e);
	free(j);
}

static int judge_all(struct judge *j, const struct options *o)
{
	struct tokens text = {0}, other = {0};
	uint32_t tokens[LENGTH];
	int r = text_read(o->text, &text);

	if (!r)
		r = text_read(o->train, &other);
	if (!r && (text.n <= 2 * LENGTH || other.n <= 2 * LENGTH))
		r = -ENODATA;
	if (!r)
		r = learn(j, &other, o->n_sequences);
	for (uint32_t i = 0; i < 2 * o->n_sequences && !r; i++) {
		/* One in the middle of a chunk, one in another chunk; on BOS and SEP in turn. */
		const uint32_t places[PLANTED_MAX] = {300 + i * 211 % 1300, 700 + i * 97 % 900};
		const int planted = i % 2;

		compose(&text, i * text.n / (2 * o->n_sequences), places, planted ? 1 + i % 4 / 2 : 0,
			tokens);
		r = judge_sequence(j, planted, tokens);
		j->n_ordinary += !planted;
		j->n_planted += planted;
		fprintf(stderr, "\rjudging: sequence %u of %u", i + 1, 2 * o->n_sequences);
	}
	fputc('\n', stderr);
	tokens_fini(&text);
	tokens_fini(&other);
	return r;
}

int engine_sinks(const struct options *o)
{
	struct judge *j = calloc(1, sizeof *j);
	int r = j ? 0 : -ENOMEM;

	if (j) {
		j->rules = (struct sinks_rules){.budget = 0.02, .multiple = 5, .unusual = 3, .keep = 0.5};
		r = judge_open(j, o);
	}
	if (!r)
		r = judge_all(j, o);
	if (!r)
		r = report(j);
	if (r)
		fprintf(stderr, "cistern-engine: %s\n", strerror(-r));
	if (j)
		judge_close(j);
	return r;
}
