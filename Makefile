# Two commands suffice: `make serve` sets everything up and serves the demo on http://localhost:3000, `make test` sets
# everything up and passes the tests. `make` prints the others.
.DEFAULT_GOAL := help
.PHONY: help serve pack test redis-server container-tools test-containers test-cluster test-unit lint build load bench-gateway bench-overhead bench-lora bench-engine bench-features bench-guards bench-coldstart criu test-snapshot lock clean

PYTHON_VERSION ?= 3.11
HOST ?= 127.0.0.1
PORT ?= 3000
USERS ?= 8
DURATION ?= 45s
BIN := .venv/bin

export BENTOML_DO_NOT_TRACK := True
# torch's CPU wheel: from a local folder of wheels where there is one, otherwise from PyTorch's own CPU index.
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
ifeq ($(UV_FIND_LINKS),)
export UV_TORCH_BACKEND ?= cpu
endif
# uv as it is installed, or one of our own.
UV := $(or $(shell command -v uv),.uv/bin/uv)

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

serve: pack ## set everything up, and serve the demo on http://localhost:3000
	$(BIN)/bentoml serve services.gateway:Gateway --host $(HOST) --port $(PORT)

pack: .venv/.serve ## model, adapters and indexes into the model store; does nothing the second time
	$(BIN)/ekiben pack

test: .venv/.dev pack redis-server container-tools ## all tests: unit, integration, and end to end with real vLLM
	$(BIN)/pytest tests/unit tests/integration tests/e2e/test_adapter_life.py tests/e2e/test_handbook_answers.py tests/e2e/test_served.py

# Limits over several replicas are tested on a real redis-server, which the tests start themselves on a free port. Where there
# is none, root with apt-get installs Debian's; its service is not started (policy-rc.d). Elsewhere these tests are skipped.
redis-server:
	@command -v redis-server >/dev/null || { \
		policy=/usr/sbin/policy-rc.d; made=; install="apt-get install -y --no-install-recommends redis-server"; \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && { \
			[ -e $$policy ] || { printf '#!/bin/sh\nexit 101\n' >$$policy && chmod +x $$policy && made=1; }; \
			export DEBIAN_FRONTEND=noninteractive; \
			{ $$install || { apt-get update && $$install; }; } </dev/null >/dev/null 2>&1; \
			[ -z "$$made" ] || rm -f $$policy; }; \
		command -v redis-server >/dev/null || echo "no redis-server: tests of limits over replicas will be skipped"; }

test-containers: .venv/.dev pack container-tools ## the box as a container: built without a network, read-only root, end to end (minutes)
	$(BIN)/pytest tests/containers

test-cluster: .venv/.dev ## what is rendered, on a real Kubernetes node: EKIBEN_CLUSTER=FOLDER (docs/cluster-tests.md)
	$(BIN)/pytest tests/cluster

