/* Frames: bytes as they come, and frames that are sound on the outside (header, table, checksums) with
 * anything inside, plain and with a transform. Decoding writes inside the chunk's pages and nowhere else. */
#include <stdbool.h>

#include "policy/policy.h"
#include "tests/fuzz/fuzz.h"
#include "tests/runtime/made-up-cache.h"

enum { SECTIONS = 24, BODY_MAX = 4096 };

static struct world *world;
static uint8_t *before;

static size_t memory_bytes(void)
{
	return (size_t)LAYERS * 2 * BLOCKS * BLOCK * WIDTH * sizeof *world->memory;
}

static void decode(const void *frame, size_t len, const struct frame_info *info, uint32_t first, uint32_t n)
{
	struct codec_chunk chunk;

	if (info->n_tokens == 0 || info->n_tokens > TOKENS_MAX)
		return;
	chunk = world_chunk(world, 0, info->n_tokens, info->position);
	(void)codec_decode(world->codec, frame, len, NULL, &chunk, first, n);
	(void)codec_decode(world->codec, frame, len, world->t, &chunk, first, n);
}

static void as_it_comes(const uint8_t *data, size_t len)
{
	struct frame_section sections[64];
	struct frame_info info;

	if (frame_parse(data, len, &info, sections, 64) == 0) {
		REQUIRE(info.len_bytes <= len);
		decode(data, len, &info, 0, LAYERS);
	}
}

static void made_up(struct input *in)
{
	struct frame_section sections[64];
	struct frame_info info = {0}, parsed;
	struct frame_writer w;
	const uint8_t flags = take_u8(in);
	uint8_t *frame;
	size_t len;

	info.n_tokens = flags & 1 ? 32 : take_u16(in) % 300;
	info.n_raw = flags & 2 ? 0 : take_u8(in);
	info.rung = take_u8(in) & 3;
	info.position = (uint64_t)take_u8(in) * 256;
	info.raw_bytes = take_u32(in);
	geometry_fingerprint(&world->g, info.fingerprint);
	if (flags & 4)
		memcpy(info.transform, world->t->id, 16);
	if (frame_writer_init(&w, SECTIONS, 4096))
		return;
	for (int i = 0; i < SECTIONS && in->left; i++) {
		struct frame_section s = {0};
		uint8_t *body;

		s.kind = take_u8(in) % 8;
		s.plane = take_u8(in) & 3;
		s.part = take_u8(in) & 3;
		s.encoding = take_u8(in) & 3;
		s.token_class = take_u8(in) & 7;
		s.full_bytes = take_u16(in);
		s.len_bytes = take_u16(in) % BODY_MAX;
		body = frame_writer_reserve(&w, s.len_bytes);
		if (!body)
			break;
		take(in, body, s.len_bytes);
		if (frame_writer_commit(&w, &s))
			break;
	}
	if (frame_writer_finish(&w, &info, &frame, &len) == 0) {
		if (frame_parse(frame, len, &parsed, sections, 64) == 0)
			decode(frame, len, &parsed, flags >> 4 & 1, flags >> 5 & 3);
		free(frame);
	}
	frame_writer_fini(&w);
}

/* A real frame, with some of its bytes changed; or none, and then it must decode. */
static void spoilt(struct input *in)
{
	const uint8_t classes[TOKENS_MAX] = {TOKEN_SINK, TOKEN_SINK, 0};
	struct codec_chunk chunk = world_chunk(world, 0, 32, 0);
	struct codec_options options = {.transform = take_u8(in) & 1 ? world->t : NULL, .classes = classes};
	const bool whole = !in->left;
	uint8_t *frame;
	size_t len;

	if (codec_encode(world->codec, &chunk, &options, &frame, &len, NULL))
		return;
	while (in->left >= 3)
		frame[take_u16(in) % len] ^= take_u8(in);
	if (whole)
		REQUIRE(codec_decode(world->codec, frame, len, options.transform, &chunk, 0, LAYERS) == 0);
	else
		(void)codec_decode(world->codec, frame, len, options.transform, &chunk, 0, LAYERS);
	free(frame);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct input in = {data, len};

	if (!world) {
		world = world_new(ROPE_HALF);
		before = malloc(memory_bytes());
		REQUIRE(world && before);
		world_fill(world);
		memcpy(before, world->memory, memory_bytes());
	}
	switch (take_u8(&in) % 3) {
	case 0: as_it_comes(in.at, in.left); break;
	case 1: made_up(&in); break;
	default: spoilt(&in); break;
	}
	memcpy(world->memory, before, memory_bytes());
	return 0;
}
