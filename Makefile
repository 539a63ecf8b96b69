# The first run of each sets up what it needs, in .venv and .blitz. `make help` lists the targets.
SAMPLE := all-MiniLM-L6-v2
MODEL := $(SAMPLE)
PORT := 7071
STORE := file://.blitz/models
BIN := .venv/bin
CLUSTER := .venv/cluster/bin/python
IS_SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
# The first that runs and is supported: a name on the PATH may be a stand-in, as pyenv's are.
ifndef PYTHON
PYTHON := $(shell for each in python3.11 python3.12 python3 python; do \
	$$each -c '$(IS_SUPPORTED)' 2> /dev/null && { echo $$each; break; }; done)
endif
# Lock files are complete and have the hashes of all packages, so pip looks for nothing and takes nothing else.
INSTALL := $(BIN)/python -m pip install --no-deps --require-hashes
# Set in many containers. The tests start some hundred Pythons, and each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test test-openvino test-cluster test-page check bench lock clean npm

help:   ## this list
	@sed -n 's/^\([a-z-]*\):.*## */make \1|/p' Makefile | while IFS='|' read -r target what; \
		do printf '%-18s %s\n' "$$target" "$$what"; done

run: .venv/serve .blitz/models/$(MODEL)/current  ## serve on http://127.0.0.1:7071; elsewhere: make run PORT=7193
	$(BIN)/python -m functions.local --host 127.0.0.1 --port $(PORT) --model-store $(STORE)

# The sample model is put together from its weights, to the bytes that a build gave: that takes no torch.
.blitz/models/$(SAMPLE)/current: | .venv/serve
	@echo "Assembling the sample model $(SAMPLE): seconds."
	$(BIN)/python -m model_build.assemble $(SAMPLE) --target cpu-int8 --push $(STORE)

# Any other one is built and measured here.
.blitz/models/%/current: | .venv/serve
	@echo "$* is built here, with torch, which is installed first if need be: 1.3 GB, or 5 GB where it is PyPI's."
	$(MAKE) .venv/build
	$(BIN)/python -m model_build $* --target cpu-int8 --push $(STORE)

test: npm .venv/test .venv/clients/installed tests/node_modules/.package-lock.json  ## run all tests
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test-openvino: .venv/test .venv/openvino  ## tests of the second CPU engine, after `make test`
	$(BIN)/python -m pytest tests/shared/engines/test_openvino.py

# In an environment that adds Ray to .venv. On_ray runs the router's own tests with each call of a backend through Ray.
test-cluster: .venv/cluster/installed  ## run the tests of functions.cluster, on real Ray clusters of this machine
	$(CLUSTER) -m pytest -W ignore tests/cluster
	RAY_SERVE_ENABLE_HA_PROXY=1 $(CLUSTER) -m pytest -W ignore tests/cluster/test_serving.py
	$(CLUSTER) -m pytest -W ignore -p tests.cluster.on_ray tests/functions/api/test_router.py \
		tests/clients/test_openai_client.py

test-page: .venv/test .venv/page/installed .venv/clients/installed tests/node_modules/.package-lock.json  ## test the page in Chromium, which is yours to install
	PYTHONPATH=.venv/page $(BIN)/python -m pytest tests/page

check: .venv/test  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: npm .venv/bench .venv/infinity/installed tests/node_modules/.package-lock.json .blitz/models/$(MODEL)/current  ## measure what the README claims
	$(BIN)/python -m tests.benchmarks

lock: .venv/test  ## write the lock files from their .in; UPGRADE=--upgrade takes the newest versions that fit
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/lock $(UPGRADE)

clean:  ## remove what the others set up, but not what bulk jobs wrote
	rm -rf .venv .blitz/models tests/node_modules
	@! test -d .blitz/bulk || echo "Kept .blitz/bulk, your bulk files: rm -r .blitz/bulk removes them."

