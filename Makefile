# Every target sets up what it needs first, so `make demo` and `make test` work in a fresh clone on a machine with
# Python 3.11, a C++ compiler and make.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

VENV := .venv
PYTHON_BIN := $(VENV)/bin/python
INSTALL := $(PYTHON_BIN) -m pip install -qq --disable-pip-version-check --no-input

# The first of these that is Python 3.11; `make PYTHON=/path/to/python3.11 ...` names another.
is_3_11 = $(filter yes,$(shell $(1) -c 'import sys; print("yes" * (sys.version_info[:2] == (3, 11)))' 2>/dev/null))
PYTHON ?= $(firstword $(foreach name,python3.11 python3,$(if $(call is_3_11,$(name)),$(name))))

TENSORFLOW_VERSION := $(shell sed -n 's/^tensorflow-cpu==//p' requirements-lock.txt)
HOROVOD_VERSION := $(shell sed -n 's/.*"horovod==\([^"]*\)".*/\1/p' setup.py)

# Stamps. They lie in the environment, so that they vanish with it; another lock means another environment.
LOCKED := $(VENV)/.locked-$(shell cksum < requirements-lock.txt | cut -d' ' -f1)
INSTALLED := $(VENV)/.installed
HOROVOD := $(VENV)/.horovod-$(HOROVOD_VERSION)

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help
help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: venv ## Trains a small model on bundled images for about two minutes and draws samples from it
	@$(PYTHON_BIN) -m tfgen.train --hps=demo --run=runs/demo

.PHONY: test
test: venv horovod lint ## Linters and the whole test suite (PYTEST_ARGS='-k name' for a part)
	@$(PYTHON_BIN) -m $(if $(PYTEST_ARGS),pytest $(PYTEST_ARGS),tests.run_all)

.PHONY: lint
lint: venv ## ruff and mypy
	@$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

.PHONY: soak
soak: venv horovod ## What takes too long for every change: 60 kills, and the kernels on fresh inputs ten times
	@TFGEN_KILLS=60 $(PYTHON_BIN) -m pytest -s tests/e2e/test_kill.py
	for round in {1..10}; do
		TFGEN_TEST_SEED=fresh $(PYTHON_BIN) -m pytest tests/kernels/test_blocksparse_cpu.py tests/kernels/test_gelu_cpu.py \
			tests/kernels/test_concat_elu_cpu.py tests/kernels/test_group_norm_cpu.py tests/kernels/test_langevin_cpu.py \
			tests/kernels/test_winograd_cpu.py tests/kernels/test_cuda_emulated.py \
			tests/kernels/test_langevin_emulated.py tests/ops
	done

# The sanitizers' libraries stand before all others in the process. Python never frees what it means to keep: no leaks.
.PHONY: asan
asan: venv ## The tests of the CPU kernels, compiled with AddressSanitizer and UndefinedBehaviorSanitizer
	@preload=$$(for name in asan ubsan; do $${CXX:-g++} -print-file-name=lib$$name.so; done | paste -sd ' ')
	LD_PRELOAD="$$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		TFGEN_KERNEL_CXXFLAGS='-fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 -g' \
		$(PYTHON_BIN) -m pytest -p no:cacheprovider tests/kernels/test_blocksparse_cpu.py tests/kernels/test_gelu_cpu.py \
		tests/kernels/test_concat_elu_cpu.py tests/kernels/test_group_norm_cpu.py tests/kernels/test_langevin_cpu.py \
		tests/kernels/test_winograd_cpu.py \
		$(PYTEST_ARGS)

.PHONY: bazel-test
bazel-test: venv horovod ## The tests as Bazel targets, with Debian's bazel-bootstrap
	@if ! command -v bazel > /dev/null; then
		echo "make bazel-test needs Bazel 4.2 and its rules from Debian. Type:"
		echo "  apt-get install --no-install-recommends" \
			"bazel-bootstrap bazel-platforms bazel-rules-java bazel-rules-proto bazel-skylib"
		exit 1
	fi >&2
	PYTHON_BIN_PATH=$(abspath $(PYTHON_BIN)) bazel test //...

.PHONY: venv
venv: $(INSTALLED) ## Creates .venv with the locked requirements and this checkout (instant when up to date)

