# `make demo` and `make test` are all a fresh machine needs: Python 3.10 or newer with venv, and make.
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# One robot, one core: waiting threads give theirs back to the simulator and the trainer; nothing needs OpenGL.
export OMP_WAIT_POLICY := passive
export OMP_NUM_THREADS := 1
export MUJOCO_GL := disable

.PHONY: help demo test check mutate pythons clean
help:
	@echo "make demo    the whole loop on a virtual arm (ARGS=--quick for the short one)"
	@echo "make test    lint, types and all tests, with coverage"
	@echo "make check   lint and types only"
	@echo "make mutate  plant faults in robots/limits.py and what it decides by; the tests must catch each (two minutes)"
	@echo "make pythons the base install on each Python from 3.10 to 3.13 that is on PATH (a few minutes)"
	@echo "make clean   remove .venv and everything built"

demo: $(VENV)/.installed-all
	$(BIN)/hotpolicy demo $(ARGS)

# A worker for each core, four at most: tests start servers and virtual arms of their own. Whole files go to a worker, since
# a file's tests share what is dear to make.
test: check $(VENV)/.installed-openpi
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=.types:bench:tests $(BIN)/mypy bench

mutate: $(VENV)/.installed-dev
	$(BIN)/python tests/mutate_limits.py

pythons: $(VENV)/.installed-dev
	$(BIN)/python tests/compat/pythons.py

# The stamps stand for "installed with these versions"; pip runs again only when one of the two files changes.
$(VENV)/.installed-all: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing hotpolicy into $(VENV) (a few minutes the first time)"
	@$(PIP) install --quiet --quiet --editable '.[all]' --constraint constraints.txt
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing hotpolicy and its test tools into $(VENV) (a few minutes the first time)"
	@$(PIP) install --quiet --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $@ $(VENV)/.installed-all

# openpi's published client wants an older numpy. Where it cannot be had, its one test is skipped, and says so.
$(VENV)/.installed-openpi: tests/compat/openpi_client_check.py | $(BIN)/python
	@echo "installing openpi's client into $(VENV)/openpi"
	-@$(BIN)/python tests/compat/openpi_client_check.py --install $(VENV)/openpi && touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "hotpolicy needs Python 3.10 or newer, this is " \
	    + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist demo-report *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find runtime finetune robots launch tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
