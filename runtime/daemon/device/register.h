/*
 * What a session registers that lies on the GPU: memory and events. They are opened and closed on the
 * session's lane, which begins with the first of them; the session's messages wait meanwhile, since answers
 * come in order. Front thread.
 */
#ifndef RUNTIME_DAEMON_DEVICE_REGISTER_H
#define RUNTIME_DAEMON_DEVICE_REGISTER_H

#include "runtime/daemon/session.h"
#include "shm/message.h"

/* Answers now or later. rest, len: the message behind its head. fds: taken as far as they are used. slot: of
 * the session's memories, free. */
void device_register_memory(struct session *s, const struct model *model,
	const struct wire_register_memory *head, const uint8_t *rest, size_t len, struct message_fds *fds,
	uint32_t slot);
/* Takes over the last reference of a mapping that no request uses, and answers when it is closed. */
void device_unregister_memory(struct session *s, struct mapping *m, uint32_t id);

/* The whole messages. */
void device_register_events(struct session *s, const uint8_t *message, size_t len);
void device_unregister_events(struct session *s, const uint8_t *message, size_t len);
/* A request has ended: goes on with what waits for it. */
void device_request_ended(struct session *s);

/* The session closes: everything of it is closed too, as soon as what is under way has ended. */
void device_session_closed(struct session *s);

#endif
