/* Every kernel, once; no include guard: whoever includes this says what KERNEL(name) is to be. */
KERNEL(probe)
