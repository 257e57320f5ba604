"""Other libraries' functions, by their names, arguments and defaults, computed by ssimfast.

Change the import and leave the rest: ``from ssimfast.compat.pytorch_msssim import ssim``. None of
the libraries needs to be installed. What cannot be reproduced is an error, not another number.
"""
