# The two commands that matter: `make report` and `make test`. Each builds .venv first if it is missing or stale.
PYTHON ?= python3
PROFILE ?= smoke
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help report test lab site sync lint hooks clean

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'
	@echo "  PROFILE=smoke|cpu|gpu chooses the size of 'make report'; NBMF_DATA_DIR names a folder of real recordings"

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	@echo "== building $(VENV) (pinned by constraints.txt, a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nbmf_research needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[zarr,train,memory,bench,dev]'
	@touch $@

report: $(READY)  ## run the benchmarks (smoke profile unless PROFILE=cpu|gpu) and build the site
	@$(BIN)/nbmf bench report --profile $(PROFILE)

test: $(READY)  ## run the tests: those in tests/ and those in the notebooks
	@echo "== tests/"
	@$(BIN)/pytest -n auto --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under=90
	@echo "== notebooks"
	@OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	@echo "== all tests passed"

lab: $(READY)  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir nbs

site: $(READY)  ## build the site from _quarto.yml (with Quarto if it is installed)
	@$(BIN)/nbmf bench site

sync: $(READY)  ## format and clean the notebooks, export the package, write README.md
	@$(BIN)/ruff format --quiet nbs tests
	@$(BIN)/nbdev_clean
	@$(BIN)/nbdev_export
	@$(BIN)/nbmf bench readme

lint: $(READY)  ## ruff and mypy --strict
	@$(BIN)/ruff check nbs tests
	@$(BIN)/ruff format --check --quiet nbs tests
	@$(BIN)/mypy

hooks: $(READY)  ## install the git hooks (pre-commit, notebook merge driver)
	@$(BIN)/pre-commit install
	@$(BIN)/nbdev_install_hooks

clean:  ## remove what the commands above made (not the environment)
	@rm -rf _docs _proc _smoke build dist .coverage