.PHONY: horovod
horovod: $(HOROVOD) ## Installs Horovod in .venv; its wheel is built once and kept in ~/.cache/tfgen/wheels

.PHONY: lock
lock: ## Rewrites requirements-lock.txt with the newest versions that setup.py allows
	@fresh=$$(mktemp -d)
	trap 'rm -rf "$$fresh"' EXIT
	$(PYTHON) -m venv "$$fresh"
	"$$fresh"/bin/pip install -qq --upgrade --upgrade-strategy eager -e '.[cpu,dev]'
	{ grep '^#' requirements-lock.txt; "$$fresh"/bin/pip freeze --all --exclude pip --exclude tfgen; } > "$$fresh"/lock
	cp "$$fresh"/lock requirements-lock.txt

.PHONY: clean
clean: ## Removes what building and testing left (keeps .venv and runs)
	@rm -rf build dist *.egg-info tfgen/_kernels_tf*.so $(INSTALLED) .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	if [[ -e bazel-out ]]; then bazel clean; fi

$(LOCKED): requirements-lock.txt
	@if [[ -z "$(PYTHON)" ]]; then
		echo "No Python 3.11 found as python3.11 or python3. Type: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2
		exit 1
	fi
	echo "$(VENV): installing $$(grep -c == requirements-lock.txt) locked packages (takes minutes, some to download) ..."
	$(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) -r requirements-lock.txt
	touch $@
	echo "$(VENV): installed in $$SECONDS s"

# No build isolation: the locked setuptools builds the package against the locked TensorFlow, and nothing is downloaded.
$(INSTALLED): $(LOCKED) setup.py $(shell find kernels -type f)
	@echo "$(VENV): compiling the kernels (about a minute, some more where nvcc is) ..."
	rm -f tfgen/_kernels_tf*.so
	$(INSTALL) --no-deps --no-build-isolation -e .
	if ! compgen -G 'tfgen/_kernels_tf*.so' > /dev/null; then
		echo "$(VENV): no C++ compiler was found, so tfgen has no compiled kernels and runs in plain TensorFlow" >&2
	fi
	touch $@

# The wheel depends on the versions of Horovod, TensorFlow and Python and on nothing of this checkout; a wheel's file
# name has no room for TensorFlow's version, so that is the folder. It is built within the environment (its build
# looks for the installed TensorFlow), for Gloo: ranks need no MPI.
$(HOROVOD): $(LOCKED)
	@cache="$${XDG_CACHE_HOME:-$$HOME/.cache}/tfgen/wheels/tensorflow-$(TENSORFLOW_VERSION)"
	tag=$$($(PYTHON_BIN) -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
	mkdir -p "$$cache"
	cached() { find "$$cache" -maxdepth 1 -name "horovod-$(HOROVOD_VERSION)-$$tag-*_$$(uname -m).whl"; }
	if [[ -z $$(cached) ]]; then
		echo "Horovod: building its wheel, once on this machine (takes minutes) ..."
		work=$$(mktemp -d "$$cache"/building.XXXXXX) # on the same disk, so that the wheel appears whole or not at all
		trap 'rm -rf "$$work"' EXIT
		cmake=$$(command -v cmake || true)
		if [[ ! $$("$${cmake:-false}" --version | head -n 1) =~ ' '3\.(1[3-9]|[2-9][0-9])\. ]]; then
			$(INSTALL) --target "$$work"/cmake 'cmake>=3.13,<4'
			cmake="$$work"/cmake/cmake/data/bin/cmake
		fi
		if ! env MAKEFLAGS=-j2 HOROVOD_CMAKE="$$cmake" \
			HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 \
			HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 \
			$(PYTHON_BIN) -m pip wheel --no-deps --no-cache-dir --no-build-isolation --no-binary horovod \
			--wheel-dir "$$work"/wheel horovod==$(HOROVOD_VERSION) > "$$work"/log 2>&1; then
			mkdir -p build
			cp "$$work"/log build/horovod.log
			tail -n 60 build/horovod.log >&2
			echo "Horovod: the build failed after $$SECONDS s; the lines above end its log, build/horovod.log" >&2
			exit 1
		fi
		mv "$$work"/wheel/*.whl "$$cache"
		echo "Horovod: built in $$SECONDS s, kept in $$cache"
	fi
	$(INSTALL) "$$(cached)"
	touch $@
