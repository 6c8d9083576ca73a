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
# PyTorch asks for huge pages: a CPU that trains spends less of its time on new memory. (docs/performance.md)
demo paper bench: export THP_MEM_ALLOC_ENABLE := 1

.PHONY: help demo paper test test-all test-oldest test-ends coverage lint format types docs package check bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

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

paper: $(VENV)/.demo ## Run every experiment of the paper on the synthetic corpus (17 minutes); tables in outputs/paper/results
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

coverage: $(VENV)/.dev ## Run the tests and say which lines they miss
	$(BIN)/python -m pytest --cov=distilwhisper --cov-report=term:skip-covered --cov-fail-under=85

docs: $(VENV)/.dev ## Build the pages strictly into build/site, and run their Python
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m pytest -m '' tests/test_docs.py

package: $(VENV)/.dev ## Build sdist and wheel, check their metadata, install and use the wheel in a fresh environment
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m pytest -m '' tests/test_package.py

test-oldest: ## Run the tests with the oldest supported versions of what the package stands on
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(VENV)-oldest/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint tests/oldest.txt
	$(VENV)-oldest/bin/python -m pytest

test-ends: test test-oldest ## Run the tests at both ends of the supported versions

check: lint types coverage docs package ## What CI runs

bench: $(VENV)/.dev ## Measure ours against the plain recipe, side by side (ONLY=loss for a section)
	$(BIN)/python benchmarks/run.py $(if $(ONLY),--only $(ONLY))

clean: ## Remove what was built, the environment too
	rm -rf build dist outputs .coverage .pytest_cache .mypy_cache .ruff_cache $(VENV) $(VENV)-oldest
