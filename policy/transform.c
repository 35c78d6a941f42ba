#include "policy/transform.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cblas.h>
#include <xxhash.h>

#include "base/fault.h"
#include "base/half.h"
#include "base/safetensors.h"

#define FORMAT "cistern-transform-2"

enum {
	PARTS_MAX = GEOMETRY_PLANES_MAX * GEOMETRY_LAYERS_MAX,
	FEATURES_MAX = 1 << 16,
	PART_NAME_BYTES = 48,
	TENSORS_PER_PART = 4,
	TENSORS_PER_PLANE = 2,
	SLOTS = 1 << LEVELS_FREQUENCY_BITS,
	ALIGNMENT = 64,
	PROBES = 2,
};

/* How far a probe's component may lie from what an orthonormal basis gives back. Rounding the basis to f16
 * leaves it below 1e-3; a row repeated, scaled or zeroed gives 1. */
static const float PROBE_TOLERANCE = 0.02f;

/* What transform_parse makes: the public part first, so that one pointer is both. */
struct shared {
	struct transform transform;
	atomic_uint n_refs;
	struct levels_tables tables[GEOMETRY_PLANES_MAX];
	struct transform_part parts[];
};

static int parse_hex(const char *text, uint8_t out[16])
{
	static const char digits[] = "0123456789abcdef";
	uint8_t bytes[16] = {0};

	if (!text || strlen(text) != 32)
		return -EBADMSG;
	for (int i = 0; i < 32; i++) {
		const char *digit = strchr(digits, text[i]);

		if (!digit)
			return -EBADMSG;
		bytes[i / 2] = (uint8_t)(bytes[i / 2] << 4 | (digit - digits));
	}
	memcpy(out, bytes, 16);
	return 0;
}

/* A natural number up to max, in the one way of writing it. */
static int parse_number(const char *text, uint32_t max, uint32_t *out)
{
	uint64_t value = 0;

	if (!text || !*text || strlen(text) > 9 || (text[0] == '0' && text[1]))
		return -EBADMSG;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return -EBADMSG;
		value = value * 10 + (uint64_t)(*text - '0');
	}
	if (value > max)
		return -EBADMSG;
	*out = (uint32_t)value;
	return 0;
}

static const struct safetensor *part_tensor(const struct safetensors *file, uint32_t part, const char *noun)
{
	char name[PART_NAME_BYTES];

	snprintf(name, sizeof name, "part.%u.%s", part, noun);
	return safetensors_find(file, name);
}

static int part_number(
	const struct safetensors *file, uint32_t part, const char *noun, uint32_t max, uint32_t *out)
{
	char name[PART_NAME_BYTES];

	snprintf(name, sizeof name, "part.%u.%s", part, noun);
	return parse_number(safetensors_metadata(file, name), max, out);
}

static int has_shape(const struct safetensor *t, enum safetensors_type type, uint64_t rows, uint64_t columns)
{
	if (!t || t->type != type)
		return 0;
	if (rows == 0)
		return t->n_dims == 1 && t->dims[0] == columns;
	return t->n_dims == 2 && t->dims[0] == rows && t->dims[1] == columns;
}

static int all_finite(const float *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!isfinite(x[i]))
			return 0;
	return 1;
}

/* One block of memory for a part's arrays, the basis first because it wants alignment; freeing the basis
 * frees the part. */
