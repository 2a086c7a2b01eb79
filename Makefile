# Everything runs in .venv, which the first target that needs it makes. Start with `make demo`.

# The first interpreter that starts and is new enough; the pinned versions were tested with 3.11.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
JOBS ?= 2

# Which torch: pinned, as in constraints.txt; oldest, that pyproject.toml claims; or newest. The others are kept as
# pinned. `make clean` before another choice.
TORCH ?= pinned
torch_pinned = $(shell grep '^torch==' constraints.txt)
torch_oldest = torch==$(shell sed -n 's/.*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
torch_newest = torch

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-slow test-core lint format types fuzz bench docs notebook package clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# torch goes first and by its pinned version, so that a wheel chosen by the user's pip settings
# (a CPU build, say) is found by that name and nothing after it asks for another.
.venv/core.stamp: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; try: make PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(torch_$(TORCH))"
	@{ grep -v '^torch==' constraints.txt; $(BIN)/pip freeze | grep '^torch==' || true; } > .venv/constraints.txt
	$(BIN)/pip install --quiet --constraint .venv/constraints.txt --editable .
	@touch $@

.venv/all.stamp: .venv/core.stamp
	$(BIN)/pip install --quiet --constraint .venv/constraints.txt --editable '.[completion,ray,secure,private,flower,dev,docs]'
	@touch $@

.venv/bench.stamp: .venv/all.stamp
	$(BIN)/pip install --quiet --constraint .venv/constraints.txt --editable '.[bench]'
	@touch $@

install: .venv/all.stamp ## Make .venv with the package, Ray, gRPC, Flower and the tools

demo: .venv/core.stamp ## Train with liars among 15 workers and write a report
	$(BIN)/phalanx demo

test: .venv/all.stamp ## The fast tests, doctests and examples included
	$(BIN)/pytest -n $(JOBS) -m "not slow"

# Shapes and dtypes are checked at every call here, and not in the fast tests, which would take twice as long.
test-slow: .venv/all.stamp ## The tests that take long or start many processes
	$(BIN)/pytest -n $(JOBS) -m slow --jaxtyping-packages=phalanx,beartype.beartype

test-core: ## Import every module in a fresh environment that holds the core dependencies alone
	rm -rf build/core && $(PYTHON) -m venv build/core
	build/core/bin/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	build/core/bin/pip install --quiet --constraint constraints.txt .
	cd build && core/bin/python ../tests/import_everything.py
	rm -rf build/core

lint: .venv/all.stamp ## Formatting, lint rules and the layers of the rooms
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: .venv/all.stamp ## Mend what `lint` can mend by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: .venv/all.stamp ## mypy --strict over the package
	$(BIN)/mypy

fuzz: .venv/all.stamp ## Adaptive lies, kills, damaged files and a million forged messages; counts go to docs/measurements/
	@for file in benchmarks/fuzz_*.py; do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

bench: .venv/bench.stamp ## Every benchmark; results go to docs/measurements/*.json
	@for file in benchmarks/bench_*.py; do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

docs: .venv/all.stamp ## Build the site into docs/_build; warnings are errors
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

notebook: .venv/all.stamp ## Build the notebooks from their scripts, and run them into build/
	$(BIN)/pip install --quiet --constraint .venv/constraints.txt --editable '.[notebook]'
	$(BIN)/jupytext --quiet --opt notebook_metadata_filter=-all --opt cell_metadata_filter=-all --update --to ipynb examples/byzantine_workers.py
	@for file in examples/*.ipynb; do mkdir -p build && echo "$$file" && \
		$(BIN)/jupyter execute --output "$(CURDIR)/build/$$(basename $$file)" "$$file" || exit 1; done

package: .venv/all.stamp ## Build the wheel and the source archive into dist/, and check them
	rm -rf dist build/package && $(PYTHON) -m venv build/package
	build/package/bin/pip install --quiet build twine
	build/package/bin/python -m build --outdir dist
	build/package/bin/twine check --strict dist/*
	$(BIN)/python tests/check_wheel.py dist/*.whl

clean: ## Remove everything that was made here
	rm -rf .venv build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
