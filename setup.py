"""Builds ``ssimfast._C`` against the torch that is installed, wherever a C++ compiler is found.

``pip install .`` isolates the build, but runs it with the interpreter that it installs into: that
interpreter's own site-packages, appended last, are where the user's torch is. A torch that is
missing there, or too old, becomes a build requirement. The extension uses torch's stable ABI, so
one build serves every torch from 2.10 on.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

sys.path.append(sysconfig.get_path("platlib"))

OLDEST_TORCH = (2, 10)
STABLE_ABI = "0x020a000000000000"  # the same in the form that torch's headers take
TORCH_REQUIREMENT = "torch>={}.{}".format(*OLDEST_TORCH)


def has_compiler() -> bool:
    """Whether there is a C++ compiler; CXX then names one that exists."""
    if sys.platform == "win32":
        return bool(shutil.which("cl") or os.environ.get("VCINSTALLDIR"))
    own = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    if shutil.which(own.split()[0]):
        return True
    for candidate in ("c++", "g++", "clang++"):
        if shutil.which(candidate):
            os.environ["CXX"] = candidate
            return True
    return False


def has_torch() -> bool:
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name == "torch":
            return False
        raise
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= OLDEST_TORCH


def extension_arguments() -> dict:
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    sources = [Path("csrc/module.cpp"), *sorted(Path("csrc/cpu").glob("*.cpp"))]
    # -Wno-psabi: vectors pass between inlined functions only, never across an ABI.
    flags = ["/O2"] if sys.platform == "win32" else ["-O3", "-g0", "-Wno-psabi"]
    extension = CppExtension(
        "ssimfast._C",
        [source.as_posix() for source in sources],
        include_dirs=[pybind11.get_include()],
        define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI)],
        extra_compile_args=flags,
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


arguments: dict = {}
if not has_compiler():
    print("ssimfast: no C++ compiler found, installing without compiled kernels", file=sys.stderr)
elif has_torch():
    arguments = extension_arguments()
else:
    arguments = {"setup_requires": [TORCH_REQUIREMENT]}

setup(install_requires=[TORCH_REQUIREMENT], **arguments)