static float *part_memory(size_t r, size_t p)
{
	size_t bytes = (r * p + 4 * p + 2 * r) * sizeof(float);

	return aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

/* Whether basis * basis^T is the identity, without forming it (r^2 p operations): for vectors z of +-1,
 * basis * (basis^T * z) must be z again, component by component. */
static int check_orthonormal(const float *basis, size_t r, size_t p)
{
	float *memory = malloc((2 * r + p) * sizeof *memory);
	float *z = memory, *back = z + r, *x = back + r;
	uint64_t state = 0x9e3779b97f4a7c15;
	int result = 0;

	if (!memory)
		return -ENOMEM;
	for (int probe = 0; probe < PROBES; probe++) {
		for (size_t i = 0; i < r; i++) {
			state = state * 6364136223846793005 + 1442695040888963407;
			z[i] = state >> 63 ? 1 : -1;
		}
		cblas_sgemv(CblasRowMajor, CblasTrans, (int)r, (int)p, 1, basis, (int)p, z, 1, 0, x, 1);
		cblas_sgemv(CblasRowMajor, CblasNoTrans, (int)r, (int)p, 1, basis, (int)p, x, 1, 0, back, 1);
		for (size_t i = 0; i < r; i++)
			if (!(fabsf(back[i] - z[i]) <= PROBE_TOLERANCE))
				result = -EBADMSG;
	}
	free(memory);
	return result;
}

static int check_part(const struct transform_part *part, uint32_t index, struct fault f)
{
	size_t r = part->n_components, p = part->n_features;
	int result;

	if (!all_finite(part->mean, p) || !all_finite(part->weight, p) || !all_finite(part->inverse, p) ||
		!all_finite(part->basis, r * p) || !all_finite(part->deviation, r))
		return fault_say(-EBADMSG, f.why, f.why_len, "part %u: a value is not finite", index);
	for (size_t i = 0; i < p; i++)
		if (!(part->weight[i] > 0))
			return fault_say(
				-EBADMSG, f.why, f.why_len, "part %u: a weight is not over 0", index);
	for (size_t i = 0; i < r; i++)
		if (part->deviation[i] < 0 || (i && part->deviation[i] > part->deviation[i - 1]))
			return fault_say(
				-EBADMSG, f.why, f.why_len, "part %u: deviation is negative or rises", index);
	result = check_orthonormal(part->basis, r, p);
	if (result == -EBADMSG)
		return fault_say(-EBADMSG, f.why, f.why_len, "part %u: basis is not orthonormal", index);
	return result;
}

/* The file has the basis as f16, which leaves its rows orthonormal to about 1e-3; the error that a frame
 * states is a difference of energies and wants better. One step of Newton's iteration for the orthonormal
 * rows nearest to B (Bjorck and Bowie, SIAM J. Numer. Anal. 8, 1971): B - (B B^T - I) B / 2, squares the
 * deviation. */
static int orthonormalise(float *basis, size_t r, size_t p)
{
	float *gram = malloc(r * (r + p) * sizeof *gram), *copy = gram + r * r;

	if (!gram)
		return -ENOMEM;
	memcpy(copy, basis, r * p * sizeof *copy);
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)r, (int)r, (int)p, 1, copy, (int)p, copy,
		(int)p, 0, gram, (int)r);
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)r, (int)p, (int)r, -0.5f, gram, (int)r,
		copy, (int)p, 1.5f, basis, (int)p);
	free(gram);
	return 0;
}

/* What follows from mean, weight and basis. centre: [p], centre_part: [r]. */
static void derive(struct transform_part *part, float *centre, float *centre_part)
{
	double energy = 0;

	for (size_t i = 0; i < part->n_features; i++) {
		centre[i] = part->mean[i] * part->weight[i];
		energy += (double)centre[i] * (double)centre[i];
	}
	cblas_sgemv(CblasRowMajor, CblasNoTrans, (int)part->n_components, (int)part->n_features, 1,
		part->basis, (int)part->n_features, centre, 1, 0, centre_part, 1);
	part->centre = centre;
	part->centre_part = centre_part;
	part->centre_energy = (float)energy;
}

