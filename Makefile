# Every task of the project. CI calls them, and so does a person: `make help` lists them.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PHANTOMS := data/phantom
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := False

.PHONY: help setup setup-dev setup-infra run test test-containers check check-infra format compile bench golden schema prove lock clean

help:  ## list the tasks
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

setup: .venv/.runtime  ## make .venv with the dermaflow command in it
setup-dev: .venv/.dev  ## the same, with what tests and checks need
setup-infra: .venv-infra/.done  ## the checkers of infra/ and .github/, in an environment of their own

run: setup  ## the main job on synthetic images: the whole pipeline, to a registered, explained model
	$(BIN)/dermaflow data phantom $(PHANTOMS) --images 420 --seed 7
	$(BIN)/dermaflow run --profile phantom

test: setup-dev  ## every test, in as many processes as there are cores
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-containers: setup-dev  ## images and a run in containers; half an hour or more, as root on Debian (or DOCKER_HOST names a daemon)
	DERMAFLOW_TEST_CONTAINERS=1 $(BIN)/python -m pytest tests/e2e/test_docker.py

check: setup-dev  ## lint, types, shell scripts, YAML, import weight
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run infra/secrets.sh infra/compose/up.sh infra/images/base.sh infra/kubernetes/base/postgres/databases.sh
	$(BIN)/yamllint -s .
	$(BIN)/python tests/import_weight.py

check-infra: setup-dev setup-infra  ## manifests, terraform, compose, workflows: valid, restricted, and as they are meant
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests/infra

format: setup-dev  ## put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compile: setup  ## the pipeline as KFP IR: dermaflow.yaml
	$(BIN)/dermaflow compile --output dermaflow.yaml

bench: setup-dev  ## every benchmark: ratios against named baselines measured in the same run
	@for script in ingest incremental neighbours evaluate registry; do echo "== $$script"; $(BIN)/python benchmarks/$$script.py || failed=1; done; exit $${failed:-0}

golden: setup-dev  ## write the compiled pipeline that tests hold it to, after a change that is meant
	$(BIN)/python -m tests.golden

schema: setup-dev  ## write the schemas of evidence and dossier from the code, after a change that is meant
	$(BIN)/python -m tests.schemas

prove: setup-dev  ## every "must hold" at full size; resumable; writes docs/proofs.json
	$(BIN)/python tests/proofs/prove.py

lock: setup-dev  ## write the locked requirements anew (needs uv on PATH)
	uv pip compile --quiet --generate-hashes --no-header --python-version 3.11 pyproject.toml -o requirements/runtime.txt
	uv pip compile --quiet --generate-hashes --no-header --python-version 3.11 --extra dev -c requirements/runtime.txt pyproject.toml -o requirements/dev.txt
	uv pip compile --quiet --generate-hashes --no-header --python-version 3.11 requirements/infra.in -o requirements/infra.txt
	uv pip compile --quiet --generate-hashes --no-header --python-version 3.11 -c requirements/runtime.txt infra/mlflow/requirements.in -o infra/mlflow/requirements.txt
	for name in builder data validate train train-cpu judge registry; do \
		uv pip compile --quiet --generate-hashes --no-header --python-version 3.11 -c requirements/runtime.txt infra/images/$$name.in -o infra/images/$$name.txt || exit 1; \
	done

clean:  ## remove what runs leave behind, the registry included
	rm -rf runs .dermaflow artifacts validation data/phantom

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; found $(PYTHON)"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "error: $(PYTHON) can not make virtual environments; on Debian: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv .venv

# pip checks every file against its hash; the project itself is linked, not copied.
.venv/.runtime: requirements/runtime.txt pyproject.toml | .venv/bin/python
	@echo "installing the locked requirements (about 3 GB, a few minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/runtime.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: requirements/dev.txt pyproject.toml | .venv/bin/python
	@echo "installing the locked requirements (about 3 GB, a few minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@ .venv/.runtime

.venv-infra/.done: requirements/infra.txt | .venv/bin/python
	@echo "installing the checkers of infra/ (about 0.5 GB, half a minute)"
	$(PYTHON) -m venv .venv-infra
	.venv-infra/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/infra.txt
	@touch $@
