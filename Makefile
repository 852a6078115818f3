# make quickstart: install and see a model become better.   make test: install and run the whole suite.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NEEDS := pyproject.toml constraints.txt
QUIET := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

.PHONY: install install-dev quickstart test check format clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

quickstart: install
	$(BIN)/tunewright quickstart

test: install-dev
	$(QUIET) $(BIN)/python -m pytest -n 2 --dist worksteal --cov=tunewright --cov-report=term:skip-covered --cov-fail-under=90

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Tunewright needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and by its exact version, so that no other package draws in another build of it
$(VENV)/.installed: $(NEEDS) | $(BIN)/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable '.[quickstart]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[quickstart,bnb,track,quantize,onnx,gguf,diffusion,service,postgres,s3,dev]'
	@touch $@
