/*
 * Says in one line what went wrong when emulated work faults (memory of the device that was freed or never
 * was, misaligned access), then lets the fault end the process as it would have.
 */
#ifndef TESTS_CUDA_DOUBLE_FAULT_H
#define TESTS_CUDA_DOUBLE_FAULT_H

/* Before each piece of work: a test framework may have put handlers of its own in the place of ours. */
void fault_arm();

#endif
