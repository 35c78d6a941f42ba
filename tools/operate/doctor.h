/*
 * What `cistern doctor` looks at, one function a question, each leaving one verdict: what was found, whether
 * that is well, and what to do if not. Nothing here needs a daemon or changes anything but files of its own
 * that it removes.
 */
#ifndef TOOLS_OPERATE_DOCTOR_H
#define TOOLS_OPERATE_DOCTOR_H

#include <stdint.h>

enum doctor_grade {
	DOCTOR_GOOD,
	DOCTOR_SLOW, /* works, not as well as it could */
	DOCTOR_BAD,  /* the daemon will not do what it is for */
};

struct doctor_verdict {
	const char *subject; /* "io_uring" */
	enum doctor_grade grade;
	char found[200];
	char advice[240]; /* empty when all is well */
};

void doctor_kernel(struct doctor_verdict *v);
void doctor_cpu(struct doctor_verdict *v);
void doctor_memory(struct doctor_verdict *v, uint64_t pool_bytes);
void doctor_memlock(struct doctor_verdict *v, uint64_t pool_bytes);
void doctor_io_uring(struct doctor_verdict *v);
void doctor_driver(struct doctor_verdict *v);
/* Two processes share memory as client and daemon do, and wake each other. */
void doctor_ipc(struct doctor_verdict *v);
/* Writes and reads a file of 64 MiB in the folder, past the page cache where that can be. */
void doctor_disk(struct doctor_verdict *v, const char *folder);
/* Whether a daemon answers at socket (NULL: the default), and is of this version. */
void doctor_daemon(struct doctor_verdict *v, const char *socket);

#endif
