/*
 * What kernels are written in: CUDA C++ under nvcc, and under a host compiler an emulation of the part of it
 * that our kernels use, so that they run, and are tested, where there is no GPU. Beside CUDA's own spellings,
 * this header has what takes PTX: names beginning with simt_. The instructions are described in NVIDIA's PTX
 * ISA.
 *
 * A kernel takes one argument, a struct by value:
 *     extern "C" __global__ void __launch_bounds__(256) thing_do(const struct thing_do_args a)
 * and stands in list.h. Blocks of a launch run in any order and perhaps one after the other: none may wait
 * for another. A thread that waits for another thread of its block other than in a barrier or a collective
 * must call
 * __nanosleep as it waits.
 *
 * Collectives must be reached by every lane named in the mask at one place in the source; the emulation holds
 * kernels to that, which is stricter than the hardware of today.
 */
#ifndef KERNELS_CUDA_SIMT_H
#define KERNELS_CUDA_SIMT_H

#ifdef __CUDACC__
#include "kernels/cuda/simt/simt-device.h"
#else
#include "kernels/cuda/simt/simt-emulated.h"
#endif

#endif
