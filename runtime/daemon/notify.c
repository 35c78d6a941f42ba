#include "runtime/daemon/notify.h"

#ifdef HAVE_SYSTEMD
#include <systemd/sd-daemon.h>

void notify_ready(struct notify *n, const char *status)
{
	uint64_t us;

	*n = (struct notify){0};
	if (sd_watchdog_enabled(0, &us) > 0)
		n->watchdog_ms = us / 2000 ? us / 2000 : 1;
	sd_notifyf(0, "READY=1\nSTATUS=%s", status);
}

int notify_alive(struct notify *n, uint64_t now_ms, int timeout_ms)
{
	uint64_t left_ms;

	if (!n->watchdog_ms)
		return timeout_ms;
	if (now_ms >= n->due_ms) {
		sd_notify(0, "WATCHDOG=1");
		n->due_ms = now_ms + n->watchdog_ms;
	}
	left_ms = n->due_ms - now_ms;
	return timeout_ms < 0 || (uint64_t)timeout_ms > left_ms ? (int)left_ms : timeout_ms;
}

void notify_stopping(void)
{
	sd_notify(0, "STOPPING=1");
}
#else
void notify_ready(struct notify *n, const char *status)
{
	(void)status;
	*n = (struct notify){0};
}

int notify_alive(struct notify *n, uint64_t now_ms, int timeout_ms)
{
	(void)n;
	(void)now_ms;
	return timeout_ms;
}

void notify_stopping(void)
{
}
#endif
