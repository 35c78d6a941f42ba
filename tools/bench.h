/* What the benches share: clocks and order statistics. Single-threaded. */
#ifndef TOOLS_BENCH_H
#define TOOLS_BENCH_H

#include <stddef.h>
#include <stdint.h>

uint64_t bench_now_ns(void);
/* What this thread has run for: on a busy machine the time of short work and of long, fairly. */
uint64_t bench_cpu_ns(void);
/* Sorts samples and returns the q-quantile (0 to 1). n > 0. */
double bench_quantile(double *samples, size_t n, double q);

/* An option's value from min to max. -EINVAL, said on stderr in the name of `cistern bench NAME`. */
int bench_parse_natural(const char *name, const char *text, uint32_t min, uint32_t max, uint32_t *out);

int bench_ipc(int argc, char **argv);
int bench_codec(int argc, char **argv);
int bench_online(int argc, char **argv);
int bench_policy(int argc, char **argv);
int bench_rate(int argc, char **argv);
int bench_evict(int argc, char **argv);
int bench_gpu(int argc, char **argv);
int bench_index(int argc, char **argv);
int bench_sinks(int argc, char **argv);
int bench_store(int argc, char **argv);
int bench_watch(int argc, char **argv);

#endif
