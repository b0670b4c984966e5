# make demo | test | lint | venv | dist | onefile | clean.  PYTHON picks the interpreter (3.11 or newer); PIP_FLAGS are passed to pip, for
# example  make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"  for torch's small CPU build.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_FLAGS ?=
# VULKAN=no: do not see to a software Vulkan device for the tests of --device webgpu.
VULKAN ?= yes
# CHROMIUM=no: do not see to a Chromium for the tests of the studio's page.
CHROMIUM ?= yes
# ICARUS=no: do not see to Icarus Verilog for the tests of the hardware cores.
ICARUS ?= yes
# processes that run tests, a file at a time each
JOBS ?= 2

.PHONY: demo test lint venv dist onefile clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.test $(if $(filter yes,$(VULKAN)),$(VENV)/.vulkan) $(if $(filter yes,$(CHROMIUM)),$(VENV)/.chromium) \
  $(if $(filter yes,$(ICARUS)),$(VENV)/.icarus)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_FLAGS)

lint: $(VENV)/.test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

venv: $(VENV)/.test

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "anytune needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -e '.[all]'
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -e '.[test]'
	@touch $@ $(VENV)/.demo

$(VENV)/.vulkan: $(VENV)/.test
	$(BIN)/python -m tests.support.webgpu_setup
	@touch $@

onefile: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -e ".[onefile]"
	$(BIN)/python bench/onefile.py

dist: $(VENV)/.test
	$(BIN)/python -m build

$(VENV)/.chromium: $(VENV)/.test
	$(BIN)/python -m tests.support.chromium_setup
	@touch $@

$(VENV)/.icarus: $(VENV)/.test
	$(BIN)/python -m tests.support.icarus_setup
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis
