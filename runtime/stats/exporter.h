/*
 * The exporter: answers GET /metrics over HTTP on a loopback port or a unix socket (libmicrohttpd). Its one
 * thread reads the statistics page as any watcher does, so that scraping touches nothing of the front
 * thread's. Started and stopped by the front thread.
 */
#ifndef RUNTIME_STATS_EXPORTER_H
#define RUNTIME_STATS_EXPORTER_H

struct exporter;

/* address: as address_parse takes it. page: the statistics page, duplicated. Says why in the log and returns
 * -errno when it cannot. */
int exporter_new(const char *address, int page, struct exporter **out);
/* Stops listening, lets answers under way end. NULL is fine. Returns NULL. */
struct exporter *exporter_free(struct exporter *e);

#endif
