/*
 * Tells the service manager how the daemon does, by sd_notify(3): ready, alive (the watchdog), stopping.
 * Outside of systemd, or built without libsystemd, every call does nothing. Front thread.
 */
#ifndef RUNTIME_DAEMON_NOTIFY_H
#define RUNTIME_DAEMON_NOTIFY_H

#include <stdint.h>

struct notify {
	uint64_t watchdog_ms; /* half of what the manager allows; 0: it keeps no watchdog */
	uint64_t due_ms;
};

/* Ready, with a line for `systemctl status`; and asks whether there is a watchdog. */
void notify_ready(struct notify *n, const char *status);
/* To be called once a round, before the loop sleeps for up to timeout_ms (-1: for ever): gives the sign of
 * life when it is due. Returns the time-out with which the next one comes in time. */
int notify_alive(struct notify *n, uint64_t now_ms, int timeout_ms);
void notify_stopping(void);

#endif
