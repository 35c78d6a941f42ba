/* All kernels: one fatbin for the GPU, one object for the emulation. */
#include "kernels/cuda/simt/simt.h"

#include "kernels/cuda/pages.cu"
#include "kernels/cuda/probe.cu"

#include "kernels/cuda/codec/convert.cu"
#include "kernels/cuda/codec/product.cu"
#include "kernels/cuda/codec/trellis.cu"
#include "kernels/cuda/codec/rans.cu"
#include "kernels/cuda/codec/rans-encode.cu"
#include "kernels/cuda/codec/raw.cu"

#include "kernels/cuda/bytes/deflate.cu"
#include "kernels/cuda/bytes/inflate.cu"
#include "kernels/cuda/bytes/xxh3.cu"
#include "kernels/cuda/measure/statistics.cu"
#include "kernels/cuda/measure/attention.cu"
#include "kernels/cuda/measure/covariance.cu"
