/* All kernels: one fatbin for the GPU, one object for the emulation. */
#include "kernels/cuda/simt.h"

#include "kernels/cuda/pages.cu"
#include "kernels/cuda/probe.cu"

#include "kernels/cuda/convert.cu"
#include "kernels/cuda/product.cu"
#include "kernels/cuda/trellis.cu"
#include "kernels/cuda/rans.cu"
#include "kernels/cuda/rans-encode.cu"
#include "kernels/cuda/raw.cu"

#include "kernels/cuda/deflate.cu"
#include "kernels/cuda/inflate.cu"
#include "kernels/cuda/xxh3.cu"
#include "kernels/cuda/statistics.cu"
#include "kernels/cuda/attention.cu"
#include "kernels/cuda/covariance.cu"
