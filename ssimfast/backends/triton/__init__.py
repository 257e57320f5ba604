"""Triton kernels and their launches. Imported at the first call on a GPU that they serve."""
