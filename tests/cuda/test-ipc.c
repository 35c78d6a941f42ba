/*
 * Two processes with one device: what the daemon and an engine do to each other. This program starts itself
 * as the owner of memory and events, and speaks with it over a socket: handles and descriptors one way,
 * one-letter commands the other. On a GPU it tests that the driver behaves as we believe, under the double
 * that the double does, and that nothing is left when a process dies.
 */
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cuda/gpu.h"

extern char **environ;

enum { LEN = 1 << 20, PIECE = 2 << 20 };

static struct device *device;
static const struct cuda_driver *cu;

/* What the owner sends first; the descriptor of a VMM allocation comes with it. */
struct greeting {
	CUipcMemHandle memory;
	uint64_t offset; /* of what is meant in the allocation */
	CUipcEventHandle written;
};

static void must(CUresult result)
{
	if (result == CUDA_SUCCESS)
		return;
	fprintf(stderr, "owner: %s\n", driver_error_name(result));
	_exit(3);
}

static CUmemAllocationProp piece_properties(void)
{
	return (CUmemAllocationProp){
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = {CU_MEM_LOCATION_TYPE_DEVICE, device_ordinal(device)},
	};
}

static CUdeviceptr map_piece(CUmemGenericAllocationHandle handle)
{
	const CUmemAccessDesc access = {piece_properties().location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	CUdeviceptr at;

	must(cu->cuMemAddressReserve(&at, PIECE, 0, 0, 0));
	must(cu->cuMemMap(at, PIECE, 0, handle, 0));
	must(cu->cuMemSetAccess(at, PIECE, &access, 1));
	return at;
}

static void unmap_piece(CUdeviceptr at)
{
	must(cu->cuMemUnmap(at, PIECE));
	must(cu->cuMemAddressFree(at, PIECE));
}

static void send_greeting(int to, const struct greeting *g, int fd)
{
	struct iovec bytes = {(void *)(uintptr_t)g, sizeof *g};
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct msghdr message = {.msg_iov = &bytes,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control};

	control.head = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
	if (sendmsg(to, &message, 0) != sizeof *g)
		_exit(4);
}

static void wait_a_little(void *arg)
{
	(void)arg;
	usleep(100000);
}

/* Commands. w: after 100 ms of other work, fill the memory with 7 and record `written`; d: destroy `written`;
 * each is answered, with its letter, when it is queued. x, and an event's handle: read the memory's first
 * byte when that event has fired, which is the answer. */
static int own(int socket)
{
	const CUmemAllocationProp prop = piece_properties();
	CUmemGenericAllocationHandle piece;
	CUipcEventHandle other;
	CUevent written, theirs = NULL;
	struct greeting g = {.offset = 4096};
	unsigned char byte = 0;
	CUdeviceptr memory, at;
	CUstream stream;
	char command;
	int fd;

	must(cu->cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0));
	must(cu->cuMemAlloc(&memory, LEN));
	must(cu->cuMemsetD8Async(memory, 1, LEN, stream));
	must(cu->cuIpcGetMemHandle(&g.memory, memory));
	must(cu->cuEventCreate(&written, CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING));
	must(cu->cuIpcGetEventHandle(&g.written, written));
	must(cu->cuMemCreate(&piece, PIECE, &prop, 0));
	at = map_piece(piece);
	must(cu->cuMemsetD8Async(at, 2, PIECE, stream));
	must(cu->cuStreamSynchronize(stream));
	must(cu->cuMemExportToShareableHandle(&fd, piece, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	must(cu->cuMemRelease(piece));
	send_greeting(socket, &g, fd);
	close(fd);
	while (recv(socket, &command, 1, 0) == 1) {
		switch (command) {
		case 'w':
			must(cu->cuLaunchHostFunc(stream, wait_a_little, NULL));
			must(cu->cuMemsetD8Async(memory, 7, LEN, stream));
			must(cu->cuEventRecord(written, stream));
			break;
		case 'd': must(cu->cuEventDestroy(written)); break;
		case 'x':
			if (recv(socket, &other, sizeof other, MSG_WAITALL) != sizeof other)
				return 5;
			if (!theirs)
				must(cu->cuIpcOpenEventHandle(&theirs, other));
			must(cu->cuStreamWaitEvent(stream, theirs, 0));
			must(cu->cuMemcpyDtoHAsync(&byte, memory, 1, stream));
			must(cu->cuStreamSynchronize(stream));
			command = (char)byte;
			break;
		default: return 6;
		}
		if (send(socket, &command, 1, 0) != 1)
			return 7;
	}
	return 0;
}

struct owner {
	pid_t pid;
	int socket, fd;
	struct greeting greeting;
};

static void start_owner(struct owner *o)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec bytes = {&o->greeting, sizeof o->greeting};
	struct msghdr message = {.msg_iov = &bytes,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control};
	posix_spawn_file_actions_t actions;
	char *argv[] = {"test-ipc", "own", NULL};
	int ends[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, ends[1], 0);
	assert_int_equal(posix_spawn(&o->pid, "/proc/self/exe", &actions, NULL, argv, environ), 0);
	posix_spawn_file_actions_destroy(&actions);
	close(ends[1]);
	o->socket = ends[0];
	assert_int_equal(recvmsg(o->socket, &message, MSG_WAITALL | MSG_CMSG_CLOEXEC), sizeof o->greeting);
	assert_int_equal(control.head.cmsg_type, SCM_RIGHTS);
	memcpy(&o->fd, CMSG_DATA(&control.head), sizeof o->fd);
}

static int command(const struct owner *o, char letter)
{
	unsigned char answer;

	assert_int_equal(send(o->socket, &letter, 1, 0), 1);
	assert_int_equal(recv(o->socket, &answer, 1, 0), 1);
	return answer;
}

static void end_owner(struct owner *o, bool killed)
{
	int status;

	if (killed)
		kill(o->pid, SIGKILL);
	close(o->socket);
	close(o->fd);
	assert_int_equal(waitpid(o->pid, &status, 0), o->pid);
	assert_int_equal(killed ? WTERMSIG(status) : status, killed ? SIGKILL : 0);
}

static uint64_t taken(void)
{
	struct double_counts counts;

	if (!gpu_double(device))
		return 0;
	gpu_double(device)->counts(&counts);
	return counts.taken_bytes;
}

static unsigned char byte_at(CUdeviceptr at)
{
	unsigned char byte = 0;

	assert_int_equal(cu->cuMemcpyDtoHAsync(&byte, at, 1, NULL), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamSynchronize(NULL), CUDA_SUCCESS);
	return byte;
}

/* Memory by handle and by descriptor; its owner's event orders our stream after its work. */
static void memory_and_event_of_another(void **state)
{
	const uint64_t before = taken();
	CUmemGenericAllocationHandle piece;
	CUdeviceptr memory, again, at;
	struct owner o;
	CUevent written;
	unsigned char *seen;
	CUstream stream;

	(void)state;
	start_owner(&o);
	assert_int_equal(cu->cuMemHostAlloc((void **)&seen, 1, 0), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
	assert_int_equal(
		cu->cuIpcOpenMemHandle(&memory, o.greeting.memory, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS),
		CUDA_SUCCESS);
	/* A second time: the same mapping, to be closed as often. */
	assert_int_equal(
		cu->cuIpcOpenMemHandle(&again, o.greeting.memory, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS),
		CUDA_SUCCESS);
	assert_int_equal(again, memory);
	assert_int_equal(cu->cuIpcCloseMemHandle(memory), CUDA_SUCCESS);
	assert_int_equal(byte_at(memory + LEN - 1), 1);
	assert_int_equal(cu->cuMemImportFromShareableHandle(
				 &piece, (void *)(intptr_t)o.fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
		CUDA_SUCCESS);
	at = map_piece(piece);
	assert_int_equal(cu->cuMemRelease(piece), CUDA_SUCCESS);
	assert_int_equal(byte_at(at + PIECE - 1), 2);
	if (gpu_double(device))
		assert_int_equal(taken(), before + LEN + PIECE);

	assert_int_equal(cu->cuIpcOpenEventHandle(&written, o.greeting.written), CUDA_SUCCESS);
	assert_int_equal(command(&o, 'w'), 'w');
	assert_int_equal(cu->cuEventQuery(written), CUDA_ERROR_NOT_READY);
	assert_int_equal(cu->cuStreamWaitEvent(stream, written, 0), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemcpyDtoHAsync(seen, memory + LEN / 2, 1, stream), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamSynchronize(stream), CUDA_SUCCESS);
	assert_int_equal(*seen, 7);
	assert_int_equal(cu->cuEventDestroy(written), CUDA_SUCCESS);
	assert_int_equal(cu->cuIpcCloseMemHandle(memory), CUDA_SUCCESS);
	assert_int_not_equal(cu->cuIpcCloseMemHandle(memory), CUDA_SUCCESS);
	unmap_piece(at);
	end_owner(&o, false);
	assert_int_equal(taken(), before);
	assert_int_equal(cu->cuStreamDestroy(stream), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemFreeHost(seen), CUDA_SUCCESS);
}

/* The other way: the owner's stream waits for our work on its memory. */
static void event_of_ours(void **state)
{
	CUipcEventHandle handle;
	CUdeviceptr memory;
	struct owner o;
	CUevent done;
	CUstream stream;
	char letter = 'x';
	unsigned char answer;

	(void)state;
	start_owner(&o);
	assert_int_equal(cu->cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
	assert_int_equal(
		cu->cuIpcOpenMemHandle(&memory, o.greeting.memory, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS),
		CUDA_SUCCESS);
	assert_int_equal(
		cu->cuEventCreate(&done, CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING), CUDA_SUCCESS);
	assert_int_equal(cu->cuIpcGetEventHandle(&handle, done), CUDA_SUCCESS);
	for (unsigned char value = 20; value < 23; value++) {
		assert_int_equal(cu->cuLaunchHostFunc(stream, wait_a_little, NULL), CUDA_SUCCESS);
		assert_int_equal(cu->cuMemsetD8Async(memory, value, LEN, stream), CUDA_SUCCESS);
		assert_int_equal(cu->cuEventRecord(done, stream), CUDA_SUCCESS);
		assert_int_equal(send(o.socket, &letter, 1, 0), 1);
		assert_int_equal(send(o.socket, &handle, sizeof handle, 0), sizeof handle);
		assert_int_equal(recv(o.socket, &answer, 1, 0), 1);
		assert_int_equal(answer, value);
	}
	assert_int_equal(cu->cuStreamSynchronize(stream), CUDA_SUCCESS);
	assert_int_equal(cu->cuIpcCloseMemHandle(memory), CUDA_SUCCESS);
	assert_int_equal(cu->cuEventDestroy(done), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamDestroy(stream), CUDA_SUCCESS);
	end_owner(&o, false);
}

/* An owner that dies leaves its memory to whoever has mapped it, and to nobody else; handles die with it. */
static void death_of_the_owner(void **state)
{
	const uint64_t before = taken();
	CUdeviceptr memory;
	CUevent event;
	struct owner o;

	(void)state;
	if (!gpu_double(device))
		skip(); /* what a real driver does here is to be seen, not to be relied on */
	start_owner(&o);
	assert_int_equal(
		cu->cuIpcOpenMemHandle(&memory, o.greeting.memory, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS),
		CUDA_SUCCESS);
	assert_int_equal(taken(), before + LEN + PIECE);
	end_owner(&o, true);
	assert_int_equal(taken(), before + LEN);
	assert_int_equal(byte_at(memory), 1);
	assert_int_equal(cu->cuIpcCloseMemHandle(memory), CUDA_SUCCESS);
	assert_int_equal(taken(), before);
	assert_int_equal(
		cu->cuIpcOpenMemHandle(&memory, o.greeting.memory, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS),
		CUDA_ERROR_INVALID_HANDLE);
	assert_int_equal(cu->cuIpcOpenEventHandle(&event, o.greeting.written), CUDA_ERROR_INVALID_HANDLE);
}

/* Uses memory whose owner has been dead for longer than the double is patient. */
static int use_stale_memory(void)
{
	unsigned char byte;
	CUdeviceptr memory;
	struct owner o;

	start_owner(&o);
	must(cu->cuIpcOpenMemHandle(&memory, o.greeting.memory, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
	end_owner(&o, true);
	must(cu->cuMemcpyDtoHAsync(&byte, memory, 1, NULL));
	printf("at once: %d\n", byte);
	fflush(stdout);
	usleep(500000);
	must(cu->cuMemcpyDtoHAsync(&byte, memory, 1, NULL));
	return 0;
}

static void stale_memory_faults(void **state)
{
	char said[4096];
	int status;

	(void)state;
	if (!gpu_double(device))
		skip();
	status = gpu_run_self("stale", said, sizeof said);
	if (status == 0 || !strstr(said, "at once: 1") || !strstr(said, "of the device: freed"))
		fail_msg("it ended with %d and said: %s", status, said);
}

/* An event whose owner dies before it fires holds up whoever waits for it, unless the test says otherwise. */
static void death_before_the_event(void **state)
{
	const struct cuda_double *emulated = gpu_double(device);
	CUevent written;
	struct owner o;
	CUstream stream;

	(void)state;
	if (!emulated)
		skip();
	start_owner(&o);
	assert_int_equal(cu->cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
	assert_int_equal(cu->cuIpcOpenEventHandle(&written, o.greeting.written), CUDA_SUCCESS);
	assert_int_equal(command(&o, 'w'), 'w');
	assert_int_equal(cu->cuStreamWaitEvent(stream, written, 0), CUDA_SUCCESS);
	end_owner(&o, true);
	usleep(200000);
	assert_int_equal(cu->cuStreamQuery(stream), CUDA_ERROR_NOT_READY);
	emulated->set_orphans_fire(1);
	assert_int_equal(cu->cuStreamSynchronize(stream), CUDA_SUCCESS);
	emulated->set_orphans_fire(0);
	assert_int_equal(cu->cuEventDestroy(written), CUDA_SUCCESS);
	assert_int_equal(cu->cuStreamDestroy(stream), CUDA_SUCCESS);
}

/* An event that its owner has destroyed is refused, and the use is counted: the real driver promises nothing.
 */
static void destroyed_event(void **state)
{
	const struct cuda_double *emulated = gpu_double(device);
	struct double_counts counts, after;
	CUevent written;
	struct owner o;

	(void)state;
	if (!emulated)
		skip();
	start_owner(&o);
	emulated->counts(&counts);
	assert_int_equal(cu->cuIpcOpenEventHandle(&written, o.greeting.written), CUDA_SUCCESS);
	assert_int_equal(command(&o, 'd'), 'd');
	assert_int_equal(cu->cuStreamWaitEvent(NULL, written, 0), CUDA_ERROR_INVALID_HANDLE);
	emulated->counts(&after);
	assert_int_equal(after.n_stale_events, counts.n_stale_events + 1);
	assert_int_equal(cu->cuEventDestroy(written), CUDA_SUCCESS);
	end_owner(&o, false);
}

static void bad_handles(void **state)
{
	CUipcMemHandle memory;
	CUipcEventHandle event, own_event;
	CUdeviceptr at, own_memory;
	CUevent e, own;

	(void)state;
	memset(&memory, 0x5a, sizeof memory);
	memset(&event, 0x5a, sizeof event);
	assert_int_not_equal(
		cu->cuIpcOpenMemHandle(&at, memory, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS), CUDA_SUCCESS);
	assert_int_not_equal(cu->cuIpcOpenEventHandle(&e, event), CUDA_SUCCESS);
	assert_int_not_equal(cu->cuIpcGetMemHandle(&memory, 4096), CUDA_SUCCESS);
	assert_int_equal(cu->cuEventCreate(&own, CU_EVENT_INTERPROCESS), CUDA_ERROR_INVALID_VALUE);
	/* One's own are refused, too. */
	assert_int_equal(cu->cuMemAlloc(&own_memory, LEN), CUDA_SUCCESS);
	assert_int_equal(cu->cuIpcGetMemHandle(&memory, own_memory), CUDA_SUCCESS);
	assert_int_not_equal(
		cu->cuIpcOpenMemHandle(&at, memory, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS), CUDA_SUCCESS);
	assert_int_equal(cu->cuMemFree(own_memory), CUDA_SUCCESS);
	assert_int_equal(cu->cuEventCreate(&own, CU_EVENT_DISABLE_TIMING), CUDA_SUCCESS);
	assert_int_not_equal(cu->cuIpcGetEventHandle(&own_event, own), CUDA_SUCCESS);
	assert_int_equal(cu->cuEventDestroy(own), CUDA_SUCCESS);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bad_handles),
		cmocka_unit_test(memory_and_event_of_another),
		cmocka_unit_test(event_of_ours),
		cmocka_unit_test(death_of_the_owner),
		cmocka_unit_test(stale_memory_faults),
		cmocka_unit_test(death_before_the_event),
		cmocka_unit_test(destroyed_event),
	};
	char shared[] = "/tmp/cistern-test-ipc-XXXXXX";
	int status, fd = -1;

	if (argc == 2 && strcmp(argv[1], "own") == 0) {
		if (!freopen("/dev/null", "w", stdout))
			return 2;
		status = gpu_begin(&device);
		if (status)
			return status;
		cu = device_driver(device);
		return own(0);
	}
	if (argc == 2 && strcmp(argv[1], "stale") == 0) {
		/* A device of its own, with little patience. */
		unsetenv("CISTERN_DOUBLE_DEVICE");
		setenv("CISTERN_DOUBLE_ORPHAN_MS", "100", 1);
		status = gpu_begin(&device);
		if (status)
			return status;
		cu = device_driver(device);
		return use_stale_memory();
	}
	/* Under the double, both processes' device is this file. */
	fd = mkstemp(shared);
	if (fd < 0)
		return 1;
	close(fd);
	setenv("CISTERN_DOUBLE_DEVICE", shared, 1);
	status = gpu_begin(&device);
	if (!status) {
		cu = device_driver(device);
		status = cmocka_run_group_tests(tests, NULL, NULL);
		device_free(device);
	}
	unlink(shared);
	return status;
}
