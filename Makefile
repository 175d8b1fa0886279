VENV ?= $(CURDIR)/.venv
export VENV

.PHONY: setup test lint format docs quickstart

setup:
	scripts/setup.sh

test: setup
	scripts/test.sh

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs:
	scripts/docs.sh

quickstart:
	scripts/quickstart.sh
