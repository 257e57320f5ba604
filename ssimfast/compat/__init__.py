"""Drop-in replacements for other libraries: same names, arguments and defaults.

Only the import changes: ``from ssimfast.compat.pytorch_msssim import ssim``. The other library need
not be installed. Anything that cannot be reproduced raises an error.
"""
