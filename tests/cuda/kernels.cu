/* Kernels of the tests: one fatbin for the GPU, and part of the driver double. */
#include "kernels/cuda/simt/simt.h"

#include "tests/cuda/simt.cu"
