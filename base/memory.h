/* How much of the machine's memory could still be had; and what becomes of what is freed. */
#ifndef BASE_MEMORY_H
#define BASE_MEMORY_H

/* MemAvailable over MemTotal, of a file as proc(5) describes /proc/meminfo; 1 when it does not say. */
double memory_available(const char *path);

/* What is freed is kept for the next, some hundred MiB of it at most: frames of some MiB come and go, and the
 * kernel takes longer to hand out their pages anew, zeroed, than it takes to fill them. Of the whole process;
 * to be called before there are threads. */
void memory_keep_freed(void);

#endif
