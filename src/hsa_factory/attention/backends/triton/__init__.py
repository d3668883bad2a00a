"""Sparse HSA attention on CUDA in Triton kernels of our own, forward and backward."""