static int parse_part(
	const struct safetensors *file, uint32_t index, struct transform_part *part, struct fault f)
{
	const struct safetensor *mean = part_tensor(file, index, "mean");
	const struct safetensor *weight = part_tensor(file, index, "weight");
	const struct safetensor *basis = part_tensor(file, index, "basis");
	const struct safetensor *deviation = part_tensor(file, index, "deviation");
	float *memory, *means, *weights, *inverses, *deviations;
	size_t r, p;
	int result;

	if (part_number(file, index, "plane", GEOMETRY_PLANES_MAX - 1, &part->plane) < 0 ||
		part_number(file, index, "first_layer", GEOMETRY_LAYERS_MAX - 1, &part->first_layer) < 0 ||
		part_number(file, index, "n_layers", GEOMETRY_LAYERS_MAX, &part->n_layers) < 0)
		return fault_say(-EBADMSG, f.why, f.why_len,
			"part %u: plane or layers missing or out of range", index);
	if (!basis || basis->n_dims != 2 || basis->dims[1] == 0 || basis->dims[1] > FEATURES_MAX ||
		basis->dims[0] == 0 || basis->dims[0] > basis->dims[1])
		return fault_say(-EBADMSG, f.why, f.why_len,
			"part %u: basis missing or of an impossible shape", index);
	r = (size_t)basis->dims[0];
	p = (size_t)basis->dims[1];
	if (!has_shape(basis, SAFETENSORS_F16, r, p) || !has_shape(mean, SAFETENSORS_F32, 0, p) ||
		!has_shape(weight, SAFETENSORS_F32, 0, p) || !has_shape(deviation, SAFETENSORS_F32, 0, r))
		return fault_say(
			-EBADMSG, f.why, f.why_len, "part %u: tensors missing or of different shapes", index);
	if (part->n_layers == 0 || p % part->n_layers)
		return fault_say(-EBADMSG, f.why, f.why_len, "part %u: %zu features are not %u layers", index,
			p, part->n_layers);
	memory = part_memory(r, p);
	if (!memory)
		return -ENOMEM;
	part->basis = memory;
	part->n_features = (uint32_t)p;
	part->n_components = (uint32_t)r;
	for (size_t i = 0; i < r * p; i++) {
		uint16_t half;

		memcpy(&half, (const uint8_t *)basis->data + 2 * i, 2);
		memory[i] = half_to_float(half);
	}
	means = memory + r * p;
	weights = means + p;
	inverses = weights + p;
	deviations = inverses + p;
	part->mean = memcpy(means, mean->data, p * sizeof(float));
	part->weight = memcpy(weights, weight->data, p * sizeof(float));
	part->deviation = memcpy(deviations, deviation->data, r * sizeof(float));
	for (size_t i = 0; i < p; i++)
		inverses[i] = 1.0f / weights[i];
	part->inverse = inverses;
	result = check_part(part, index, f);
	if (result == 0)
		result = orthonormalise(memory, r, p);
	if (result == 0)
		derive(part, deviations + r, deviations + r + p);
	return result;
}

static int parse_plane(
	const struct safetensors *file, uint32_t plane, struct levels_tables *tables, struct fault f)
{
	char name[PART_NAME_BYTES];
	const struct safetensor *frequencies, *biases;

	snprintf(name, sizeof name, "plane.%u.frequencies", plane);
	frequencies = safetensors_find(file, name);
	snprintf(name, sizeof name, "plane.%u.biases", plane);
	biases = safetensors_find(file, name);
	if (!has_shape(frequencies, SAFETENSORS_U16, LEVELS_TABLES * LEVELS_SETS, LEVELS_SYMBOLS) ||
		!has_shape(biases, SAFETENSORS_F32, LEVELS_TABLES * LEVELS_SETS, 2))
		return fault_say(
			-EBADMSG, f.why, f.why_len, "plane %u: tables missing or of another shape", plane);
	memcpy(tables->frequency, frequencies->data, sizeof tables->frequency);
	memcpy(tables->bias, biases->data, sizeof tables->bias);
	for (int table = 0; table < LEVELS_TABLES; table++)
		for (int set = 0; set < LEVELS_SETS; set++) {
			uint32_t sum = 0;

			for (int k = 0; k < LEVELS_SYMBOLS; k++) {
				if (tables->frequency[table][set][k] == 0)
					sum = SLOTS + 1;
				sum += tables->frequency[table][set][k];
			}
			if (sum != SLOTS)
				return fault_say(-EBADMSG, f.why, f.why_len,
					"plane %u, table %d, set %d: frequencies are not over 0 with a sum "
					"of %d",
					plane, table, set, SLOTS);
			for (int k = 0; k < 2; k++)
				if (!(fabsf(tables->bias[table][set][k]) < 1))
					return fault_say(-EBADMSG, f.why, f.why_len,
						"plane %u, table %d, set %d: a bias is not within 1 step",
						plane, table, set);
		}
	return 0;
}

/* Plane-major, then layer order, without gaps, and as many layers in every plane. */
static int check_cover(const struct transform *t, struct fault f)
{
	uint32_t plane = 0, layer = 0, n_layers = 0;

	for (uint32_t i = 0; i < t->n_parts; i++) {
		const struct transform_part *part = &t->parts[i];

		if (part->plane == plane + 1 && layer > 0 && (plane == 0 || layer == n_layers)) {
			n_layers = layer;
			layer = 0;
			plane++;
		}
		if (part->plane != plane || part->first_layer != layer)
			return fault_say(
				-EBADMSG, f.why, f.why_len, "part %u: not the next layer or plane", i);
		layer += part->n_layers;
		if (layer > GEOMETRY_LAYERS_MAX)
			return fault_say(-EBADMSG, f.why, f.why_len, "part %u: more than %d layers", i,
				GEOMETRY_LAYERS_MAX);
	}
	if (plane + 1 != t->n_planes)
		return fault_say(
			-EBADMSG, f.why, f.why_len, "parts of %u planes, not of %u", plane + 1, t->n_planes);
	if (plane > 0 && layer != n_layers)
		return fault_say(-EBADMSG, f.why, f.why_len, "planes have different numbers of layers");
	return 0;
}

