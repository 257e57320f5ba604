"""Implementations of the ops in Python: plain PyTorch and Triton."""
