# Needs git, make and Python 3.11 to 3.13; all else goes into .venv. `make` lists the targets.
#
# make PYTHON=/path/to/python3 ...   chooses the Python that .venv is made with
# make test ARGS='-k resume'         hands arguments to pytest
# make chaos ROUNDS=20               says how often the chaos tests are run

VENV := .venv
BENCH_VENV := .venv-bench
PEERS_VENV := .venv-peers
PEERS_TF_VENV := .venv-peers-tf
E2E_VENV := .venv-e2e
SERVERS := .servers
BIN := $(VENV)/bin
DEMO := runs/demo
ROUNDS ?= 1
UV ?= uv
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

# Prints the first Python that will do, or says what is missing.
define find_python
for python in $(PYTHONS); do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; \
	then echo $$python; exit; fi; \
done; \
echo "Holdfast needs Python 3.11, 3.12 or 3.13 with its venv module (on Debian: python3-venv); none of" \
	"[ $(PYTHONS) ] is that: install one, or say make PYTHON=/path/to/python3" >&2; exit 1
endef

# Ray takes many seconds longer to start without .pyc files, or fails to: pip compiles what it installs, unless
# the environment says otherwise, but not what something else installed. Some packages hold files that are not
# for this Python, hence the `|| true`.
define install
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade
@echo "installing $(1) and what it needs into $(VENV)"
@$(BIN)/python -m pip --disable-pip-version-check install --quiet --compile -c constraints.txt -e '$(1)'
@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib orchestrator workers storage || true
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup servers demo test lint format chaos peers e2e bench lock constraints clean

help: ## list the targets
	@sed -n 's/^\([a-z][a-z0-9]*\):.*## \(.*\)/make \1: \2/p' Makefile

setup: $(VENV)/.installed-test ## make .venv with all that developing needs

servers: $(SERVERS)/.installed ## install the storage server that npm has (needs node); pip installs the others

demo: $(VENV)/.installed ## train the digits example with 2 workers on a Ray of its own
	@[ ! -e $(DEMO) ] || echo "going on with $(DEMO), or showing its end; to begin anew: rm -r $(DEMO)"
	$(BIN)/holdfast run digits --run-dir $(DEMO) --workers 2 --cpus-per-worker 0.5 --address local

test: $(VENV)/.installed-test ## run the tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-test ## check style, types and which package imports which
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-test ## lay the code out
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

chaos: $(VENV)/.installed-test ## run all chaos tests ROUNDS times, into tests/chaos/RESULTS.md
	$(BIN)/python tests/chaos/table.py --rounds $(ROUNDS)

peers: $(PEERS_VENV)/.installed $(PEERS_TF_VENV)/.installed ## compare with other libraries, into tests/peers/RESULTS.md
	$(PEERS_VENV)/bin/python tests/record.py peers
	$(PEERS_TF_VENV)/bin/python tests/record.py peers test_tensorflow_files.py test_tf_keras_files.py

e2e: $(E2E_VENV)/.installed ## run jobs on a Ray cluster as users do, into tests/e2e/RESULTS.md
	$(E2E_VENV)/bin/python tests/record.py e2e

bench: $(VENV)/.installed-test $(BENCH_VENV)/.installed $(PEERS_TF_VENV)/.installed ## measure, into tests/bench/RESULTS.md
	$(BIN)/python tests/bench/run.py --peer-python $(BENCH_VENV)/bin/python \
		--tensorflow-python $(PEERS_TF_VENV)/bin/python

lock: ## choose the versions of all that is needed anew (needs uv)
	$(UV) --no-config lock --upgrade --default-index https://pypi.org/simple
	$(MAKE) constraints

# Without torch and what only torch needs, so that everybody may choose the build of it.
constraints: ## bring uv.lock and constraints.txt into line with pyproject.toml (needs uv)
	$(UV) --no-config lock --default-index https://pypi.org/simple
	@echo '# Versions that pip takes: pip install -c constraints.txt ... Made from uv.lock by make constraints.' \
		>constraints.txt
	$(UV) --no-config export --quiet --frozen --all-extras --prune torch \
		--no-emit-project --no-hashes --no-annotate --no-header >>constraints.txt

clean: ## remove .venv, builds and caches, but no runs
	rm -rf $(VENV) $(BENCH_VENV) $(PEERS_VENV) $(PEERS_TF_VENV) $(E2E_VENV) $(SERVERS) build dist .*_cache .hypothesis
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@python=$$($(find_python)) && echo "making $(VENV) with $$($$python --version)" && $$python -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.)
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[test])
	@touch $(VENV)/.installed $@

# The peers of the benchmarks, which are no part of Holdfast.
$(BENCH_VENV)/.installed: Makefile
	@python=$$($(find_python)) && $$python -m venv $(BENCH_VENV)
	@echo "installing the peers of the benchmarks into $(BENCH_VENV)"
	@$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --compile \
		numpy torch==2.13.0 jax orbax-checkpoint zarr safetensors keras==3.15.1 h5py 'ray[train]==2.60.0'
	@touch $@

$(SERVERS)/.installed: tests/integration/azurite/package-lock.json
	@mkdir -p $(SERVERS)
	@cp tests/integration/azurite/package*.json $(SERVERS)
	@npm ci --prefix $(SERVERS) --no-fund --no-audit --silent
	@touch $@

$(E2E_VENV)/.installed: pyproject.toml constraints.txt
	@python=$$($(find_python)) && $$python -m venv $(E2E_VENV)
	@echo "installing Holdfast and the servers of the end-to-end tests into $(E2E_VENV)"
	@$(E2E_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --compile -c constraints.txt -e '.[test,submit]'
	@touch $@

# What the peers' tests need beside Holdfast.
$(PEERS_VENV)/.installed: pyproject.toml constraints.txt Makefile
	@python=$$($(find_python)) && $$python -m venv $(PEERS_VENV)
	@echo "installing Holdfast and its peers into $(PEERS_VENV)"
	@$(PEERS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --compile -c constraints.txt \
		-e '.[test]' tensorstore 'keras==3.15.1' jax torch==2.13.0
	@touch $@

# TensorFlow wants an older h5py than Holdfast's own tests.
$(PEERS_TF_VENV)/.installed: pyproject.toml constraints.txt Makefile
	@python=$$($(find_python)) && $$python -m venv $(PEERS_TF_VENV)
	@echo "installing Holdfast and TensorFlow into $(PEERS_TF_VENV)"
	@grep -v '^h5py' constraints.txt >$(PEERS_TF_VENV)/constraints.txt
	@$(PEERS_TF_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --compile \
		-c $(PEERS_TF_VENV)/constraints.txt -e '.[hdf5]' hypothesis psutil pytest pytest-timeout pyyaml \
		'tensorflow==2.21.*' 'tf_keras==2.21.*'
	@touch $@
