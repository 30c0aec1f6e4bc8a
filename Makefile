# Everything runs in .venv, which is made once from pyproject.toml and constraints.txt; a second `make` installs nothing.
# `make install LOCKED=1` makes it from locks/ instead: nothing is installed that has not one of the hashes there. torch is
# then the index's build (on Linux the CUDA build); LOCKED=cpu takes a CPU wheel of find-links, the one that was locked.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
BY_HASH := install -q --no-deps --require-hashes
# A module's fixtures are made once: its tests stay together. Modules start in the order of tests/conftest.py, long ones first.
TWO := -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/python -m pytest -q $(TWO)

# Hundreds of processes import the same modules: an environment that forbids their compiled form costs each a second.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
# The site is built in an environment of its own: nothing of it belongs to what is installed to work.
DOCS := $(VENV)/docs

.PHONY: help install demo test lint types unit test-slow test-deploy test-wheel drills bench pages site constraints lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
ifdef LOCKED
	$(PIP) $(BY_HASH) --only-binary :all: -r locks/wheels.lock
	$(PIP) $(BY_HASH) --only-binary :all: -r locks/$(if $(filter cpu,$(LOCKED)),cpu,torch).lock
	# a CUDA build of torch needs its libraries, a CPU build none
	! grep -qiE '^Requires-Dist: *cuda' $(VENV)/lib/python*/site-packages/torch-*.dist-info/METADATA || $(PIP) $(BY_HASH) --only-binary :all: -r locks/cuda.lock
	$(PIP) $(BY_HASH) --no-build-isolation -r locks/built.lock
	$(BIN)/python -m pip -q install --no-deps --no-build-isolation -e .
else
	$(PIP) install -q --upgrade "pip>=24"
	$(PIP) install -q -c constraints.txt "setuptools>=77,<82" wheel ninja py-cpuinfo packaging numpy torch
	# deepspeed imports torch while it is built, so it is built in this environment and after torch
	$(PIP) install -q -c constraints.txt --no-build-isolation "deepspeed>=0.19.8,<0.20"
	$(PIP) install -q -c constraints.txt --no-build-isolation -e ".[dev]"
endif
	$(PIP) check
	@touch $(INSTALLED)

install: $(INSTALLED) ## make .venv and install everything into it (LOCKED=1: by hash, from locks/)

demo: $(INSTALLED) ## the whole path on virtual patients: shards, pretraining on 2 Ray workers, zero-shot evaluation, registry, report
	$(BIN)/cardialign demo --out demo --overwrite

test: lint ## lint, types, tests in their quick forms
	@$(MAKE) --no-print-directory -j 2 types unit

lint: $(INSTALLED) ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## mypy over the four packages and what makes the pages
	$(BIN)/mypy

unit: $(INSTALLED) ## the tests in their quick forms, two at a time (those that start a Ray cluster: pytest -m ray)
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED) ## the long forms: faults and a cluster on real Ray, every kernel variant, every point of failure, 10 times the examples
	$(PYTEST) -m "slow or hypothesis" --examples 10 --timeout 900

test-deploy: $(INSTALLED) ## a Slurm, an MLflow on PostgreSQL and S3, a Prometheus, hosts, submitted runs for real: minutes each
	# one at a time: each starts machines of its own, and Ray gives a node 30 s to come up
	CARDIALIGN_DEPLOYMENT=1 $(BIN)/python -m pytest -q -m deployment --timeout 10800

test-wheel: $(INSTALLED) ## the tests again, against the wheel, in an environment and a folder of its own
	$(BIN)/python -m tests.packaging.elsewhere -q $(TWO) -m "not slow"

drills: $(INSTALLED) ## faults against a tiny run on this machine: a table of what is detected, lost and kept; half an hour
	$(BIN)/cardialign drill

bench: $(INSTALLED) ## figures of the data floor and of the kernels, as ratios measured in one run
	$(BIN)/cardialign bench data
	$(BIN)/cardialign bench kernels

pages: $(INSTALLED) ## write the pages of the site that follow from the code: configuration, commands, Python, formats, methods
	$(BIN)/python -m deploy.site.write_pages

site: ## build the site into build/site, the notebooks with it; with the extra docs, in an environment of its own
	@test -x $(DOCS)/bin/mkdocs || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt mkdocs-material jupytext
	$(DOCS)/bin/python -m mkdocs build --strict -f deploy/site/mkdocs.yml
	$(DOCS)/bin/jupytext --quiet --to ipynb deploy/site/docs/notebooks/*.py
	mv deploy/site/docs/notebooks/*.ipynb build/site/notebooks/

constraints: $(INSTALLED) ## write the exact set that is installed to constraints.txt
	@head -2 constraints.txt > constraints.new
	@$(PIP) freeze --all --exclude pip --exclude-editable | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' >> constraints.new
	@sed -n '/^# Not installed/,$$p' constraints.txt >> constraints.new
	@mv constraints.new constraints.txt

lock: $(INSTALLED) ## write the hashes of everything in constraints.txt to locks/, with uv in an environment of its own
	@test -x $(VENV)/uv/bin/uv || { $(PYTHON) -m venv $(VENV)/uv && $(VENV)/uv/bin/python -m pip -q install uv; }
	$(BIN)/python -m tests.packaging.lock $(VENV)/uv/bin/uv

clean: ## remove the environment and what the demo made
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
