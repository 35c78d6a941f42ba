/* Configuration files: any bytes are refused with a sentence, or make a configuration that could be used. */
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/config.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static struct config c, before;
	char path[64], why[512] = "";
	const int fd = memfd_create("config", MFD_CLOEXEC);
	int r;

	REQUIRE(fd >= 0 && write(fd, data, len) == (ssize_t)len);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	config_init(&c);
	before = c;
	r = config_load(path, &c, why, sizeof why);
	close(fd);
	if (r) {
		REQUIRE(why[0] && !strchr(why, '\n'));
		REQUIRE(memcmp(&c, &before, sizeof c) == 0);
		return 0;
	}
	REQUIRE(c.socket[0] && c.chunk_tokens && c.n_namespaces >= 1);
	REQUIRE(c.store_bytes / 4 >= c.segment_bytes);
	REQUIRE(policy_check(&c.policy, why, sizeof why) == 0);
	return 0;
}
