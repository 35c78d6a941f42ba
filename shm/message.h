/*
 * Messages: one SOCK_SEQPACKET packet each, a struct wire_header and what follows it, with up to
 * MESSAGE_FDS_MAX descriptors. Both sides use it. Stateless; any thread, one at a time per socket and
 * direction.
 *
 * Time-outs are in milliseconds: -1 waits for ever, 0 does not wait (-EAGAIN), otherwise -ETIMEDOUT.
 */
#ifndef SHM_MESSAGE_H
#define SHM_MESSAGE_H

#include <stddef.h>
#include <stdint.h>

#include "shm/protocol.h"

enum { MESSAGE_FDS_MAX = 4 };

/* Descriptors that came with a message; whoever holds the struct owns them. A taken one is set to -1. */
struct message_fds {
	int fds[MESSAGE_FDS_MAX];
	uint32_t n;
};

/* Fills in a header. len_bytes: of the whole message. */
void message_header(void *message, enum wire_type type, size_t len_bytes);

/* Fills in an error message; the text is cut to fit. status: a negative errno value. */
void message_error(struct wire_error *e, int status, const char *text);

/* Sends len bytes as one message with n_fds descriptors, which stay the caller's. -ENOTCONN: the peer has
 * gone; -EMSGSIZE: over WIRE_MESSAGE_MAX or more than the socket takes; -EINVAL: too many descriptors. */
int message_send(int socket, const void *message, size_t len, const int *fds, uint32_t n_fds, int timeout_ms);

/* Receives one message of at most size bytes. Its descriptors, close-on-exec, go to *fds; with fds NULL, none
 * is wanted and any that came are closed. *len and *fds are written on success only. -ENOTCONN: the peer has
 * gone; -EPROTO: longer than size, or it brought descriptors that could not all be taken (what came is
 * closed). */
int message_receive(
	int socket, void *message, size_t size, size_t *len, struct message_fds *fds, int timeout_ms);

/* Closes what has not been taken. */
void message_fds_close(struct message_fds *fds);

/* Takes descriptor i out of the struct; the caller owns it. -1: there is no such. */
int message_fds_take(struct message_fds *fds, uint32_t i);

/* Whether the received bytes begin with a sound header of this version whose length is len. 0, or -EPROTO
 * with a constant sentence in *why (if not NULL). A WIRE_ERROR passes in any version: its layout is fixed
 * for good, so that a peer of another version can be told why it was turned away. */
int message_check(const void *message, size_t len, const char **why);

/* The type of a message that passed message_check. */
enum wire_type message_type(const void *message);

/* Makes a text field safe to print: ends it with a NUL inside size. */
void message_terminate(char *text, size_t size);

#endif
