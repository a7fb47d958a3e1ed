# Every target does its own set-up: it makes .venv, installs torch first (so that a pinned or local build is kept), then
# this package. Stamp files make the second run quick. Needs only make and Python 3.11 or newer.
#
#   make demo PYTHON=python3.12          another interpreter
#   make test TORCH="torch==2.13.0"      another torch
#   make demo PIP_ARGS="--index-url URL" any option of pip install

PYTHON   ?= python3
VENV     ?= .venv
TORCH    ?= torch>=2.6,<2.14
PIP_ARGS ?=
# `make check FAST_TESTS=no` leaves the tests out (.ci/run, where `make test` follows and runs them all)
FAST_TESTS ?= yes

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PIP := $(BIN)/python -m pip install --disable-pip-version-check -qq $(PIP_ARGS)
STAMPS := $(VENV)/.stamps

# After set-up nothing here needs a network: no hub, no downloads.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help demo page test browser check lint format docs picture tutorial build clean screenshots

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unmask needs Python 3.11 or newer, got " + sys.version.split()[0] + "; try: make PYTHON=python3.11 ...")'
	@echo "set-up: $(VENV) with torch (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) "$(TORCH)"
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/run: $(STAMPS)/venv pyproject.toml
	@echo "set-up: unmask and what it needs to run"
	@$(PIP) -e ".[demo]"
	@touch $@

$(STAMPS)/dev: $(STAMPS)/run
	@echo "set-up: test and lint tools"
	@$(PIP) -e ".[all,dev]"
	@touch $@

$(STAMPS)/browser: $(STAMPS)/dev
	@echo "set-up: what drives a browser"
	@$(PIP) -e ".[browser]"
	@touch $@

$(STAMPS)/docs: $(STAMPS)/run
	@echo "set-up: documentation tools"
	@$(PIP) -e ".[docs]"
	@touch $@

demo: $(STAMPS)/run ## text from the default embedded model, drawn as it settles, then its statistics
	@$(OFFLINE) $(BIN)/unmask generate --show \
	  "Leo has 24 stamps. Leo gives half of them to Zoe. Zoe gives Leo 15 more stamps. How many stamps does Leo have now? Explain." \
	  "Tell a story about Bob the rabbit, a kite and a farm."

test: $(STAMPS)/dev ## all tests this kind of machine can run (not gpu, slurm, browser)
	@$(OFFLINE) $(BIN)/python -m pytest -m "not gpu and not slurm and not browser" $(PYTEST_ARGS)

browser: $(STAMPS)/browser ## the page in a real Chromium, which has to be on the machine
	@$(OFFLINE) $(BIN)/python -m pytest -m browser $(PYTEST_ARGS)

page: $(STAMPS)/run ## the web page, on this machine: watch a model write
	@$(OFFLINE) $(BIN)/unmask demo

check: lint ## format, lint, types, import contract, fast tests
ifeq ($(FAST_TESTS),yes)
	@$(OFFLINE) $(BIN)/python -m pytest -q $(PYTEST_ARGS)
endif

lint: $(STAMPS)/dev ## format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMPS)/dev ## rewrite the files in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMPS)/docs ## the documentation site, in site/
	$(BIN)/mkdocs build --strict

STORY := "Tell a story about Bob the rabbit, a kite and a farm."

picture: $(STAMPS)/dev ## redraw the pictures of README and docs
	@mkdir -p build
	@$(OFFLINE) $(BIN)/unmask generate -q --svg docs/assets/settling.svg $(STORY)
	@$(OFFLINE) $(BIN)/unmask generate -q --model nano-llada --schedule whole --policy "low_confidence(steps=16)" -n 32 \
	  --record build/story.jsonl $(STORY)
	@$(BIN)/unmask replay build/story.jsonl --gif docs/assets/settling.gif --columns 84
	@$(BIN)/unmask replay build/story.jsonl --svg docs/assets/steps.svg --style steps

tutorial: $(STAMPS)/run ## run the pages of docs/tutorial: their outputs and pictures are written again
	@$(OFFLINE) $(BIN)/python scripts/tutorial.py

screenshots: $(STAMPS)/browser ## take the pictures of the page again (a Chromium has to be on the machine)
	@$(OFFLINE) $(BIN)/python scripts/screenshots.py

build: $(STAMPS)/dev ## wheel and sdist, in dist/
	@$(PIP) build
	$(BIN)/python -m build

clean: ## remove the environment, caches and builds
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
