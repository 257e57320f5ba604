"""Custom ops ``torch.ops.ssimfast.*``: schemas, registration and autograd Functions."""
