#include "tools/operate/doctor.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "kernels/kernels.h"
#include "shm/cistern.h"
#include "shm/message.h"
#include "tools/operate/ask.h"

enum {
	PINGS = 2000,
	DISK_BYTES = 64 << 20,
	DISK_BLOCK = 1 << 20,
	TMPFS_MAGIC_NUMBER = 0x01021994, /* linux/magic.h */
};

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static __attribute__((format(printf, 3, 4))) void say(
	struct doctor_verdict *v, enum doctor_grade grade, const char *format, ...)
{
	va_list args;

	v->grade = grade;
	va_start(args, format);
	vsnprintf(v->found, sizeof v->found, format, args);
	va_end(args);
}

static __attribute__((format(printf, 2, 3))) void advise(struct doctor_verdict *v, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(v->advice, sizeof v->advice, format, args);
	va_end(args);
}

/* What matters is what the kernel does, not what it is called: seals are tried. */
void doctor_kernel(struct doctor_verdict *v)
{
	struct utsname name;
	const int fd = memfd_create("cistern-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	const bool seals = fd >= 0 && !ftruncate(fd, 4096) &&
			   !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE);

	v->subject = "kernel";
	uname(&name);
	if (fd >= 0)
		close(fd);
	say(v, seals ? DOCTOR_GOOD : DOCTOR_BAD, "%s %s, sealed memory %s", name.sysname, name.release,
		seals ? "works" : "does not work");
	if (!seals)
		advise(v, "Linux 5.1 or later is needed, with memfd_create");
}

void doctor_cpu(struct doctor_verdict *v)
{
	const struct kernels *k = kernels_cpu();
	const bool fast = strstr(k->name, "avx") != NULL;

	v->subject = "cpu";
	say(v, fast ? DOCTOR_GOOD : DOCTOR_SLOW, "%ld CPUs, kernels %s", sysconf(_SC_NPROCESSORS_ONLN),
		k->name);
	if (!fast)
		advise(v, "without AVX2 encoding and decoding take several times as long");
}

/* A number of a file of lines "Name:  N kB", in bytes; 0: it is not there. */
static uint64_t meminfo(const char *name)
{
	FILE *f = fopen("/proc/meminfo", "re");
	unsigned long long kib = 0;
	char line[128];
	const size_t len = strlen(name);

	while (f && fgets(line, sizeof line, f))
		if (!strncmp(line, name, len) && line[len] == ':')
			sscanf(line + len + 1, "%llu", &kib);
	if (f)
		fclose(f);
	return kib << 10;
}

void doctor_memory(struct doctor_verdict *v, uint64_t pool_bytes)
{
	const uint64_t available = meminfo("MemAvailable");
	char huge[64] = "", a[32], b[32];
	FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");

	v->subject = "memory";
	if (f) {
		if (!fgets(huge, sizeof huge, f))
			huge[0] = 0;
		fclose(f);
	}
	say(v, DOCTOR_GOOD, "%s available for a pool of %s, transparent huge pages %s",
		ask_bytes((double)available, a), ask_bytes((double)pool_bytes, b),
		strstr(huge, "[never]") ? "off"
		: huge[0]               ? "on"
					: "unknown");
	if (available < pool_bytes) {
		v->grade = DOCTOR_BAD;
		advise(v, "make [pool] size smaller, or the kernel will kill somebody when the pool fills");
	} else if (strstr(huge, "[never]")) {
		v->grade = DOCTOR_SLOW;
		advise(v, "disk I/O from small pages runs at a third of the speed: echo madvise > "
			  "/sys/kernel/mm/transparent_hugepage/enabled");
	}
}

void doctor_memlock(struct doctor_verdict *v, uint64_t pool_bytes)
{
	struct rlimit limit;
	char a[32];

	v->subject = "memlock";
	getrlimit(RLIMIT_MEMLOCK, &limit);
	if (geteuid() == 0 || limit.rlim_cur == RLIM_INFINITY) {
		say(v, DOCTOR_GOOD, "%s", geteuid() == 0 ? "root may lock all memory" : "no limit");
		return;
	}
	say(v, limit.rlim_cur > pool_bytes ? DOCTOR_GOOD : DOCTOR_SLOW, "%s may be locked",
		ask_bytes((double)limit.rlim_cur, a));
	if (limit.rlim_cur <= pool_bytes)
		advise(v, "the pool cannot be registered with io_uring, which costs some speed: raise "
			  "LimitMEMLOCK "
			  "in the unit, or ulimit -l");
}

