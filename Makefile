# Two commands matter: `make run` and `make test`. Both set up everything they need first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: run test lint setup setup-dev lock readme clean help

PYTHON := .venv/bin/python

run: setup ## set everything up, then start gateway and worker on http://127.0.0.1:8000
	@exec .venv/bin/loramem serve --stop-with-parent

test: setup-dev ## set everything up, then lint, check types and run the tests (ARGS="-k queue" for some)
	@$(MAKE) --no-print-directory lint
	@$(if $(ARGS),$(PYTHON) -m pytest $(ARGS),tests/lanes.sh)

lint: setup-dev ## ruff and mypy
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy loramem server trainer_worker deploy tests $(if $(wildcard benchmarks/*.py),benchmarks)

setup: ## the virtual environment alone (LORAMEM_PROFILE=gpu for CUDA)
	@deploy/setup.sh

setup-dev:
	@deploy/setup.sh dev

lock: ## write requirements/*.txt anew from pyproject.toml (needs uv)
	@deploy/lock.sh

readme: setup-dev ## write the README's settings table anew
	@$(PYTHON) -c "import re, pathlib; from loramem.cli import settings_table; file = pathlib.Path('README.md'); \
	file.write_text(re.sub(r'(?m)^\| setting \|(.*\n)+?(?=\n)', lambda _: '\n'.join(settings_table()) + '\n', file.read_text()))"

clean: ## remove the virtual environment and every cache; data under LORAMEM_HOME stays
	@rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
	@echo "clean: removed .venv, build products and caches"

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
