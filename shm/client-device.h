/*
 * Memory and events on a GPU, as libcistern passes them on: bytes that the engine got from its driver, put
 * into messages. Inside libcistern.
 */
#ifndef SHM_CLIENT_DEVICE_H
#define SHM_CLIENT_DEVICE_H

#include "shm/client.h"

/* What a memory's description takes between head and layouts; 0: it is a memfd. -EINVAL, with the sentence
 * kept: parts are missing, too many, or do not add up. */
int64_t client_device_bytes(struct cistern *c, const struct cistern_memory *memory);
/* Writes it to at. fds gets the parts' descriptors, which stay the caller's. */
void client_device_fill(
	const struct cistern_memory *memory, uint8_t *at, int fds[WIRE_PART_FDS_MAX], uint32_t *n_fds);

#endif