void doctor_io_uring(struct doctor_verdict *v)
{
	struct io_uring ring;
	const int r = io_uring_queue_init(8, &ring, 0);

	v->subject = "io_uring";
	if (!r) {
		io_uring_queue_exit(&ring);
		say(v, DOCTOR_GOOD, "works");
		return;
	}
	say(v, DOCTOR_SLOW, "refused: %s", strerror(-r));
	advise(v, "the store falls back to pread and pwrite: allow it in the container's seccomp profile, "
		  "and see "
		  "/proc/sys/kernel/io_uring_disabled");
}

/* As the daemon will: by name, at run time. */
void doctor_driver(struct doctor_verdict *v)
{
	void *cuda = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	int (*init)(unsigned) = NULL;
	int (*version)(int *) = NULL;
	int n = 0, r;

	v->subject = "driver";
	/* The form that dlsym(3) gives for functions. */
	if (cuda) {
		*(void **)&init = dlsym(cuda, "cuInit");
		*(void **)&version = dlsym(cuda, "cuDriverGetVersion");
	}
	if (!init) {
		say(v, DOCTOR_GOOD, "no CUDA driver: the host backend, engines share their cache in memory");
		return;
	}
	r = init(0);
	if (version)
		version(&n);
	if (r) {
		say(v, DOCTOR_SLOW, "a CUDA driver that does not start (error %d)", r);
		advise(v, "the host backend will be used; nvidia-smi may say what is wrong with the driver");
	} else {
		say(v, DOCTOR_GOOD, "CUDA driver %d.%d", n / 1000, n % 1000 / 10);
	}
}

/* ---- IPC ---- */

/* The other process: takes the memory, adds 1 to what is there for each ping. */
static int answer_pings(int socket)
{
	struct wire_header header;
	struct message_fds fds;
	uint64_t *shared;
	size_t len;
	char c;

	if (message_receive(socket, &header, sizeof header, &len, &fds, 5000) || fds.n != 1)
		return 1;
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fds.fds[0], 0);
	if (shared == MAP_FAILED)
		return 2;
	while (recv(socket, &c, 1, 0) == 1) {
		++*shared;
		if (send(socket, &c, 1, MSG_NOSIGNAL) != 1)
			return 3;
	}
	return 0;
}

/* Pings until all are answered; the time of one way in seconds, or a negative -errno. */
static double ping(int socket, const volatile uint64_t *shared)
{
	const double start_s = now_s();
	char c = 1;

	for (uint64_t i = 1; i <= PINGS; i++)
		if (send(socket, &c, 1, MSG_NOSIGNAL) != 1 || recv(socket, &c, 1, 0) != 1 || *shared != i)
			return -EPROTO;
	return (now_s() - start_s) / (2 * PINGS);
}

void doctor_ipc(struct doctor_verdict *v)
{
	struct wire_header header;
	int sockets[2] = {-1, -1}, fd = -1, status = -1;
	void *shared = NULL;
	double one_way_s = -1;
	pid_t pid;

	v->subject = "ipc";
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) ||
		cistern_memory_create("cistern-doctor", 4096, &fd, &shared)) {
		say(v, DOCTOR_BAD, "no shared memory or sockets: %s", strerror(errno));
		advise(v, "the sandbox that this runs in forbids what engines and daemon need of each other");
		return;
	}
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		close(sockets[0]);
		_exit(answer_pings(sockets[1]));
	}
	close(sockets[1]);
	message_header(&header, WIRE_HELLO, sizeof header);
	if (pid > 0 && !message_send(sockets[0], &header, sizeof header, &fd, 1, 5000))
		one_way_s = ping(sockets[0], shared);
	close(sockets[0]);
	if (pid > 0)
		waitpid(pid, &status, 0);
	munmap(shared, 4096);
	close(fd);
	if (one_way_s < 0 || status) {
		say(v, DOCTOR_BAD, "two processes could not share memory");
		advise(v, "descriptors do not pass between processes here: see the sandbox's rules");
	} else {
		say(v, DOCTOR_GOOD, "two processes share memory and wake each other in %.1f us",
			one_way_s * 1e6);
	}
}

