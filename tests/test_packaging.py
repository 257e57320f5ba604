"""What an installation says of itself, and what it says when it is broken."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

import ssimfast
from ssimfast import __main__ as main
from ssimfast.ops import library

PACKAGE = Path(ssimfast.__file__).parent
ROOT = Path(__file__).parents[1]


def run_python(code: str, path: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(path), **environment},
        cwd=path,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy_without_extension(tmp_path) -> Path:
    """A directory with the Python files of the package and nothing compiled."""
    ignore = shutil.ignore_patterns("_C*", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "ssimfast", ignore=ignore)
    return tmp_path


def test_an_extension_that_does_not_load_says_so_and_names_the_cure(copy_without_extension):
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    (copy_without_extension / "ssimfast" / f"_C{suffix}").write_bytes(b"built for another torch")
    done = run_python("import ssimfast", copy_without_extension)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ssimfast._C does not load with torch ")
    assert "pip install --force-reinstall --no-deps --no-cache-dir ." in last


@pytest.mark.needs("extension")
def test_an_extension_of_other_schemas_is_refused(monkeypatch):
    monkeypatch.setattr(library, "DIGEST", "another")
    with pytest.raises(ImportError, match="compiled from other sources.*pip install -e"):
        library._load_extension()


@pytest.mark.long
@pytest.mark.needs("extension")
def test_a_second_import_says_the_same_of_an_extension_that_was_refused(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "ssimfast")
    with (tmp_path / "ssimfast" / "ops" / "schemas.py").open("a") as schemas:
        schemas.write('\nDIGEST = "another"\n')
    code = (
        "for _ in range(2):\n"
        "    try:\n"
        "        import ssimfast\n"
        "    except ImportError as error:\n"
        "        print('compiled from other sources' in str(error))\n"
    )
    done = run_python(code, tmp_path)
    assert done.stdout == "True\nTrue\n", done.stderr


@pytest.mark.long
def test_sources_without_extension_warn_and_the_reference_serves(copy_without_extension):
    (copy_without_extension / "setup.py").touch()
    code = (
        "import ssimfast, torch; from ssimfast import __main__ as main; print(main.report());"
        "x = torch.rand(1, 1, 16, 16); print(ssimfast.ssim(x, x).item())"
    )
    done = run_python(code, copy_without_extension)
    assert done.returncode == 0, done.stderr
    assert "RuntimeWarning: ssimfast runs without its compiled kernels" in done.stderr
    assert "extension: not built" in done.stdout
    assert "cpu   -> reference" in done.stdout
    assert done.stdout.endswith("1.0\n")


def test_an_installation_without_extension_is_silent(copy_without_extension):
    done = run_python("import ssimfast", copy_without_extension)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_report_names_the_backend_of_every_device():
    report = main.report()
    for device, backend in ssimfast.backends().items():
        assert f"{device:5} -> {backend} (" in report
    if library.extension is not None:
        assert library.extension.built_with_torch in report
        assert library.extension.instruction_set() in report


def test_report_says_why_pytorch_operations_serve(monkeypatch):
    for there, reason in ((False, "no such device here"), (True, "this version has no kernel")):
        monkeypatch.setattr("torch.xpu.is_available", lambda there=there: there)
        assert main._reason("xpu", "reference").startswith(f"PyTorch operations: {reason}")
    for name in ("cuda", "hip"):
        monkeypatch.setattr(f"torch.version.{name}", None)
    assert main._reason("cuda", "reference").endswith("this torch was built without CUDA")


def test_names_of_the_package_are_public_or_modules():
    names = {name for name in dir(ssimfast) if not name.startswith("_")}
    modules = {name for name in names if isinstance(getattr(ssimfast, name), ModuleType)}
    assert names - modules == set(ssimfast.__all__)
    assert all(getattr(ssimfast, name).__name__ == f"ssimfast.{name}" for name in modules)


def test_import_prints_nothing():
    done = run_python("import ssimfast", PACKAGE.parent)
    assert done.returncode == 0 and done.stdout == "" and done.stderr == ""


@pytest.mark.needs("extension")
def test_an_instruction_set_that_is_not_there_is_refused():
    done = run_python("import ssimfast", PACKAGE.parent, SSIMFAST_CPU_ISA="mmx")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0 and last.startswith("ValueError: SSIMFAST_CPU_ISA must be one of")


@pytest.mark.needs("setuptools", "sources")
def test_sdist_has_all_that_the_build_reads(tmp_path):
    ignore = shutil.ignore_patterns(".*", "build", "dist", "demo", "*.egg-info", "*.so")
    sources = shutil.copytree(ROOT, tmp_path / "sources", ignore=ignore)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)],
        env={**os.environ, "SSIMFAST_NO_EXTENSION": "1"},
        cwd=sources,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    read = {"LICENSE", "README.md", "setup.py", "pyproject.toml"}
    for folder in ("csrc", "ssimfast", "cyclegan", "tests"):
        files = (file for file in (sources / folder).rglob("*") if file.is_file())
        read |= {file.relative_to(sources).as_posix() for file in files if file.suffix != ".pyc"}
    assert read <= packed, sorted(read - packed)


@pytest.fixture
def install(tmp_path):
    """What `make` tells pip of CUDA when it installs into an environment whose python is a stub,
    or None where it does not install; and what it prints."""
    for folder in ("bin", "csrc", "ssimfast", "cyclegan", "tests", "bench"):
        (tmp_path / folder).mkdir()
    for file in ("setup.py", "pyproject.toml"):
        (tmp_path / file).touch()
    stub = tmp_path / "bin" / "python"
    stub.write_text(
        "#!/bin/sh\n"
        'case "$*" in *is_available*) exit "$NO_GPU";; esac\n'
        'case "$*" in *test*) echo "$SSIMFAST_NO_CUDA,$TORCH_CUDA_ARCH_LIST" >pip;; esac\n'
    )
    stub.chmod(0o755)
    names = ("SSIMFAST_NO_CUDA", "TORCH_CUDA_ARCH_LIST", "TORCH", "MAKEFLAGS", "VENV")
    clean = {name: value for name, value in os.environ.items() if name not in names}

    def install(no_gpu: bool, **variables: str) -> tuple[str | None, str]:
        command = ["make", "-s", "-f", str(ROOT / "Makefile"), "VENV=.", "./installed"]
        run = subprocess.run(
            command,
            cwd=tmp_path,
            env={**clean, "NO_GPU": str(int(no_gpu)), **variables},
            check=True,
            capture_output=True,
            text=True,
        )
        told = tmp_path / "pip"
        text = told.read_text().strip() if told.exists() else None
        told.unlink(missing_ok=True)
        return text, run.stdout

    return install


@pytest.mark.needs("make")
@pytest.mark.needs("sources")
def test_make_compiles_cuda_kernels_where_there_is_a_gpu_or_they_are_asked_for(install):
    told, said = install(no_gpu=True)
    assert told == "1," and said.count("\n") == 1 and "TORCH_CUDA_ARCH_LIST" in said
    assert install(no_gpu=True) == (None, "")  # is installed
    wanted = "8.6;9.0+PTX"
    assert install(no_gpu=True, TORCH_CUDA_ARCH_LIST=wanted) == (f",{wanted}", "")
    assert install(no_gpu=True, TORCH_CUDA_ARCH_LIST=wanted) == (None, "")
    assert install(no_gpu=True) == (None, "")  # stays as it was asked for
    assert install(no_gpu=True, SSIMFAST_NO_CUDA="0") == ("0,", "")


@pytest.mark.needs("make")
@pytest.mark.needs("sources")
def test_make_leaves_cuda_to_setup_py_where_there_is_a_gpu(install):
    assert install(no_gpu=False) == (",", "")
    assert install(no_gpu=False, SSIMFAST_NO_CUDA="1") == ("1,", "")
