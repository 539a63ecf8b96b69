# make run | make test | make check | make bench. Each sets up what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
STORE := file://.blitz/models
MODEL := all-MiniLM-L6-v2
# Lock files are complete and have the hashes of all packages, so pip looks for nothing and takes nothing else.
INSTALL := $(BIN)/python -m pip install -q --no-deps --require-hashes

.PHONY: run test check bench lock clean

run: .venv/build .blitz/models/$(MODEL)/current
	$(BIN)/python -m functions.local --host 127.0.0.1 --port 7071 --model-store $(STORE)

.blitz/models/$(MODEL)/current: | .venv/build
	$(BIN)/python -m model_build $(MODEL) --target cpu-int8 --push $(STORE)

test: .venv/test tests/node_modules/.package-lock.json
	$(BIN)/python -m pytest -n 3 --dist loadfile

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/bench tests/node_modules/.package-lock.json .blitz/models/$(MODEL)/current
	$(BIN)/python -m tests.benchmarks

# Lock files from their .in; make lock UPGRADE=--upgrade takes the newest versions that fit.
lock: .venv/test
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/lock $(UPGRADE)

clean:
	rm -rf .venv .blitz tests/node_modules

# The CPU build of torch where its index answers; PyPI's (several GB on Linux) where it does not.
.venv/build: requirements.txt model_build/requirements.txt model_build/requirements-torch.txt \
		infra/gpu/requirements-torch.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 12), "needs Python 3.11 or 3.12: make PYTHON=..."'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -r requirements.txt -r model_build/requirements.txt
	{ $(INSTALL) --retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu \
		-r model_build/requirements-torch.txt && $(BIN)/python -c 'import torch'; } 2>/dev/null \
		|| $(INSTALL) -r infra/gpu/requirements-torch.txt
	touch $@

.venv/test: .venv/build tests/requirements.txt tests/requirements-worker.txt
	$(INSTALL) -r tests/requirements.txt
	$(INSTALL) --ignore-requires-python -r tests/requirements-worker.txt
	touch $@

.venv/bench: .venv/test tests/benchmarks/requirements.txt
	$(INSTALL) -r tests/benchmarks/requirements.txt
	touch $@

tests/node_modules/.package-lock.json: tests/package.json tests/package-lock.json
	npm ci --prefix tests --no-audit --no-fund --loglevel=error
	touch $@
