/* What calibration leaves and reads: transforms, .safetensors and .npy files. What is taken for a transform
 * must be written again as the same bytes' worth, and fit in memory that its own header pays for. */
#include "base/safetensors.h"
#include "policy/transform.h"
#include "tests/fuzz/fuzz.h"
#include "tools/npy.h"

static void as_transform(const uint8_t *data, size_t len)
{
	struct transform *t, *again;
	char why[256] = "";
	void *written;
	size_t written_len;

	if (transform_parse(data, len, &t, why, sizeof why)) {
		REQUIRE(why[0]);
		return;
	}
	REQUIRE(t->n_parts && t->n_rungs && t->n_rungs <= TRANSFORM_RUNGS_MAX);
	REQUIRE(transform_serialise(t, 0, NULL, &written, &written_len) == 0);
	REQUIRE(transform_parse(written, written_len, &again, why, sizeof why) == 0);
	REQUIRE(again->n_parts == t->n_parts);
	free(written);
	transform_unref(again);
	transform_unref(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct safetensors *s;
	struct npy npy;
	char why[256];

	as_transform(data, len);
	if (!safetensors_parse(data, len, &s, why, sizeof why)) {
		for (size_t i = 0; i < safetensors_count(s); i++)
			REQUIRE(safetensors_find(s, safetensors_at(s, i)->name));
		safetensors_free(s);
	}
	(void)npy_parse(data, len, &npy, why, sizeof why);
	return 0;
}
