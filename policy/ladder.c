#include "policy/ladder.h"

#include <math.h>

enum {
	/* docs/frame-format.md: header, class map; of each part its section and the states of its lanes. */
	FRAME_BYTES = 192 + 40 + 8,
	PART_BYTES = 40 + 4 * 32,
	BAND = 16, /* components that share a byte */
};

void ladder_at(const struct ladder_part *parts, size_t n_parts, uint32_t chunk_tokens, double step,
	struct ladder_point *point)
{
	double bits = 0, bytes = FRAME_BYTES;

	for (size_t i = 0; i < n_parts; i++) {
		const struct ladder_part *part = &parts[i];
		double lost = 0;
		uint32_t coded = 0;

		for (uint32_t k = 0; k < part->n_components; k++) {
			const double deviation = (double)part->deviation[k];

			coded += levels_class(part->deviation[k], (float)step) >= LEVELS_CLASS_MIN;
			bits += levels_model_bits(part->model, deviation, step);
			lost += levels_model_distortion(part->model, deviation, step);
		}
		bytes += PART_BYTES + (coded + BAND - 1) / BAND;
		if (point->lost)
			point->lost[i] = lost;
		if (point->coded)
			point->coded[i] = coded;
	}
	point->bits = bits + 8 * bytes / chunk_tokens;
}

double ladder_step(const struct ladder_part *parts, size_t n_parts, uint32_t chunk_tokens, double bits)
{
	struct ladder_point point = {0};
	double largest = 1e-20, low, high;

	for (size_t i = 0; i < n_parts; i++)
		if (parts[i].n_components && (double)parts[i].deviation[0] > largest)
			largest = (double)parts[i].deviation[0];
	high = log(4 * largest);
	low = log(largest) - 20;
	while (high - low > 1e-3) {
		const double middle = (low + high) / 2;

		ladder_at(parts, n_parts, chunk_tokens, exp(middle), &point);
		if (point.bits > bits)
			low = middle;
		else
			high = middle;
	}
	return exp(high);
}