# A venv that is not whole (it was interrupted, or Python's ensurepip is missing) is made anew.
define VENV
@$(or $(PYTHON),false) -c '$(IS_SUPPORTED)' 2> /dev/null || { echo "BlitzEmbedding needs Python 3.11 or 3.12;" \
	"$(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2> /dev/null || echo not there)." \
	"Install one, or name it: make PYTHON=/path/to/python3.12 ..."; exit 1; }
@$(BIN)/python -c 'import pip; $(IS_SUPPORTED)' 2> /dev/null || \
	{ echo "Making .venv with $$($(PYTHON) --version)."; rm -rf .venv && $(PYTHON) -m venv .venv; }
endef

# What serves, and the sample model's weights.
.venv/serve: requirements.txt model_build/requirements-sample.txt
	$(VENV)
	@echo "Installing what serves, once: 210 MB to download, 0.6 GB on disk."
	$(INSTALL) -r requirements.txt -r model_build/requirements-sample.txt
	touch $@

# What builds models. The CPU build of torch where its index answers; PyPI's (several GB on Linux) where it does not.
.venv/build: .venv/serve model_build/requirements.txt model_build/requirements-torch.txt \
		infra/gpu/requirements-torch.txt
	@echo "Installing what builds models, once: 80 MB to download, besides torch."
	$(INSTALL) -r model_build/requirements.txt
	@echo "Installing torch: its CPU build where download.pytorch.org answers, 200 MB; else PyPI's, on Linux 2.6 GB."
	{ $(INSTALL) --retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu \
		-r model_build/requirements-torch.txt && $(BIN)/python -c 'import torch'; } 2>/dev/null \
		|| $(INSTALL) -r infra/gpu/requirements-torch.txt
	touch $@

.venv/test: .venv/build tests/requirements.txt tests/requirements-worker.txt
	$(INSTALL) -r tests/requirements.txt
	$(INSTALL) --ignore-requires-python -r tests/requirements-worker.txt
	touch $@

# Clients of other services, with pins of their own.
.venv/clients/installed: tests/clients/requirements.txt | .venv/build
	$(BIN)/python -m venv --clear .venv/clients
	.venv/clients/bin/python -m pip install -q --no-compile --no-deps --require-hashes -r $<
	touch $@

# What drives a browser, in a folder of its own: nothing else needs it, and it brings a Node.js.
.venv/page/installed: tests/page/requirements.txt | .venv/build
	$(INSTALL) -q --upgrade --target .venv/page -r $<
	touch $@

# 0.5 GB besides .venv, whose packages it sees.
.venv/cluster/installed: functions/cluster/requirements.txt | .venv/test
	$(BIN)/python -m venv --clear .venv/cluster
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(CLUSTER) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	$(CLUSTER) -m pip install -q --no-deps --require-hashes -r $<
	touch $@

# OpenVINO, and what builds models for it.
.venv/openvino: .venv/build infra/cpu/requirements-openvino.txt model_build/requirements-nncf.txt
	$(INSTALL) -r infra/cpu/requirements-openvino.txt -r model_build/requirements-nncf.txt
	touch $@

.venv/bench: .venv/test .venv/openvino tests/benchmarks/requirements.txt
	$(INSTALL) -r tests/benchmarks/requirements.txt
	touch $@

# A peer with pins of its own, beside the torch of .venv.
.venv/infinity/installed: tests/benchmarks/requirements-infinity.txt | .venv/build
	$(BIN)/python -m venv --clear .venv/infinity
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(.venv/infinity/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	.venv/infinity/bin/python -m pip install -q --no-deps --require-hashes -r $<
	touch $@

# Before minutes of installing Python's packages.
npm:
	@command -v npm > /dev/null || { echo "The tests need npm, which comes with Node.js, for Azurite (Azure's storage" \
		"on this machine): install Node.js 22 or newer from https://nodejs.org. make run needs none."; exit 1; }

tests/node_modules/.package-lock.json: tests/package.json tests/package-lock.json
	npm ci --prefix tests --no-audit --no-fund --loglevel=error
	touch $@
