#include "tests/cuda/double/fault.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <mutex>

#include "tests/cuda/double/memory.h"
#include "tests/cuda/double/simt.h"

namespace
{

const int signals[] = {SIGSEGV, SIGBUS, SIGILL};
struct sigaction before[3];

void report(int signal, siginfo_t *info, void *)
{
	uint32_t block[3], thread[3];
	const char *kernel = simt_where(block, thread);
	const bool device = memory_is_device(info->si_addr);
	char line[256];
	int n = 0;

	if (kernel)
		n = snprintf(line, sizeof line,
			"emulated kernel %s, block %u %u %u, thread %u %u %u: ", kernel, block[0], block[1],
			block[2], thread[0], thread[1], thread[2]);
	else if (device)
		n = snprintf(line, sizeof line, "driver double: outside of any kernel: ");
	if (signal == SIGILL && kernel)
		n += snprintf(line + n, sizeof line - static_cast<size_t>(n),
			"an access that is not aligned to its type, at %p\n", info->si_addr);
	else if (n)
		n += snprintf(line + n, sizeof line - static_cast<size_t>(n), "no access to %p%s\n",
			info->si_addr, device ? ", of the device: freed, or never allocated" : "");
	if (n > 0 && write(STDERR_FILENO, line, static_cast<size_t>(n)) < 0)
		_exit(99);
	/* The instruction is tried again, and meets who handled this before. */
	for (int i = 0; i < 3; i++)
		if (signals[i] == signal)
			sigaction(signal, &before[i], nullptr);
}

} // namespace

void fault_arm()
{
	static std::mutex lock;
	std::lock_guard<std::mutex> guard(lock);
	struct sigaction action = {}, now;

	action.sa_sigaction = report;
	action.sa_flags = SA_SIGINFO | SA_ONSTACK;
	for (int i = 0; i < 3; i++) {
		sigaction(signals[i], nullptr, &now);
		if (now.sa_sigaction == report)
			continue;
		before[i] = now;
		sigaction(signals[i], &action, nullptr);
	}
}
