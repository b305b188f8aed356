# Each target sets up what it needs, on a machine that has Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV ?= .venv
INSTALLED = $(VENV)/.installed

.PHONY: quickstart quickstart-short test lint docs docs-serve

# mkdocs-material prints that it will not follow mkdocs to a version 2.
export NO_MKDOCS_2_WARNING = 1

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -e '.[dev]'
	touch $@

quickstart: $(INSTALLED)
	$(VENV)/bin/python examples/quickstart.py --short
	$(VENV)/bin/python examples/quickstart_poems.py

quickstart-short: $(INSTALLED)
	$(VENV)/bin/python examples/quickstart.py --short

test: $(INSTALLED)
	@echo "The quick tests take 7 to 15 minutes on 2 cores; the percentages show how far they are."
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

docs: $(INSTALLED)
	$(VENV)/bin/python -m mkdocs build --strict

docs-serve: $(INSTALLED)
	$(VENV)/bin/python -m mkdocs serve

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
