#include "runtime/stats/exporter.h"

#include <errno.h>
#include <microhttpd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/address.h"
#include "base/log.h"
#include "runtime/stats/metrics.h"

enum { CONNECTIONS_MAX = 16, TIMEOUT_S = 5 };

struct exporter {
	struct MHD_Daemon *http;
	struct stats_view view;
	struct address address;
};

static enum MHD_Result answer(struct MHD_Connection *connection, unsigned status, const char *type,
	char *text, size_t len, enum MHD_ResponseMemoryMode mode)
{
	struct MHD_Response *response = MHD_create_response_from_buffer(len, text, mode);
	enum MHD_Result r = MHD_NO;

	if (!response) {
		if (mode == MHD_RESPMEM_MUST_FREE)
			free(text);
		return r;
	}
	if (MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type) == MHD_YES)
		r = MHD_queue_response(connection, status, response);
	MHD_destroy_response(response);
	return r;
}

static enum MHD_Result answer_text(struct MHD_Connection *connection, unsigned status, const char *text)
{
	return answer(connection, status, "text/plain; charset=utf-8", (char *)text, strlen(text),
		MHD_RESPMEM_PERSISTENT);
}

static enum MHD_Result answer_metrics(struct exporter *e, struct MHD_Connection *connection)
{
	struct stats_snapshot s = {0};
	char *text;
	size_t len;
	int r = stats_snapshot_take(&e->view, &s);

	if (!r)
		r = metrics_text(&e->view, &s, &text, &len);
	stats_snapshot_fini(&s);
	if (r)
		return answer_text(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
	return answer(connection, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", text, len,
		MHD_RESPMEM_MUST_FREE);
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *url,
	const char *method, const char *version, const char *upload, size_t *upload_len, void **state)
{
	static int seen;

	(void)version;
	(void)upload;
	/* Once when the headers are there, for every piece of a body, and once at the end: only then an
	 * answer. */
	if (!*state) {
		*state = &seen;
		return MHD_YES;
	}
	if (*upload_len) {
		*upload_len = 0;
		return MHD_YES;
	}
	if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
		return answer_text(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET\n");
	if (strcmp(url, "/metrics") != 0)
		return answer_text(connection, MHD_HTTP_NOT_FOUND, "cisternd: the metrics are at /metrics\n");
	return answer_metrics(arg, connection);
}

int exporter_new(const char *address, int page, struct exporter **out)
{
	struct exporter *e = calloc(1, sizeof *e);
	char reason[160];
	const char *why = reason;
	sigset_t all, old;
	int fd = -1, r;

	if (!e)
		return -ENOMEM;
	r = address_parse(address, &e->address, reason, sizeof reason);
	if (!r) {
		r = address_listen(&e->address, 0660, &fd);
		why = strerror(-r);
	}
	if (!r) {
		r = stats_view_map(page, &e->view, &why);
		if (r && r != -EPROTO)
			why = strerror(-r);
	}
	if (r)
		goto fail;
	/* Signals are the front thread's; the library's thread inherits the mask. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	e->http = MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_ITC, 0, NULL, NULL, on_request,
		e, MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS_MAX,
		MHD_OPTION_CONNECTION_TIMEOUT, TIMEOUT_S, MHD_OPTION_END);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!e->http) {
		r = -EIO;
		why = "the HTTP server did not start";
		goto fail;
	}
	log_info("metrics on %s", address);
	*out = e;
	return 0;
fail:
	log_error("metrics on %s: %s", address, why);
	if (fd >= 0)
		close(fd);
	exporter_free(e);
	return r;
}

struct exporter *exporter_free(struct exporter *e)
{
	if (!e)
		return NULL;
	if (e->http) {
		MHD_stop_daemon(e->http); /* closes the socket too */
		if (e->address.any.sa_family == AF_UNIX)
			unlink(e->address.local.sun_path);
	}
	stats_view_fini(&e->view);
	free(e);
	return NULL;
}
