/* The size of the pool on the GPU, changed by an operator. */
#include "runtime/daemon/control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/attach.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/device/gpu.h"
#include "runtime/daemon/device/pool.h"

/* The answer that waits for the change. */
struct resizing {
	struct session *session;
	struct daemon *daemon;
	uid_t uid;
	uint64_t wanted_bytes;
};

static void resized(void *arg, int status, uint64_t size_bytes)
{
	struct resizing *r = arg;
	struct session *s = r->session;
	char text[160];

	if (status)
		snprintf(text, sizeof text,
			"the pool on the GPU has %llu MiB now, not the %llu asked for: %s",
			(unsigned long long)size_bytes >> 20, (unsigned long long)r->wanted_bytes >> 20,
			status == -ENOMEM ? "the GPU has no more to give" : strerror(-status));
	else
		snprintf(text, sizeof text, "the pool on the GPU has %llu MiB now",
			(unsigned long long)size_bytes >> 20);
	events_add(r->daemon->events, EVENT_CACHE, r->uid, NULL, "%s", text);
	attach_answer(s, status ? control_failure(text)
				: json_pack("{s:b, s:I}", "ok", 1, "size_bytes", (json_int_t)size_bytes));
	free(r);
	session_request_ended(s);
}

json_t *control_pool_resize(struct daemon *d, uid_t uid, const json_t *request)
{
	const json_t *bytes = json_object_get(request, "bytes");
	struct device_pool *pool = d->gpu ? d->gpu->pool : NULL;
	struct resizing *r;
	char why[160];
	int status;

	if (!json_is_integer(bytes) || json_integer_value(bytes) < 0)
		return control_failure("pool-resize needs \"bytes\"");
	if (!pool)
		return control_failure(
			"the daemon uses no GPU, and the pool in RAM has the size that it was started with");
	r = calloc(1, sizeof *r);
	if (!r)
		return NULL;
	*r = (struct resizing){.session = d->asking,
		.daemon = d,
		.uid = uid,
		.wanted_bytes = (uint64_t)json_integer_value(bytes)};
	status = device_pool_resize(pool, r->wanted_bytes, resized, r);
	if (status) {
		free(r);
		snprintf(why, sizeof why,
			status == -EBUSY ? "the size is being changed already"
					 : "the pool on the GPU has 0 or whole slabs of %llu MiB, up to the "
					   "GPU's memory",
			(unsigned long long)device_pool_slab_bytes(pool) >> 20);
		return control_failure(why);
	}
	d->asking->n_requests++;
	d->asking = NULL;
	return NULL;
}
