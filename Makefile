# The build of torch for this project's own environment. Nothing else pins it: users bring the torch of their GPU.
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# What `make demo` distils: a local directory or a Hub id such as openai/whisper-tiny.en, and the data (default: synthesised).
TEACHER ?= examples/teacher
FILTER ?= on
OUTPUT ?= outputs/demo
DEMO_FLAGS ?=
PAPER_FLAGS ?=

export TOKENIZERS_PARALLELISM := false

.PHONY: help demo paper test test-all lint format types check bench build clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/.demo ## Distil the embedded teacher, from synthesised speech to a page with plots (FILTER=off, TEACHER=...)
	$(BIN)/python examples/demo.py --teacher $(TEACHER) --filter $(FILTER) --output_dir $(OUTPUT) $(DEMO_FLAGS)

paper: $(VENV)/.demo ## Run every experiment of the paper on the synthetic corpus (25 minutes); tables in outputs/paper/results
	$(BIN)/python examples/paper/everything.py $(PAPER_FLAGS)

test: $(VENV)/.dev ## Run the tests (minutes)
	$(BIN)/python -m pytest

test-all: $(VENV)/.dev ## Run all tests, the slow ones too
	$(BIN)/python -m pytest -m ''

lint: $(VENV)/.dev ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## Check types
	$(BIN)/mypy

check: lint types test ## What CI runs

bench: $(VENV)/.dev ## Measure ours against the plain recipe, side by side
	$(BIN)/python benchmarks/run.py

build: $(VENV)/.dev ## Build sdist and wheel
	$(BIN)/python -m build

clean: ## Remove what was built, the environment too
	rm -rf build dist outputs .pytest_cache .mypy_cache .ruff_cache $(VENV)
