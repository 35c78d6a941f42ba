/* How many events there are, and how often one was used that its owner had destroyed. Any thread. */
#ifndef TESTS_CUDA_DOUBLE_EVENT_H
#define TESTS_CUDA_DOUBLE_EVENT_H

unsigned long long event_count();
unsigned long long event_stale_count();

#endif