static int parse_rungs(const struct safetensors *file, struct transform *t, struct fault f)
{
	const struct safetensor *rungs = safetensors_find(file, "rungs");
	const struct safetensor *steps = safetensors_find(file, "steps");

	if (!rungs || rungs->type != SAFETENSORS_F32 || rungs->n_dims != 1 || rungs->dims[0] == 0 ||
		rungs->dims[0] > TRANSFORM_RUNGS_MAX)
		return fault_say(
			-EBADMSG, f.why, f.why_len, "rungs are missing, or not 1 to %d", TRANSFORM_RUNGS_MAX);
	t->n_rungs = (uint32_t)rungs->dims[0];
	if (!has_shape(steps, SAFETENSORS_F32, 0, t->n_rungs))
		return fault_say(-EBADMSG, f.why, f.why_len, "not one step for each of %u rungs", t->n_rungs);
	memcpy(t->rung_ratio, rungs->data, t->n_rungs * sizeof(float));
	memcpy(t->step, steps->data, t->n_rungs * sizeof(float));
	for (uint32_t i = 0; i < t->n_rungs; i++) {
		if (!isfinite(t->rung_ratio[i]) || t->rung_ratio[i] <= (i ? t->rung_ratio[i - 1] : 0))
			return fault_say(
				-EBADMSG, f.why, f.why_len, "rung %u: ratio is not a number that rises", i);
		/* A normal number that has an inverse. */
		if (!(t->step[i] >= 1e-30f && t->step[i] <= 1e30f) || (i && t->step[i] < t->step[i - 1]))
			return fault_say(-EBADMSG, f.why, f.why_len,
				"rung %u: step is not a number over 0 that rises", i);
	}
	return 0;
}

static void shared_free(struct shared *s)
{
	for (uint32_t i = 0; i < s->transform.n_parts; i++)
		free((void *)s->parts[i].basis);
	free(s);
}

static int parse_file(const struct safetensors *file, struct shared **out, struct fault f)
{
	const char *format = safetensors_metadata(file, "format");
	uint8_t fingerprint[16];
	struct shared *s;
	uint32_t n_parts, n_planes;
	int r;

	if (!format || strcmp(format, FORMAT) != 0)
		return fault_say(-EBADMSG, f.why, f.why_len, "format is not " FORMAT);
	if (parse_hex(safetensors_metadata(file, "fingerprint"), fingerprint) < 0)
		return fault_say(-EBADMSG, f.why, f.why_len, "fingerprint is not 32 hexadecimal digits");
	if (parse_number(safetensors_metadata(file, "n_parts"), PARTS_MAX, &n_parts) < 0 || n_parts == 0)
		return fault_say(-EBADMSG, f.why, f.why_len, "n_parts is not 1 to %d", PARTS_MAX);
	if (parse_number(safetensors_metadata(file, "n_planes"), GEOMETRY_PLANES_MAX, &n_planes) < 0 ||
		n_planes == 0)
		return fault_say(-EBADMSG, f.why, f.why_len, "n_planes is not 1 to %d", GEOMETRY_PLANES_MAX);
	if (safetensors_count(file) !=
		2 + (size_t)n_parts * TENSORS_PER_PART + (size_t)n_planes * TENSORS_PER_PLANE)
		return fault_say(-EBADMSG, f.why, f.why_len,
			"%zu tensors, not those of %u parts and %u planes", safetensors_count(file), n_parts,
			n_planes);
	s = calloc(1, sizeof *s + n_parts * sizeof s->parts[0]);
	if (!s)
		return -ENOMEM;
	s->transform.parts = s->parts;
	s->transform.n_parts = n_parts;
	s->transform.tables = s->tables;
	s->transform.n_planes = n_planes;
	memcpy(s->transform.fingerprint, fingerprint, sizeof fingerprint);
	atomic_init(&s->n_refs, 1);
	r = parse_rungs(file, &s->transform, f);
	for (uint32_t i = 0; i < n_planes && r == 0; i++)
		r = parse_plane(file, i, &s->tables[i], f);
	for (uint32_t i = 0; i < n_parts && r == 0; i++)
		r = parse_part(file, i, &s->parts[i], f);
	if (r == 0)
		r = check_cover(&s->transform, f);
	if (r < 0)
		shared_free(s);
	else
		*out = s;
	return r;
}

