# make demo      install, then train and compare three methods on the embedded benchmark
# make test      install, then lint and test; make test-slow runs the slow tests
# make help      the other targets
#
# PYTHON chooses the interpreter that .venv is made from: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
TEST_STAMP := $(VENV)/installed-test
# Processes that the tests are run in. A fixed number: in a container a machine's count of cores may
# be one that the container does not get.
WORKERS ?= 2
# A process that is done takes over tests of the other, from whichever file they are.
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# Linux gets the exact versions of the locks; other systems the ranges of setup.py.
ifeq ($(shell uname -s),Linux)
INSTALL := -r requirements-lock.txt
INSTALL_TEST := -r requirements-test-lock.txt
else
INSTALL := -e ".[dev]"
INSTALL_TEST := -e ".[dev,test]"
endif
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: help install demo test test-slow lint format docs lock clean

help:
	@echo 'make install   make .venv and install into it (the other targets do so by themselves)'
	@echo 'make demo      Shapes and Digits: HiCroPL, CoOp and ZeroshotCLIP in one table'
	@echo 'make test      lint, then the tests except the slow ones; WORKERS=4 for 4 processes, not 2'
	@echo 'make test-slow the slow tests: learning end to end, and all kinds of damaged files'
	@echo 'make lint      ruff and mypy alone'
	@echo 'make format    let ruff put the code in order'
	@echo 'make docs      the pages of docs/ as a site in build/site'
	@echo 'make lock      resolve the requirements-*lock.txt again (needs uv)'
	@echo 'make clean     remove .venv and what the tools cached; data and output stay'

install: $(STAMP)

# The stamp is written last, so that an installation that was cut short is done again.
$(STAMP): requirements-lock.txt requirements.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: Python 3.10 or newer is needed, and $(PYTHON) is not; name one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(INSTALL)
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

# What the tests need beyond that: the demo page, export and the service are extras.
$(TEST_STAMP): $(STAMP) requirements-test-lock.txt
	$(PIP) $(INSTALL_TEST)
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m experiments table --datasets shapes digits \
	  --methods ZeroshotCLIP CoOp HiCroPL --seeds 1 \
	  --root data --output-dir output/demo

test: lint $(TEST_STAMP)
	@$(PYTEST) -m 'not slow'

test-slow: $(TEST_STAMP)
	@$(PYTEST) -m slow

lint: $(STAMP)
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

docs: $(STAMP)
	$(PIP) -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

LOCK := uv pip compile setup.py --extra dev --universal --python-version 3.10 --upgrade --quiet \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links

lock:
	@{ echo '# The versions of requirements-lock.txt, and of what the tests of the extras need:'; \
	   echo '# what `make test` installs on Linux. Made from setup.py by `make lock`; not edited by hand.'; \
	   $(LOCK) --extra test; \
	} > requirements-lock.new && mv requirements-lock.new requirements-test-lock.txt
	@{ echo '# The exact versions that `make` installs on Linux, for Python 3.10 and later.'; \
	   echo '# Made from setup.py by `make lock`; not edited by hand.'; \
	   $(LOCK) --constraints requirements-test-lock.txt; \
	} > requirements-lock.new && mv requirements-lock.new requirements-lock.txt
	@{ echo '# The versions of what TRACKER names, which no other target installs:'; \
	   echo '# pip install -r requirements-trackers-lock.txt. Made from setup.py by `make lock`.'; \
	   $(LOCK) --extra mlflow --extra trackio --extra wandb --constraints requirements-test-lock.txt; \
	} > requirements-lock.new && mv requirements-lock.new requirements-trackers-lock.txt

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info build
