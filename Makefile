# `make test` and `make demo` need only Python 3.11+: the first call makes .venv and installs into it, later calls do not.
# Own environment: `make test VENV=/path/to/env` installs what is missing there and never touches its torch.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --quiet --quiet --disable-pip-version-check
STAMP  := $(VENV)/.sdediff-installed
DOCS   := $(VENV)/.sdediff-docs-installed
PYTEST := OMP_NUM_THREADS=1 MPLBACKEND=Agg $(PY) -m pytest -n $(JOBS) --dist worksteal

# An environment that the caller names keeps its torch; the project's own .venv follows constraints.txt.
KEEP_TORCH := $(if $(filter file,$(origin VENV)),,yes)
INSTALLED_TORCH = $(PY) -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null
PINNED_TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help demo docs test test-sweep test-slow interop api golden bench tables guidance posterior trace statements lint format types wheel clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

demo: $(STAMP)  ## train a small model, sample it with several solvers, write pictures to runs/demo
	$(VENV)/bin/sdediff demo --out runs/demo

docs: $(DOCS)  ## the site, to build/docs/index.html; warnings are errors
	OMP_NUM_THREADS=1 $(PY) -m sphinx -q -W --keep-going -j $(JOBS) -b html -d build/doctrees docs build/docs

test: $(STAMP)  ## the tests, without those marked slow (one file: make test ARGS=tests/project/test_layers.py)
	$(PYTEST) $(ARGS)

test-sweep: $(STAMP)  ## the rows of tests that `make test` leaves out because they are many
	$(PYTEST) -m sweep $(ARGS)

test-slow: $(STAMP)  ## only the tests marked slow
	$(PYTEST) -m slow $(ARGS)

interop: $(STAMP)  ## the bridges to other libraries: all of their tests, slow ones too
	$(PYTEST) -m "slow or not slow" tests/interop $(ARGS)

guidance: $(STAMP)  ## all tests of guidance, slow ones too, and the tables of docs/evidence/guidance.md (twenty minutes)
	$(PYTEST) -m "slow or not slow" tests/guidance
	OMP_NUM_THREADS=1 $(PY) benchmarks/guidance.py $(ARGS)
	OMP_NUM_THREADS=1 $(PY) benchmarks/guidance.py --few $(ARGS)
	OMP_NUM_THREADS=1 $(PY) benchmarks/guidance_digits.py $(ARGS)
	OMP_NUM_THREADS=1 $(PY) benchmarks/guidance_digits.py --few $(ARGS)

api: $(STAMP)  ## what differs from the record of public names and arguments (a change that is meant: make api ARGS=--write)
	PYTHONPATH=. $(PY) tools/public_api.py $(ARGS)

golden: $(STAMP)  ## compare every solver, SDE and prediction with the committed table (ARGS=--write makes it anew, ARGS="-k VP" a part)
	OMP_NUM_THREADS=1 $(PY) tools/golden/golden.py $(ARGS)

bench: $(STAMP)  ## ours beside other libraries, in one process, to build/bench (two minutes: make bench ARGS=--quick)
	OMP_NUM_THREADS=1 $(PY) benchmarks/bench.py $(ARGS)

tables: $(STAMP)  ## whether the tables of the docs are those of benchmarks/results (ARGS=--write writes them)
	$(PY) benchmarks/tables.py $(ARGS)

posterior: $(STAMP)  ## methods for inverse problems on priors whose posteriors are known (quick: make posterior ARGS=--quick)
	OMP_NUM_THREADS=1 $(PY) benchmarks/posterior.py $(ARGS)
	OMP_NUM_THREADS=1 $(PY) benchmarks/steering.py $(ARGS)

trace: $(STAMP)  ## functions and files that one small call enters (their names: make trace ARGS=--list)
	OMP_NUM_THREADS=1 $(PY) tools/trace.py $(ARGS)

statements:  ## statements of the library by package, and what is over budget (another tree: make statements ARGS=/path)
	$(PYTHON) tools/statements.py $(ARGS)

lint: $(STAMP)  ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(STAMP)  ## mend what ruff can mend
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(STAMP)  ## mypy, strict, on sdediff and solvers
	$(PY) -m mypy

wheel: $(STAMP)  ## build a wheel and check what it and an editable install contain
	$(PY) tools/check_wheel.py

clean:  ## remove .venv, builds and caches (runs/ stays)
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and at its pinned version, so that pip does not choose the newest with its CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(PY) || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "sdediff needs Python 3.11 or newer, and '$(PYTHON)' is not: make ... PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip
	@echo "set-up: installing into $(VENV) (minutes the first time)"
	@if [ -z "$(KEEP_TORCH)" ] || ! $(INSTALLED_TORCH) >/dev/null; then $(PIP) install torch -c constraints.txt; fi
	@torch=$$($(INSTALLED_TORCH)); pins=constraints.txt; \
	if [ "$${torch%%+*}" != "$(PINNED_TORCH)" ]; then \
	    echo "set-up: torch $$torch stays; the versions in constraints.txt go with $(PINNED_TORCH) and are not used"; \
	    pins=$(VENV)/.sdediff-torch.txt; echo "torch==$$torch" > $$pins; \
	fi; \
	$(PIP) install -e '.[dev]' -c $$pins
	@touch $(STAMP)

$(DOCS): $(STAMP)
	@torch=$$($(INSTALLED_TORCH)); pins=constraints.txt; \
	if [ "$${torch%%+*}" != "$(PINNED_TORCH)" ]; then pins=$(VENV)/.sdediff-torch.txt; fi; \
	$(PIP) install -e '.[docs]' -c $$pins
	@touch $(DOCS)
