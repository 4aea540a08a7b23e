# make demo   install everything, then run the whole factory on this machine's CPU (FRESH=1 starts over)
# make test   install if need be, run the tests          make check   what CI runs: lint, types, tests
#             in TEST_PROCESSES processes (3)
# TORCH_INDEX: URL of PyTorch's CPU package index, for machines where plain `torch` would bring CUDA along.

PYTHON ?= python3
VENV ?= .venv
# What is installed already, unless you say otherwise.
FLAVOUR ?= $(or $(patsubst $(VENV)/.installed-%,%,$(firstword $(wildcard $(VENV)/.installed-*))),cpu)
RECIPE ?= deployments/recipes/demo.toml
TEST_PROCESSES ?= 3
LOCK := deployments/locks/$(FLAVOUR).lock
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(FLAVOUR)

.PHONY: demo test check lint types env clean

demo: env
ifeq ($(FRESH),1)
	rm -rf data/demo
endif
	$(BIN)/stillhouse run $(RECIPE)

test: env
	@# A file's tests share a process and so its set-ups. Files in their own order: the slow ones, flows/, come first.
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

check: lint types test

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

env: $(STAMP)

$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Stillhouse needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@command -v cc >/dev/null || { echo "Stillhouse needs a C compiler for one small dependency: install gcc (Debian: apt-get install build-essential python3-dev)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25" "setuptools>=78,<81" wheel
ifneq ($(TORCH_INDEX),)
	$(BIN)/python -m pip install --no-deps --index-url $(TORCH_INDEX) $$(grep '^torch==' $(LOCK))
endif
	@# The lock holds every package, so nothing is resolved: a resolver would add CUDA builds that break CPU imports.
	$(BIN)/python -m pip install --no-deps --requirement $(LOCK)
	@$(BIN)/python -m pip install --no-deps --no-build-isolation --editable . > $(VENV)/editable.log 2>&1 || { cat $(VENV)/editable.log; exit 1; }
	@$(BIN)/python -c 'import torch' || { echo "torch does not import: this is a CUDA build without its libraries. Run: make clean; make TORCH_INDEX=<PyTorch's CPU index> $(MAKECMDGOALS) (see README, Two commands)"; exit 2; }
	@rm -f $(VENV)/.installed-*
	@touch $@

clean:
	rm -rf $(VENV)