int transform_parse(const void *data, size_t len, struct transform **out, char *why, size_t why_len)
{
	struct safetensors *file;
	struct shared *s = NULL;
	XXH128_canonical_t id;
	int r = safetensors_parse(data, len, &file, why, why_len);

	if (r < 0)
		return r;
	r = parse_file(file, &s, (struct fault){why, why_len});
	safetensors_free(file);
	if (r < 0)
		return r;
	XXH128_canonicalFromHash(&id, XXH3_128bits(data, len));
	memcpy(s->transform.id, id.digest, sizeof s->transform.id);
	*out = &s->transform;
	return 0;
}

/* Tensors and metadata on their way to a file. Names and texts live here until it is written. */
struct draft {
	size_t n_tensors, n_texts, n_metadata, n_halves;
	struct safetensor *tensors;
	char (*texts)[PART_NAME_BYTES];
	const char **metadata;
	uint16_t **halves;
};

static int draft_init(struct draft *d, size_t n_parts)
{
	size_t n_tensors = 2 + n_parts * TENSORS_PER_PART + GEOMETRY_PLANES_MAX * TENSORS_PER_PLANE;
	size_t n_pairs = 6 + 3 * n_parts;

	*d = (struct draft){0};
	d->tensors = calloc(n_tensors, sizeof *d->tensors);
	d->texts = calloc(n_tensors + 2 * n_pairs, sizeof *d->texts);
	d->metadata = calloc(2 * n_pairs + 1, sizeof *d->metadata);
	d->halves = calloc(n_parts, sizeof *d->halves);
	return d->tensors && d->texts && d->metadata && d->halves ? 0 : -ENOMEM;
}

static void draft_fini(struct draft *d)
{
	for (size_t i = 0; i < d->n_halves; i++)
		free(d->halves[i]);
	free(d->halves);
	free(d->metadata);
	free(d->texts);
	free(d->tensors);
}

__attribute__((format(printf, 2, 3))) static const char *draft_text(struct draft *d, const char *format, ...)
{
	char *text = d->texts[d->n_texts++];
	va_list args;

	va_start(args, format);
	vsnprintf(text, PART_NAME_BYTES, format, args);
	va_end(args);
	return text;
}

static void draft_metadata(struct draft *d, const char *key, const char *value)
{
	d->metadata[d->n_metadata++] = key;
	d->metadata[d->n_metadata++] = value;
}

/* rows 0: a vector. */
static void draft_tensor(struct draft *d, const char *name, enum safetensors_type type, uint64_t rows,
	uint64_t columns, const void *data)
{
	uint64_t bytes = type == SAFETENSORS_F32 ? 4 : 2;
	struct safetensor *t = &d->tensors[d->n_tensors++];

	*t = (struct safetensor){.name = name, .type = type, .data = data};
	if (rows)
		t->dims[t->n_dims++] = rows;
	t->dims[t->n_dims++] = columns;
	t->len_bytes = (rows ? rows : 1) * columns * bytes;
}

static int draft_part(struct draft *d, const struct transform_part *part, uint32_t i)
{
	size_t r = part->n_components, p = part->n_features;
	uint16_t *half = malloc(r * p * sizeof *half);

	if (!half)
		return -ENOMEM;
	d->halves[d->n_halves++] = half;
	for (size_t k = 0; k < r * p; k++)
		half[k] = half_from_float(part->basis[k]);
	draft_tensor(d, draft_text(d, "part.%u.mean", i), SAFETENSORS_F32, 0, p, part->mean);
	draft_tensor(d, draft_text(d, "part.%u.basis", i), SAFETENSORS_F16, r, p, half);
	draft_tensor(d, draft_text(d, "part.%u.weight", i), SAFETENSORS_F32, 0, p, part->weight);
	draft_tensor(d, draft_text(d, "part.%u.deviation", i), SAFETENSORS_F32, 0, r, part->deviation);
	draft_metadata(d, draft_text(d, "part.%u.plane", i), draft_text(d, "%u", part->plane));
	draft_metadata(d, draft_text(d, "part.%u.first_layer", i), draft_text(d, "%u", part->first_layer));
	draft_metadata(d, draft_text(d, "part.%u.n_layers", i), draft_text(d, "%u", part->n_layers));
	return 0;
}