/* ---- disk ---- */

/* Bytes a second, or a negative -errno. */
static double run_through(int fd, void *block, bool writing)
{
	const double start_s = now_s();

	for (off_t at = 0; at < DISK_BYTES; at += DISK_BLOCK) {
		const ssize_t n =
			writing ? pwrite(fd, block, DISK_BLOCK, at) : pread(fd, block, DISK_BLOCK, at);

		if (n != DISK_BLOCK)
			return n < 0 ? -errno : -EIO;
	}
	if (writing && fdatasync(fd))
		return -errno;
	return DISK_BYTES / (now_s() - start_s);
}

void doctor_disk(struct doctor_verdict *v, const char *folder)
{
	char path[512], a[32], b[32];
	struct statfs fs;
	void *block = NULL;
	double written = -EIO, read = -EIO;
	bool direct = true;
	int fd;

	v->subject = "disk";
	snprintf(path, sizeof path, "%s/.cistern-doctor-%d", folder, (int)getpid());
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_DIRECT, 0600);
	if (fd < 0 && errno == EINVAL) {
		direct = false;
		fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	}
	if (fd < 0 || posix_memalign(&block, 4096, DISK_BLOCK)) {
		say(v, DOCTOR_BAD, "%s: %s", folder, strerror(errno));
		advise(v, "the folder of [store] must be there and writable by the daemon's user");
		if (fd >= 0)
			close(fd);
		return;
	}
	memset(block, 0x5a, DISK_BLOCK);
	written = run_through(fd, block, true);
	if (written > 0)
		read = run_through(fd, block, false);
	unlink(path);
	if (fstatfs(fd, &fs))
		memset(&fs, 0, sizeof fs);
	close(fd);
	free(block);
	if (written < 0 || read < 0) {
		say(v, DOCTOR_BAD, "%s: %s", folder, strerror((int)-(written < 0 ? written : read)));
		advise(v, "%s",
			written == -ENOSPC ? "make room on the disk" : "see the kernel's log for the disk");
		return;
	}
	say(v, DOCTOR_GOOD, "%s: writes %s/s, reads %s/s%s", folder, ask_bytes(written, a),
		ask_bytes(read, b), direct ? "" : ", through the page cache");
	if (fs.f_type == TMPFS_MAGIC_NUMBER) {
		v->grade = DOCTOR_SLOW;
		advise(v, "this is memory (tmpfs): nothing on it survives a restart of the machine");
	} else if (!direct) {
		v->grade = DOCTOR_SLOW;
		advise(v, "the file system does not do O_DIRECT: chunks are copied once more, and crowd the "
			  "page cache");
	} else if (read < 200e6) {
		v->grade = DOCTOR_SLOW;
		advise(v, "restoring from this disk may take longer than computing: measure with cistern "
			  "bench store");
	}
}

/* ---- the daemon ---- */

void doctor_daemon(struct doctor_verdict *v, const char *socket)
{
	char *answer = NULL;
	json_t *status;
	const char *version;
	const int r = cistern_control(socket, "{\"command\":\"status\"}", &answer, 2000);

	v->subject = "daemon";
	if (r) {
		say(v, r == -EACCES ? DOCTOR_SLOW : DOCTOR_BAD, "%s", cistern_error(NULL));
		if (r == -ENOENT || r == -ECONNREFUSED)
			advise(v, "start it (systemctl start cistern, or cisternd --config FILE), or name "
				  "its socket with "
				  "--socket or $CISTERN_SOCKET");
		else if (r == -EACCES)
			advise(v, "it runs; ask as root or as the daemon's own user");
		return;
	}
	status = json_loads(answer, 0, NULL);
	free(answer);
	version = ask_text(status, "version");
	say(v, strcmp(version, CISTERN_VERSION) ? DOCTOR_SLOW : DOCTOR_GOOD, "version %s answers", version);
	if (v->grade)
		advise(v, "this command is of version " CISTERN_VERSION
			  ": restart the daemon after an upgrade");
	json_decref(status);
}
