#include "shm/cistern.h"
#include <sys/mman.h>
#include <unistd.h>
#include <fcntl.h>
int cistern_memory_create(const char *name, uint64_t size_bytes, int *fd, void **addr)
{
	*fd = memfd_create(name, MFD_ALLOW_SEALING);
	if (ftruncate(*fd, (off_t)size_bytes))
		return -1;
	fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK);
	*addr = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	return 0;
}
