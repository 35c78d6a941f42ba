/* Captures of the calibration text that lies with the model, written by the demo engine in a process of its
 * own. The same text as `cistern demo` calibrates on. */
#ifndef BENCH_RATE_CALIBRATION_TEXT_H
#define BENCH_RATE_CALIBRATION_TEXT_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

struct captures {
	size_t n;
	char **paths;
};

/* The same of any text; recall (NULL: none): prompts with records, which every fourth sequence is. */
int text_capture(const char *model, const char *text, const char *recall, const char *folder,
	uint32_t n_sequences, volatile sig_atomic_t *stop, struct captures *out);
/* Writes n_sequences captures of 2048 tokens into folder (which exists) and lists them. -EINTR when *stop was
 * set; -errno, with a sentence or the engine's own words on stderr. */
int calibration_text_capture(const char *model, const char *folder, uint32_t n_sequences,
	volatile sig_atomic_t *stop, struct captures *out);
void captures_fini(struct captures *c);

#endif
