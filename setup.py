"""Builds ``ssimfast._C`` against the torch that is installed, wherever a C++ compiler is found.

``pip install .`` isolates the build, but runs it with the interpreter that it installs into: that
interpreter's own site-packages, appended last, are where the user's torch is. A torch that cannot
be found there becomes a build requirement. The extension uses torch's stable ABI, so one build
serves every torch from 2.10 on.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

sys.path.append(sysconfig.get_path("platlib"))

TORCH_REQUIREMENT = "torch>=2.10"
STABLE_ABI = "0x020a000000000000"  # torch 2.10


def find_compiler() -> str | None:
    """The C++ compiler that setuptools would call, if there is one."""
    if sys.platform == "win32":
        return shutil.which("cl") or os.environ.get("VSINSTALLDIR") or os.environ.get("VCINSTALLDIR")
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    for candidate in (command.split()[0], "c++", "g++", "clang++"):
        if shutil.which(candidate):
            os.environ.setdefault("CXX", candidate)
            return candidate
    return None


def torch_is_installed() -> bool:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name == "torch":
            return False
        raise
    return True


def extension_arguments() -> dict:
    """``setup()`` arguments for a machine that has a compiler and torch."""
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    sources = [Path("csrc/module.cpp"), *sorted(Path("csrc/cpu").glob("*.cpp"))]
    on_windows = sys.platform == "win32"
    extension = CppExtension(
        "ssimfast._C",
        [source.as_posix() for source in sources],
        include_dirs=[pybind11.get_include()],
        define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI)],
        # -Wno-psabi: vectors are passed between inlined functions only, never across an ABI.
        extra_compile_args=["/O2"] if on_windows else ["-O3", "-g0", "-Wno-psabi"],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


arguments: dict = {}
if find_compiler() is None:
    print("ssimfast: no C++ compiler found, installing without compiled kernels", file=sys.stderr)
elif torch_is_installed():
    arguments = extension_arguments()
else:
    arguments = {"setup_requires": [TORCH_REQUIREMENT]}

setup(install_requires=[TORCH_REQUIREMENT], **arguments)