int transform_serialise(
	const struct transform *t, uint64_t n_calibration_tokens, const char *note, void **data, size_t *len)
{
	char fingerprint[33];
	struct draft d;
	int r = draft_init(&d, t->n_parts);

	if (r < 0)
		goto out;
	for (int i = 0; i < 16; i++)
		snprintf(fingerprint + 2 * i, 3, "%02x", t->fingerprint[i]);
	draft_metadata(&d, "format", FORMAT);
	draft_metadata(&d, "fingerprint", fingerprint);
	draft_metadata(&d, "n_parts", draft_text(&d, "%u", t->n_parts));
	draft_metadata(
		&d, "n_calibration_tokens", draft_text(&d, "%llu", (unsigned long long)n_calibration_tokens));
	if (note)
		draft_metadata(&d, "note", note);
	draft_metadata(&d, "n_planes", draft_text(&d, "%u", t->n_planes));
	draft_tensor(&d, "rungs", SAFETENSORS_F32, 0, t->n_rungs, t->rung_ratio);
	draft_tensor(&d, "steps", SAFETENSORS_F32, 0, t->n_rungs, t->step);
	for (uint32_t i = 0; i < t->n_planes; i++) {
		draft_tensor(&d, draft_text(&d, "plane.%u.frequencies", i), SAFETENSORS_U16,
			LEVELS_TABLES * LEVELS_SETS, LEVELS_SYMBOLS, t->tables[i].frequency);
		draft_tensor(&d, draft_text(&d, "plane.%u.biases", i), SAFETENSORS_F32,
			LEVELS_TABLES * LEVELS_SETS, 2, t->tables[i].bias);
	}
	for (uint32_t i = 0; i < t->n_parts && r == 0; i++)
		r = draft_part(&d, &t->parts[i], i);
	if (r == 0)
		r = safetensors_write(d.tensors, d.n_tensors, d.metadata, data, len);
out:
	draft_fini(&d);
	return r;
}

struct transform *transform_ref(struct transform *t)
{
	/* Nothing is read through the new reference that was not readable through the old one. */
	atomic_fetch_add_explicit(&((struct shared *)t)->n_refs, 1, memory_order_relaxed);
	return t;
}

struct transform *transform_unref(struct transform *t)
{
	struct shared *s = (struct shared *)t;

	/* Release: reads through this reference come before the free; acquire: the one who frees has seen
	 * everybody's release. Pairs with itself. */
	if (s && atomic_fetch_sub_explicit(&s->n_refs, 1, memory_order_acq_rel) == 1)
		shared_free(s);
	return NULL;
}

int transform_fits(const struct transform *t, const struct geometry *g, char *why, size_t why_len)
{
	struct fault f = {why, why_len};
	uint8_t fingerprint[16];
	uint64_t n_layers = 0;

	geometry_fingerprint(g, fingerprint);
	if (memcmp(fingerprint, t->fingerprint, sizeof fingerprint) != 0)
		return fault_say(-EINVAL, f.why, f.why_len, "transform is for another model");
	for (uint32_t i = 0; i < t->n_parts; i++) {
		const struct transform_part *part = &t->parts[i];

		n_layers += part->n_layers;
		if (part->plane >= g->n_planes || t->n_planes != g->n_planes ||
			part->first_layer >= g->n_layers || part->n_layers > g->n_layers - part->first_layer)
			return fault_say(
				-EINVAL, f.why, f.why_len, "part %u: plane or layers out of range", i);
		if (part->n_features != part->n_layers * plane_width(&g->planes[part->plane]))
			return fault_say(-EINVAL, f.why, f.why_len,
				"part %u: %u features, not those of its layers", i, part->n_features);
	}
	/* Parts follow each other without gaps (transform_parse), so counting tells whether all are there. */
	if (n_layers != (uint64_t)g->n_layers * g->n_planes)
		return fault_say(-EINVAL, f.why, f.why_len, "transform lacks layers or planes");
	return 0;
}

uint32_t transform_active(const struct transform_part *part, float step)
{
	uint32_t n = 0;

	while (n < part->n_components && levels_class(part->deviation[n], step) >= LEVELS_CLASS_MIN)
		n++;
	return n;
}

uint32_t transform_rung(const struct transform *t, double ratio)
{
	uint32_t best = 0;

	for (uint32_t i = 1; i < t->n_rungs; i++)
		if (fabs(log(t->rung_ratio[i] / ratio)) < fabs(log(t->rung_ratio[best] / ratio)))
			best = i;
	return best;
}
