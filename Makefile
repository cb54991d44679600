# Everything a person or CI runs. `make` alone lists it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bytecode is what makes the second start of torch, Ray and Prefect quick.
unexport PYTHONDONTWRITEBYTECODE
export RAY_USAGE_STATS_ENABLED := 0
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: help setup demo test test-all lint check bench demo-weights lock docs vendor-charts sbom audit format
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | column -t -s "$$(printf '\t')"

setup: $(VENV)/.done  ## Make the environment in .venv from the lock file

$(VENV)/.done: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup  ## Segment rendered scenes with Prefect and Ray, in ./demo
	$(BIN)/python -m flows.demo demo

# Most tests wait or compute on one core. A file stays in one process: its tests share a cluster.
TWO := -n 2 --dist loadfile

# ARGS replaces the choice of tests: make test ARGS="tests/pipeline/storage -x"
test: setup  ## All tests but the slow ones (at most 15 minutes on 2 cores), or those in ARGS="..."
	$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),-m "not slow" $(TWO))

test-all: test  ## Every test (at most 45 minutes on 2 cores)
	$(BIN)/python -m pytest -m slow

# Left to `make test`: whole processes, and networks that train.
E2E := tests/laws/test_kill.py tests/pipeline/export/test_export_readers.py tests/documentation/test_readme.py \
  tests/laws/test_real_images.py tests/fcn_core/weights/test_demo_weights.py tests/pipeline/training/test_driver.py \
  tests/laws/test_train_kill.py tests/pipeline/training/test_train_group.py \
  tests/documentation/test_site.py tests/documentation/test_costs.py tests/benchmarks/test_peers.py

lint: setup  ## Check format, lint and types; change nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint  ## Format, lint, types and unit tests (one to two minutes)
	$(BIN)/python -m pytest -q -m "not (slow or browser or ray or prefect or s3 or cluster or gpu)" \
	  $(addprefix --ignore=,$(E2E)) $(TWO)

# Results go to build/bench; those in benchmarks/ are of the machines that RESULTS.md names.
bench: setup  ## Measure against loops and peers, on this machine (at most 20 minutes on 2 cores)
	mkdir -p build/bench
	$(BIN)/python -m benchmarks.end_to_end --images 128 --json build/bench/end_to_end.json
	$(BIN)/python -m benchmarks.forward --rounds 3 --json build/bench/forward.json
	$(BIN)/python -m benchmarks.pipeline --without ray --json build/bench/pipeline.json
	$(BIN)/python -m benchmarks.scale --only growth --json build/bench/scale.json
	$(BIN)/python -m benchmarks.peers --json build/bench/peers.json

WEIGHTS := build/demo-weights
demo-weights: setup  ## Train the shipped demo weights again from nothing (under an hour on 2 cores)
	$(BIN)/python -m docs.demo_scenes $(WEIGHTS)
	$(BIN)/fcnseg train $(WEIGHTS)/train --val $(WEIGHTS)/val --output $(WEIGHTS)/out \
	  --config docs/demo-weights.yaml
	$(BIN)/fcnseg weights halve $(WEIGHTS)/out/last.safetensors $(WEIGHTS)/demo.safetensors
	$(BIN)/fcnseg evaluate $(WEIGHTS)/val --weights $(WEIGHTS)/demo.safetensors

lock: setup  ## Write both lock files anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --extra dev --extra bench -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --extra aws --extra gcp --extra gcs --extra azure --constraint requirements.lock \
	  -o deploy/requirements.lock pyproject.toml

# NO_MKDOCS_2_WARNING: Material 9 is maintained until May 2027; its advertisement is no warning of ours.
docs: setup  ## The documentation as a site, in build/site (strict: a broken link is an error)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# What stands in pipeline/report/assets, byte for byte: npm only fetches it, nothing is built.
ECHARTS := 6.1.0
FFLATE := 0.8.3
vendor-charts:  ## Fetch the libraries of the report anew (needs npm)
	rm -rf build/charts && mkdir -p build/charts
	cd build/charts && npm pack --silent echarts@$(ECHARTS) && tar -xzf echarts-$(ECHARTS).tgz
	cd build/charts/package && cp dist/echarts.min.js $(CURDIR)/pipeline/report/assets/
	cd build/charts/package && for name in LICENSE NOTICE; do \
	  cp $$name $(CURDIR)/pipeline/report/assets/echarts.$$name; done
	cp build/charts/package/licenses/LICENSE-d3 pipeline/report/assets/echarts.LICENSE-d3
	cd build/charts && rm -r package && npm pack --silent fflate@$(FFLATE) && tar -xzf fflate-$(FFLATE).tgz
	cp build/charts/package/umd/index.js pipeline/report/assets/fflate.js
	cp build/charts/package/LICENSE pipeline/report/assets/fflate.LICENSE
	cd pipeline/report/assets && sha256sum --check vendored.sha256

sbom: setup  ## Bill of materials (CycloneDX) of the image's packages, and licences, in build/
	@mkdir -p build
	$(BIN)/cyclonedx-py requirements deploy/requirements.lock --pyproject pyproject.toml \
	  --output-reproducible --of JSON -o build/sbom.cdx.json
	$(BIN)/pip-licenses --python $(BIN)/python --from mixed --with-urls --format markdown \
	  --output-file build/licences.md

audit: setup  ## Known vulnerabilities of the image's packages (asks pypi.org or osv.dev)
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement deploy/requirements.lock

format: setup  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
