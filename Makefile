# make demo     train natural, l1 and adversarial models on real data and report how concise their explanations are
# make test     everything that has to hold: pins, notebooks and modules in step, notebooks run, pytest
# make docs     the site, in _docs          make readme   README.md from nbs/index.ipynb          make clean   remove what was built
# All but clean make the virtual environment first, where it is missing or older than what it is made from.

VENV    ?= .venv
DATA    ?= digits breast_cancer
OUT     ?= results/demo
COMPARE ?=
DOCS    ?= _docs
WORKERS ?= 2
NBTEST  ?=
PYTEST  ?=

BIN := $(abspath $(VENV))/bin
# OpenMP threads that wait for work must not eat the cores that others work on
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test docs readme install clean

demo: install
	$(BIN)/advinterp compare --data $(DATA) --out $(OUT) $(COMPARE)

test: export OMP_NUM_THREADS = 1
test: install
	$(BIN)/python tools/pins.py
	$(BIN)/python tools/fresh.py
	$(BIN)/nbdev_test --n_workers $(WORKERS) $(NBTEST)
	$(BIN)/python -m pytest $(PYTEST)

docs: install
	$(BIN)/python tools/docs.py --out $(DOCS)

readme: install
	$(BIN)/python tools/readme.py

install: $(VENV)/.installed

# The first python that can make an environment and is new enough for the pinned set
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

$(VENV)/.installed: settings.ini setup.py pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or newer with venv (on Debian: python3-venv), or name one: make PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time takes about four minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(DOCS) _proc build dist *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
