# Every target works on a machine with nothing but Python 3.11 or newer; what it needs goes to $(VENV).
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
QUESTION ?= *

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
SPREAD := -n $(WORKERS) --dist loadfile
CHROMIUM := for name in chromium chromium-browser google-chrome; do command -v $$name && exit; done; exit 1

.DEFAULT_GOAL := help
.PHONY: help quickstart test check test-browser faults bench

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/installed ## install, then fine-tune the embedded base and say where the report is
	$(BIN)/peftkit finetune recipes/quickstart.yaml

test: $(VENV)/installed-test ## install what the tests need, then run them all
	$(PYTEST) $(SPREAD)

check: $(VENV)/installed-test ## lint, formatting, types and the fast tests, in less than three minutes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) $(SPREAD) -m "not slow and not browser"

test-browser: $(VENV)/installed-test ## install Debian's Chromium where it is missing, then run the tests that drive it
	@($(CHROMIUM)) >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	    && apt-get update -qq \
	    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core; \
	} || { printf 'error: no chromium on this machine\n\nhint: `apt-get install chromium` as root\n' >&2; exit 1; }
	PEFTKIT_TEST_BROWSER=required $(PYTEST) -m browser

faults: $(VENV)/installed-test ## interrupt, damage and starve runs in every way there is: the full set of the fault tests
	$(PYTEST) tests/faults -m "faults or not faults"

bench: $(VENV)/installed-test ## run the benchmarks; QUESTION=<folder> runs one
	@for script in benchmarks/$(QUESTION)/run.py; do echo "$$script" && $(BIN)/python "$$script" || exit; done

# A stamp is older than the files that decide what is installed, or nothing has changed.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[test]'
	@touch $(VENV)/installed $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  printf 'error: `$(PYTHON)` is not Python 3.11 or newer\n\nhint: `make PYTHON=/path/to/python3.11`\n' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
