# make fit      set up, then train the default recipe
# make test     set up, then run the fast tests
# make check    lint, format, types, import contracts
# make slow     set up, then run the slow tests, in parallel
# make soak     kill a run at random moments and resume it, for five minutes: ARGS="--seconds 60"
# make bench    benchmarks: ARGS="step noise" selects tables
# make foreign  LightningModules of four other packages, in an environment of their own: ARGS="darts"
# make clean    remove .venv, caches and build files
#
# Set-up creates .venv with the releases pinned in constraints.txt, and reinstalls only after a change of pyproject.toml or
# constraints.txt. PYTHON=python3.12 selects another interpreter: .venv is recreated if its Python version differs, and
# later commands without PYTHON keep it.

PYTHON ?= python3
RECIPE ?= recipes/digits.py
LOGS ?= lightning_logs
ARGS ?=

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
VERSION := -c 'import sys, venv; print(sys.version)'
WANTED := $(if $(filter-out file,$(origin PYTHON)),$$($(PYTHON) $(VERSION)),$$have)

# albumentations looks for a newer release online unless this is set
export NO_ALBUMENTATIONS_UPDATE = 1
# for small networks on small batches a second thread costs more than it saves
export OMP_NUM_THREADS ?= 1

.PHONY: fit test check slow soak bench foreign clean FORCE
.DELETE_ON_ERROR:

fit: .venv/installed
	$(BIN)/python -m framework fit $(RECIPE) --logs $(LOGS) $(ARGS)

test: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(ARGS)

slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

soak: .venv/installed-dev
	$(BIN)/python -W ignore -m tests.soak $(ARGS)

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks $(ARGS)

foreign: .venv-foreign/ready
	.venv-foreign/bin/python -m tests.foreign_packages $(ARGS)

# torchvision comes along with a package, and its operators do not fit torch's build for the CPU
.venv-foreign/ready: constraints.txt
	$(PYTHON) -m venv --clear .venv-foreign
	.venv-foreign/bin/python -m pip install --quiet torch==2.13.0 pytorch-lightning==2.6.6
	.venv-foreign/bin/python -m pip install --quiet torch==2.13.0 pytorch-lightning==2.6.6 chemprop==2.3.1 darts==0.48.1 \
		neuralforecast==3.3.0 pytorch-tabular==1.2.0 albumentations==2.0.8 tensorboard jsonargparse docstring-parser pooch safetensors
	.venv-foreign/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

clean:
	rm -rf .venv .venv-foreign .mypy_cache .ruff_cache .pytest_cache build *.egg-info

.venv/pyvenv.cfg: FORCE
	@have="$$($(BIN)/python $(VERSION) 2>/dev/null)" || have=; want="$(WANTED)" || exit 1; \
	if [ -z "$$have" ] || [ "$$have" != "$$want" ]; then echo $(PYTHON) -m venv .venv; $(PYTHON) -m venv --clear .venv; fi

FORCE:

.venv/installed: pyproject.toml constraints.txt .venv/pyvenv.cfg
	$(INSTALL) --editable .
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt .venv/pyvenv.cfg
	$(INSTALL) --editable '.[dev]'
	@touch .venv/installed $@
