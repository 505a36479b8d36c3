# make demo     train natural, l1 and adversarial models on two real data sets and show what the
#               adversary buys at equal accuracy, and where it does not
# make test     everything that has to hold: lint, pins, notebooks and modules in step, notebooks
#               run, pytest
# make check    for someone at work, under two minutes: lint, notebooks that changed, fast tests
# make lint     format, style, types, imports
# make newest   pytest and the tutorials with the newest fastai, fastcore, pandas, scikit-learn
# make docs     the site, in _docs
# make readme   README.md from nbs/index.ipynb
# make clean    remove what was built
# All but clean make the virtual environment first, where it is missing or older than what it is
# made from.

VENV    ?= .venv
OUT     ?= results/demo
DEMO    ?=
DOCS    ?= _docs
WORKERS ?= 2
NBTEST  ?=
PYTEST  ?=
# The tests of a file share what they make, so a file stays with one worker; files begin in the
# order of their names, so that the long one on the docs is not the last
IN_PARALLEL := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

BIN := $(abspath $(VENV))/bin
NEWEST := $(abspath $(VENV))-newest
# OpenMP threads that wait for work must not eat the cores that others work on
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test check lint newest docs readme install clean

demo: install
	$(BIN)/advinterp demo --out $(OUT) $(DEMO)

test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python tools/pins.py
	$(BIN)/python tools/fresh.py
	$(BIN)/nbdev_test --n_workers $(WORKERS) $(NBTEST)
	$(BIN)/python -m pytest $(IN_PARALLEL) $(PYTEST)

check: export OMP_NUM_THREADS = 1
check: lint
	$(BIN)/python tools/changed.py | xargs -r -n 1 $(BIN)/nbdev_test --n_workers 1 --path
	$(BIN)/python -m pytest -q $(IN_PARALLEL) -m "not slow and not whole" $(PYTEST)

PYTHON_FILES = tests tools benchmarks setup.py

lint: install
	$(BIN)/ruff format --check --quiet nbs $(PYTHON_FILES)
	$(BIN)/ruff check --quiet nbs advinterp $(PYTHON_FILES)
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

docs: install
	$(BIN)/python tools/docs.py --out $(DOCS)

readme: install
	$(BIN)/python tools/readme.py

install: $(VENV)/.installed

MIN_PYTHON := $(shell sed -n 's/^min_python = //p' settings.ini)
IS_FINE = import sys, venv, ensurepip; sys.exit(sys.version_info < tuple(map(int, "$(MIN_PYTHON)".split("."))))
# The first python that can make an environment and is new enough
PYTHON ?= $(shell for p in python$(MIN_PYTHON) python3.12 python3.13 python3; do \
	$$p -c '$(IS_FINE)' 2>/dev/null && echo $$p && break; done)

$(VENV)/.installed: settings.ini setup.py pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: needs Python $(MIN_PYTHON) or newer with venv (on Debian:" \
		"python3-venv), or name one: make PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time takes about four minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

# The second environment sees the packages of the first one and lays the newest ones over them
newest: export OMP_NUM_THREADS = 1
newest: export PYTHONPATH = $(CURDIR)
newest: $(NEWEST)/.installed
	$(NEWEST)/bin/python -m pytest $(IN_PARALLEL) -p no:cacheprovider --ignore=tests/test_repo.py \
		--ignore=tests/test_docs.py --ignore=tests/test_tools.py --ignore=tests/test_packaging.py \
		$(PYTEST)
	$(NEWEST)/bin/nbdev-test --n-workers $(WORKERS) nbs/tutorials

$(NEWEST)/.installed: constraints-newest.txt $(VENV)/.installed
	$(BIN)/python -m venv $(NEWEST)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
		> $$(echo $(NEWEST)/lib/python3*/site-packages)/pinned.pth
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement constraints-newest.txt
	@touch $@

clean:
	rm -rf $(DOCS) _proc build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	rm -rf $(NEWEST)
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
