# One command each; on a fresh machine they need Python 3.11 or newer and make, and install the rest into .venv.
.PHONY: help demo test test-fast check format format-check lint types imports repository bench docs soak constraints clean
.DEFAULT_GOAL := help

BIN := .venv/bin
PINNED := pyproject.toml constraints/pins.txt scripts/environment.sh
PYTEST := $(BIN)/python -m pytest

help:
	@echo "make demo         a live scene: calls while a server is killed and comes back"
	@echo "make test         everything the tests need, then all tests (make test-fast: no brokers, no Node)"
	@echo "make check        formatting, lint, types, import rules, docs"
	@echo "make format       let ruff format and fix what it can"
	@echo "make bench        speed, as ratios to other libraries in the same run"
	@echo "make docs         the documentation into docs/_build"
	@echo "make soak         the long tests"
	@echo "make constraints  renew the pinned versions after a change of dependencies"
	@echo "make clean        remove what was made"

.venv/.has-demo: $(PINNED)
	@scripts/environment.sh .venv demo
.venv/.has-all: $(PINNED)
	@scripts/environment.sh .venv all

demo: .venv/.has-demo
	@$(BIN)/resilient-client demo

# The whole suite comes last, so that its summary is the closing line.
test: .venv/.has-all
	@scripts/install_peers.sh
	@scripts/test_others.sh
	@echo "==== the whole suite on $$($(BIN)/python --version)"
	@$(PYTEST) -n 4 --dist loadgroup -m "not slow"

test-fast: .venv/.has-all
	@$(PYTEST) -n 2 --dist loadgroup -m "not broker and not interop and not slow"

check: format-check lint types imports repository docs

format: .venv/.has-all
	$(BIN)/ruff check --fix-only --exit-zero
	$(BIN)/ruff format

format-check: .venv/.has-all
	$(BIN)/ruff format --check

lint: .venv/.has-all
	$(BIN)/ruff check --output-format concise

types: .venv/.has-all
	$(BIN)/mypy
	$(BIN)/pyright

imports: .venv/.has-all
	$(BIN)/lint-imports --no-logo

repository: .venv/.has-all
	$(BIN)/python scripts/check_repo.py

docs: .venv/.has-all
	$(BIN)/sphinx-build -n -W -q docs docs/_build
	@echo "docs/_build/index.html"

bench: .venv/.has-all
	@scripts/install_peers.sh
	@$(BIN)/python -m benchmarks

soak: .venv/.has-all
	@scripts/install_peers.sh
	@HYPOTHESIS_PROFILE=searching $(PYTEST) -m "slow or hypothesis" --timeout 3600

constraints: .venv/.has-all
	scripts/compile_constraints.sh

clean:
	rm -rf .venv .venv-3.* docs/_build build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -not -path './node_modules/*' -prune -exec rm -rf {} +
