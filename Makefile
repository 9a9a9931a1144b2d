# The ways into this project. `make` alone lists them.
#
#   PYTHON=python3.12    the interpreter .venv is made with (Python 3.11 or newer)
#   LOOM_SEED=N          the seed of `make soak`, to repeat one
#   LOOM_SOAK_DIR=DIR    where its part on a real disk lies; default build/
#   DIR=/some/where      the documents of `make demo`: any folder of Markdown and text; default adrs/ and docs/

PYTHON ?=
DIR ?=
BIN := .venv/bin
# The long suites note what they counted here, and docs/reliability.md shows it.
RESULTS := $(CURDIR)/build/results
LONG := LOOM_RESULTS="$(RESULTS)" $(BIN)/python -m pytest -s

export PYTHON

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check bench crash soak nightly venv clean core-venv dev-venv style types

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: core-venv ## agents write a digest of DIR (default adrs/ and docs/): needs no key and no model
	@LOOM="$(CURDIR)/$(BIN)/loom" LOOM_SHOWN="$(BIN)/loom" sh examples/demo.sh "$(DIR)"

test: dev-venv style types ## style, types and all tests, the crash tests in part (what .ci/run runs)
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not full"

check: dev-venv style types ## style, types and the fast tests: under two minutes
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not full"

crash: dev-venv ## the whole crash proof: writers killed and failed at every change of a file (over an hour)
	@LOOM_CRASH=full $(LONG) tests/crash
	@$(BIN)/python tests/results.py "$(RESULTS)"

soak: dev-venv ## 120,000 messages while everything is killed at random, and starts among old ones (quarter of an hour)
	@$(LONG) tests/soak --ignore=tests/soak/test_soak_exec.py
	@$(BIN)/python tests/results.py "$(RESULTS)"

nightly: dev-venv ## every suite at its full length (two hours)
	@LOOM_CRASH=full $(LONG) tests/crash
	@$(LONG) -m full --ignore=tests/crash
	@$(LONG) -m "hypothesis and not full" --hypothesis-profile=nightly
	@$(BIN)/python tests/results.py "$(RESULTS)"

bench: dev-venv ## loom beside its peers, whose pinned versions it installs under build/ (half an hour)
	@sh bench/set_up.sh peers
	@env -u PYTHONDONTWRITEBYTECODE build/bench/venv/bin/python bench/run.py

venv: dev-venv ## set up .venv with everything `make test` needs

clean: ## remove .venv, .demo and all caches
	rm -rf .venv .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

core-venv:
	@sh .ci/venv core

dev-venv:
	@sh .ci/venv dev

style: dev-venv
	@$(BIN)/python -m ruff check --extend-exclude __pycache__ .
	@$(BIN)/python -m ruff format --check --extend-exclude __pycache__ .

types: dev-venv
	@$(BIN)/python -m mypy
