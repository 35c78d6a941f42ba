/* All kernels: one fatbin for the GPU, one object for the emulation. */
#include "kernels/cuda/simt.h"

#include "kernels/cuda/probe.cu"
