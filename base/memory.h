/* How much of the machine's memory could still be had. */
#ifndef BASE_MEMORY_H
#define BASE_MEMORY_H

/* MemAvailable over MemTotal, of a file as proc(5) describes /proc/meminfo; 1 when it does not say. */
double memory_available(const char *path);

#endif
