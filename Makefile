# Two commands matter: `make demo` shows the product, `make test` proves it. Both set themselves up.

PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
REGISTRY := var/registry
# Served unless a request names another; the bare base model while none is bundled.
DEFAULT_ADAPTER := $(if $(wildcard adapters/mcq-vi),MCQ_DEFAULT_ADAPTER=$${MCQ_DEFAULT_ADAPTER-mcq-vi})

.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.service ## one real answer: model, adapter, service and a sample paragraph
	@$(BIN)/python -m service.demo

serve: $(VENV)/.service registry ## the service with the teacher's page on http://127.0.0.1:8000
	@MCQ_LOG_FORMAT=text MCQ_REGISTRY=$(REGISTRY) $(DEFAULT_ADAPTER) \
	  $(BIN)/python -m service

registry: $(VENV)/.service ## put the bundled adapters into the local registry
	@for adapter in $(wildcard adapters/*/); do \
	  $(BIN)/python -m model_registry --registry $(REGISTRY) import --unless-deleted $$adapter >/dev/null || exit 1; done

test: $(VENV)/.dev ## every test that needs no GPU
	@$(BIN)/python -m pytest -m "not gpu" -q

check: $(VENV)/.dev lint ## style, imports, types and every test, fastest first
	@$(BIN)/python -m pytest -m "not gpu and not slow" -q
	@$(BIN)/python -m pytest -m "slow and not gpu" -q

lint: $(VENV)/.dev ## style, imports between the parts, types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/pyright

format: $(VENV)/.dev ## rewrite the code in the project's style
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

lock: $(UV) ## resolve the dependencies again, one file per group, naming no index
	@$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --upgrade --group dev pyproject.toml -o locks/dev.txt
	@for group in service training; do \
	  $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-emit-index-annotation -c locks/dev.txt --group $$group pyproject.toml \
	    -o locks/$$group.txt || exit 1; done

clean: ## forget the environment and the local registry; downloaded models stay in the cache
	@rm -rf $(VENV) var .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)

$(VENV)/.%: locks/%.txt | $(UV)
	@echo "Installing the $* dependencies (once)…"
	@$(UV) pip install --python $(BIN)/python --compile-bytecode --require-hashes -r $<
	@touch $@

$(VENV)/.service: | $(UV)

.PHONY: help demo serve registry test check lint format lock clean
