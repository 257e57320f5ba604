"""Computes a loss with an installation. Usage: use.py BACKEND, the one that a CPU should have."""

import sys

import torch

import ssimfast

x = torch.rand(1, 3, 32, 32, requires_grad=True)
ssimfast.SSIMLoss()(x, torch.rand(1, 3, 32, 32)).backward()
assert x.grad.abs().sum() > 0
assert ssimfast.backends()["cpu"] == sys.argv[1], ssimfast.backends()
