"""Checks and benchmarks of the kernels on a GPU, one file a kernel; `benchmarks/gpu_check.py` runs them."""
