/* The demo's prompts, made from held-out text and the recall prompts of the model's folder: long documents
 * with their true continuation, and records to be asked for from far away. */
#ifndef TOOLS_DEMO_PROMPTS_H
#define TOOLS_DEMO_PROMPTS_H

#include <stddef.h>
#include <stdint.h>

/* Writes n_texts + n_recalls prompts as a .jsonl file for cistern-engine; the longest comes first. -errno. */
int demo_prompts_write(const char *model_folder, const char *path, uint32_t n_texts, uint32_t n_recalls);

#endif
