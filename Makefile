# Every target makes .venv when it is missing or older than what it is made from.
PYTHON ?= python3
BIN := .venv/bin
WORKSPACE ?= workspace

.PHONY: demo test test-all lint clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "Crescendo needs Python 3.11 or newer; pass PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cpu,dev]'
	touch $@

demo: .venv/.installed
	$(BIN)/crescendo --workspace $(WORKSPACE) demo

# Two processes, one torch thread each: more threads than cores make OpenMP wait for itself.
# In the order of tests/conftest.py: the longest files first, which xdist would undo.
# Bytecode is kept, whatever the machine says: hundreds of processes would compile what they import.
# `test` leaves out what takes more than ten seconds; CI runs all.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/.installed
	$(PYTEST) -m "not slow"

test-all: .venv/.installed
	$(PYTEST)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

clean:
	rm -rf .venv workspace .mypy_cache .ruff_cache .pytest_cache .hypothesis
