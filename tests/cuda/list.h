/* Kernels of the tests: see kernels/cuda/list.h. */
KERNEL(simt_test_product)
KERNEL(simt_test_votes)
KERNEL(simt_test_sum)
KERNEL(simt_test_bits)
KERNEL(simt_test_wrong)
