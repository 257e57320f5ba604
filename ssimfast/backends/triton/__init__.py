"""Triton kernels and their launches; imported at the first call on a GPU that they serve."""
