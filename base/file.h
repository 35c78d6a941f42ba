/* Whole files, in and out. Blocking; any thread. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include <stddef.h>

/* Reads a file into malloc'd memory, the caller's, with a NUL after it (not counted). -errno. */
int file_read(const char *path, void **data, size_t *len);
/* Writes a file under a temporary name beside it and renames it into place, so that a reader sees the old
 * file or the new one, never half. -errno. */
int file_write(const char *path, const void *data, size_t len);

#endif
