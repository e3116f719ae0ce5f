# One virtual environment serves every target: the `dev` extra contains `quickstart`, so nobody installs twice
# and `make test` after `make quickstart` starts at once. Pick the interpreter with: make PYTHON=python3.12 test
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.stamp-dev
PEERS := $(VENV)/.stamp-peers
RUN := $(VENV)/bin/python
BENCHMARKS := $(sort $(filter-out tests/benchmarks/_%,$(wildcard tests/benchmarks/*.py)))

# Threads that wait for each other sleep instead of spinning, so that two programs share the cores (training/LOG.md).
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help quickstart quickstart-long test test-all test-peers test-browser test-lowest test-newest docs check format bench campaigns clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

quickstart: $(STAMP)  ## a real corpus, three models side by side, evaluation, card, picture
	$(RUN) -m training.quickstart

quickstart-long: $(STAMP)  ## the same with the longer recipe
	$(RUN) -m training.quickstart --recipe training/recipes/emoji_long.yaml

test: $(STAMP)  ## the test suite without the slow tests
	$(RUN) -m pytest

test-all: $(STAMP)  ## the whole test suite
	$(RUN) -m pytest -m "slow or not slow"

test-peers: $(PEERS)  ## other projects' suites and clients, run on ours; fetches transformers' suites once
	$(RUN) tests/peers/fetch_suites.py
	HF_HUB_OFFLINE=1 $(RUN) -m pytest tests/peers

test-browser: $(STAMP)  ## the pages in a real browser; needs Debian's chromium, and npm
	@$(RUN) -m pip install -qq -c constraints.txt -e '.[browser]'
	@test -d build/npm || npm install --prefix build/npm --no-audit --no-fund @huggingface/transformers@4
	$(RUN) -m pytest -m slow -rs tests/demo/test_demo_browser.py tests/exporting/test_browser_page.py

test-lowest:  ## the files that travel, at the lowest versions of setup.cfg
	PYTHON=$(PYTHON) .ci/compatibility lowest

test-newest:  ## the same at the newest versions
	PYTHON=$(PYTHON) .ci/compatibility newest

docs: $(STAMP)  ## the site with its API reference, into build/site
	$(RUN) -m mkdocs build --strict --quiet

check: $(STAMP)  ## lint, formatting, types and imports
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

format: $(STAMP)  ## reformat the code and apply the safe fixes
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(STAMP)  ## run tests/benchmarks by hand
	@test -n "$(BENCHMARKS)" || { echo "There are no benchmarks yet: put them into tests/benchmarks/." >&2; exit 1; }
	@set -e; for file in $(BENCHMARKS); do echo "== $$file"; $(RUN) $$file; done

campaigns: $(STAMP)  ## attacks and accidents by the hundred, and their table in SECURITY.md; takes hours
	$(RUN) tests/campaigns; $(RUN) tests/campaigns/_table.py

clean:  ## remove the environment, caches and build products
	rm -rf $(VENV) .venv-lowest .venv-newest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find holistic_clip_hf training tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(STAMP): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Python 3.11 or newer is needed; '$(PYTHON)' is" \
	         "'$$($(PYTHON) --version 2>&1)'. Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned versions into $(VENV): some minutes, once."
	@$(RUN) -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@

$(PEERS): $(STAMP)
	@$(RUN) -m pip install -qq -c constraints.txt -e '.[peers]'
	@touch $@
