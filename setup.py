"""Builds ``ssimfast._C`` against the torch that is installed, wherever a C++ compiler is found.

``pip install .`` isolates the build, but runs it with the interpreter that it installs into: that
interpreter's own site-packages, appended last, are where the user's torch is. A torch that is
missing there, or too old, becomes a build requirement. The extension uses torch's stable ABI, so
the torch of the build need not be the torch of the run.

CUDA kernels are compiled if torch is a CUDA build and nvcc is found, whether or not a card is
visible: for the cards that are, else for the architectures that torch itself was compiled for.
TORCH_CUDA_ARCH_LIST says otherwise ("8.6;9.0+PTX"), MAX_JOBS limits the processes, and
SSIMFAST_NO_CUDA=1 leaves them out. CXXFLAGS follow the flags for C++ that are chosen here.

Without a compiler, or with SSIMFAST_NO_EXTENSION=1, the package is pure Python.
"""

import os
import re
import runpy
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

sys.path.append(sysconfig.get_path("platlib"))
if sys.prefix == sys.base_prefix:  # no virtual environment: torch may be the user's own
    sys.path.append(site.getusersitepackages())

OLDEST_TORCH = (2, 10)
OLDEST_CUDA = (12, 1)  # whose kernels may have more than 4 KiB of parameters
STABLE_ABI = "0x020a000000000000"  # the same in the form that torch's headers take
TORCH_REQUIREMENT = "torch>={}.{}".format(*OLDEST_TORCH)


def has_compiler() -> bool:
    """Whether there is a C++ compiler. CXX then names it, for torch looks nowhere else."""
    if os.environ.get("SSIMFAST_NO_EXTENSION") == "1":
        return False
    if sys.platform == "win32":
        return bool(shutil.which("cl") or os.environ.get("VCINSTALLDIR"))
    if chosen := os.environ.get("CXX", "").strip():
        if shutil.which(chosen.split()[0]) is None:
            raise SystemExit(f"ssimfast: CXX names a compiler that is not there: {chosen!r}")
        return True
    pythons_own = (sysconfig.get_config_var("CXX") or "c++").split()[0]
    for candidate in (pythons_own, "c++", "g++", "clang++"):
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


def has_cuda_compiler() -> bool:
    """Whether there is nvcc, for a torch that needs it. CUDA_HOME then names where it comes from:
    torch takes the folder above nvcc's for it, which is wrong where nvcc on PATH is a script."""
    import torch

    if os.environ.get("SSIMFAST_NO_CUDA") == "1" or torch.version.cuda is None:
        return False
    if not (os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")) and shutil.which("nvcc"):
        dry_run = ["nvcc", "-dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
        plan = subprocess.run(dry_run, capture_output=True, text=True).stderr
        if found := re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE):
            os.environ["CUDA_HOME"] = os.path.realpath(found[1].strip())
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = shutil.which("nvcc", path=Path(CUDA_HOME or os.devnull) / "bin")
    if nvcc is None:
        return False
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", version)
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        wrong = f"is not of CUDA {torch.version.cuda}, which torch was built with"
    elif (int(release[1]), int(release[2])) < OLDEST_CUDA:
        wrong = f"has {release[0]}, older than {'.'.join(map(str, OLDEST_CUDA))}"
    else:
        return True
    print(f"ssimfast: {nvcc} {wrong}; installing without CUDA kernels", file=sys.stderr)
    return False


def choose_cuda_architectures() -> None:
    """Names them to torch, which would have none to compile for where no card is visible."""
    import torch

    if os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or torch.cuda.is_available():
        return
    # "sm_75 sm_80 ... sm_120 compute_120": of what torch itself was compiled for.
    flags = torch._C._cuda_getArchFlags().split()
    names = [flag.removeprefix("sm_") for flag in flags if flag.startswith("sm_")]
    versions = [f"{name[:-1]}.{name[-1]}" for name in names if name.isdigit()]
    # Older cards lack the shared memory.
    versions = [version for version in versions if float(version) >= 7.0] or ["8.0", "9.0"]
    os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(versions) + "+PTX"


def extension_arguments() -> dict:
    cuda = has_cuda_compiler()  # before torch looks for one
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    class Build(BuildExtension):
        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                hint = " SSIMFAST_NO_CUDA=1 leaves out what nvcc compiles." if cuda else ""
                compilers = os.environ.get("CXX", "cl") + (" or nvcc" if cuda else "")
                raise SystemExit(
                    f"ssimfast: {compilers} failed, see the messages above. The C++ compiler must "
                    "know C++20 and find Python's headers (python3-dev on Debian); CXX chooses "
                    "another one, and SSIMFAST_NO_EXTENSION=1 installs without compiled kernels."
                    f"{hint} ({error})"
                ) from error

    sources = [*sorted(Path("csrc").glob("*.cpp")), *sorted(Path("csrc/cpu").glob("*.cpp"))]
    # Hidden: else g++ warns of structs whose members of torch's types are less visible than they.
    # -Wno-psabi: vectors pass between inlined functions only, never across an ABI.
    gcc = ["-O3", "-g0", "-Wno-psabi", "-fvisibility=hidden"]
    flags = {"cxx": ["/O2"] if sys.platform == "win32" else gcc}
    flags["cxx"] += os.environ.get("CXXFLAGS", "").split()  # last, so that they prevail
    schemas = runpy.run_path("ssimfast/ops/schemas.py")["DIGEST"]
    macros = [("TORCH_TARGET_VERSION", STABLE_ABI), ("SSIMFAST_SCHEMAS", schemas)]
    if cuda:
        choose_cuda_architectures()
        sources += sorted(Path("csrc/cuda").glob("*.cu"))
        flags["nvcc"] = ["-O3", "-std=c++20"]  # older torches would take C++17
        # USE_CUDA: torch's header then declares the function that names the current stream.
        macros += [("USE_CUDA", None), ("SSIMFAST_CUDA", None)]
    extension = (CUDAExtension if cuda else CppExtension)(
        "ssimfast._C",
        [source.as_posix() for source in sources],
        include_dirs=[Path("csrc").resolve().as_posix(), pybind11.get_include()],
        define_macros=macros,
        extra_compile_args=flags,
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build}}


arguments: dict = {}
if not has_compiler():
    asked = os.environ.get("SSIMFAST_NO_EXTENSION") == "1"
    reason = "SSIMFAST_NO_EXTENSION=1" if asked else "no C++ compiler"
    print(f"ssimfast: {reason}, installing without compiled kernels", file=sys.stderr)
elif has_torch():
    arguments = extension_arguments()
else:
    arguments = {"setup_requires": [TORCH_REQUIREMENT]}

# typing_extensions: of torch, too, which asks for a newer one.
setup(install_requires=[TORCH_REQUIREMENT, "typing_extensions>=4.10"], **arguments)
