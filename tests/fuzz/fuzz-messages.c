/* Messages on a session's socket: hello, registrations, control, in any order and with any content; some with
 * a sound header put in front, some with descriptors. */
#include <sys/mman.h>
#include <unistd.h>

#include "shm/cistern.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/live-session.h"

enum { LEN_MAX = 2048 };

/* A memfd as engines send, and one that is not sealed. */
static int memory(bool sealed)
{
	static int fds[2] = {-1, -1};
	void *addr;

	if (fds[sealed] < 0 && sealed)
		REQUIRE(cistern_memory_create("fuzz", 1 << 16, &fds[1], &addr) == 0 &&
			munmap(addr, 1 << 16) == 0);
	else if (fds[sealed] < 0)
		fds[0] = memfd_create("fuzz", MFD_CLOEXEC);
	return fds[sealed];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static uint8_t message[LEN_MAX], answer[WIRE_MESSAGE_MAX];
	struct input in = {data, len};
	struct live l;

	live_open(&l);
	while (in.left && !l.session->closed) {
		const uint8_t how = take_u8(&in), type = take_u8(&in);
		const size_t n = take_u16(&in) % LEN_MAX;
		struct message_fds fds = {0};
		const int fd = memory(how >> 4 & 1);

		take(&in, message, n);
		if ((how & 1) && n >= sizeof(struct wire_header))
			message_header(message, (enum wire_type)(type % 12), n);
		/* A namespace that is there, now and then. */
		if ((how & 2) && n >= sizeof(struct wire_hello))
			memcpy(message + sizeof(struct wire_header), "default", 8);
		live_send(&l, message, n, &fd, how >> 2 & 1);
		while (live_answer(&l, answer, sizeof answer, &fds))
			message_fds_close(&fds);
		live_run(&l);
	}
	live_close(&l);
	return 0;
}