# podman and buildah with what they need, and mmdebstrap, which makes an image of Debian's packages without a registry.
CONTAINER_TOOLS := podman buildah runc catatonit netavark aardvark-dns iptables fuse-overlayfs slirp4netns uidmap skopeo docker-registry umoci mmdebstrap debian-archive-keyring
container-tools: ## install podman, buildah and mmdebstrap from Debian, where they are missing and apt-get is there
	@missing() { for tool in podman buildah runc skopeo docker-registry umoci mmdebstrap catatonit; do command -v $$tool >/dev/null || echo $$tool; done; }; \
	[ -z "$$(missing)" ] && exit 0; \
	policy=/usr/sbin/policy-rc.d; made=; install="apt-get install -y --no-install-recommends $(CONTAINER_TOOLS)"; \
	[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && { \
		[ -e $$policy ] || { printf '#!/bin/sh\nexit 101\n' >$$policy && chmod +x $$policy && made=1; }; \
		export DEBIAN_FRONTEND=noninteractive; \
		{ $$install || { apt-get update && $$install; }; } </dev/null >/dev/null 2>&1; \
		[ -z "$$made" ] || rm -f $$policy; }; \
	[ -z "$$(missing)" ] || { echo "MISSING: $$(missing | tr '\n' ' ')- tests of containers will be skipped;"; \
		echo "as root on Debian: apt-get install $(CONTAINER_TOOLS)"; }

test-unit: .venv/.dev ## unit tests only: seconds, no network, no engine
	$(BIN)/pytest tests/unit

lint: .venv/.dev ## style, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

build: pack ## build the Bento, with a version that is a function of its content
	$(BIN)/ekiben bento build

load: .venv-load/.load ## load the served box (make serve in another shell), and print percentiles
	PYTHONPATH=. .venv-load/bin/locust -f loadtests/locustfile.py --headless --host http://localhost:$(PORT) \
		--users $(USERS) --spawn-rate 4 --run-time $(DURATION) --only-summary

bench-gateway: .venv/.dev pack ## measure the gateway beside the bare engine and stock vLLM, in one run (LITELLM=FILE: beside LiteLLM's proxy too)
	env -u OMP_NUM_THREADS $(BIN)/python -m benchmarks.gateway $(if $(LITELLM),--litellm $(LITELLM))

bench-overhead: .venv/.dev ## measure what the gateway adds to a request, without an engine (LITELLM=FILE as above)
	$(BIN)/python -m benchmarks.overhead $(if $(LITELLM),--litellm $(LITELLM))

bench-lora: .venv/.dev pack ## measure LoRA beside stock vLLM's and beside no LoRA, in one run (about 15 minutes)
	env -u OMP_NUM_THREADS $(BIN)/python -m benchmarks.lora

bench-engine: .venv/.dev pack ## measure our engine beside stock vLLM's defaults, in one run, on the same two processors
	$(BIN)/python benchmarks/engine.py

bench-features: .venv/.dev pack ## measure what a bundle may switch on in its engine: each switch on and off
	$(BIN)/python benchmarks/features.py

bench-guards: .venv/.dev pack ## measure what guards cost, and the service for names beside the same model in process
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.guarding

bench-coldstart: .venv/.dev pack ## measure the engine restored from its snapshot beside stock vLLM's cold start (root, criu)
	env -u OMP_NUM_THREADS $(BIN)/python -m benchmarks.coldstart

criu: ## put a current criu into /opt/criu, for snapshots (Debian)
	deploy/install-criu.sh $(CRIU_PREFIX)
CRIU_PREFIX ?= /opt/criu

test-snapshot: .venv/.dev pack ## tests of snapshots with a real criu and real vLLM; skipped without (make criu)
	$(BIN)/pytest tests/integration/test_revival.py tests/e2e/test_snapshot.py

lock: $(UV) ## compile the locks anew, with hashes and without any index's address
	$(LOCK) pyproject.toml --extra cpu --extra stores --output-file requirements/cpu.txt
	$(LOCK) pyproject.toml --extra cpu --extra stores --group dev --constraint requirements/cpu.txt --output-file requirements/dev.txt
	$(LOCK) --group quantize --output-file requirements/quantize.txt
	env -u UV_FIND_LINKS -u UV_TORCH_BACKEND $(LOCK) --no-config pyproject.toml --extra gpu --extra stores --output-file requirements/gpu.txt
	$(LOCK) --group load --output-file requirements/load.txt
LOCK = $(UV) pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --python-version $(PYTHON_VERSION)

clean: ## remove the environments (the model store stays)
	rm -rf .venv .venv-quantize .venv-load .uv bundle.lock

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/pip install --quiet uv

.venv/bin/python: | $(UV)
	$(UV) venv --quiet --python $(PYTHON_VERSION) .venv

.venv/.serve: requirements/cpu.txt pyproject.toml | .venv/bin/python
	@echo "installing the serving environment (about 3 GB on disk)"
	$(UV) pip install --quiet --python .venv --no-deps --require-hashes --requirement requirements/cpu.txt
	$(UV) pip install --quiet --python .venv --no-deps --editable .
	@touch $@

.venv/.dev: requirements/dev.txt .venv/.serve
	$(UV) pip install --quiet --python .venv --no-deps --require-hashes --requirement requirements/dev.txt
	@touch $@

.venv-load/.load: requirements/load.txt | $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON_VERSION) .venv-load
	$(UV) pip install --quiet --python .venv-load --no-deps --require-hashes --requirement requirements/load.txt
	@touch $@
