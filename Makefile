# `make demo` and `make test` need nothing but Python and make: they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTO_VENV := build/proto-venv
PROTOS := $(shell find proto -name '*.proto')

.PHONY: demo test test-long ray flaky numerics fuzz-native check proto proto-check bench bench-abuse bench-fairness bench-training bench-warm load fleet chaos targets bounds zoo zoo-passes conformance remote-share saved-formats torchao gpu gpu-wheels clean help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# pip would compile on one core, for a minute. Some files are templates or for other Pythons.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --group dev --editable '.[demo]'
	-$(BIN)/python -m compileall -q -j 2 $(VENV)/lib >/dev/null
	touch $@

proto: $(PROTO_VENV)/.installed ## Regenerate the protobuf stubs
	$(PROTO_VENV)/bin/python proto/generate.py

# The generator is kept at the oldest release whose stubs still load, so that
# users are not forced onto the newest protobuf; it cannot share .venv.
$(PROTO_VENV)/.installed:
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/pip install --quiet grpcio-tools==1.76.0 'protobuf<7' 'setuptools<81' mypy-protobuf==3.7.0 googleapis-common-protos==1.76.0
	touch $@

demo: $(STAMP) ## Set up, then run the main use case on this machine: server, real model, report, hit
	$(BIN)/lazyfx demo

# One more than CI has cores: many tests wait, for a server that drains or a call that times out.
# They start hundreds of processes. If Python may not write bytecode, each of them would compile
# the package again, so it is compiled first.
WORKERS ?= 3
PYTEST = $(BIN)/python -m pytest -q -n $(WORKERS) --durations=20 --durations-min=1

test: $(STAMP) ## Set up, then run all tests but the long ones (LONG=1: these too), and list the slowest 20; ARGS=path runs all of those
	$(BIN)/python -m compileall -q client server
	$(PYTEST) $(if $(ARGS),$(ARGS),-m $(if $(LONG),'not slow','not slow and not long'))

test-long: $(STAMP) ## The long tests: those that compile C++, real models, very many cases
	$(BIN)/python -m compileall -q client server
	$(PYTEST) -m 'long and not slow' $(ARGS)

ray: $(STAMP) ## Run servers on a real Ray cluster: targets, versions, the death of its head (slow)
	$(BIN)/python -m pytest -m "slow or long" tests/training/test_ray.py tests/e2e/test_ray_local.py tests/contract/test_executors.py $(ARGS)

flaky: $(STAMP) ## Run tests three times and list those with different outcomes; ARGS="--times 5 path"
	$(BIN)/python tests/flaky.py $(ARGS)

numerics: $(STAMP) ## Train real models remotely and locally, compare every gradient; other large samples (slow)
	$(BIN)/python -m pytest -m slow

fuzz-native: $(STAMP) ## Pass 2,000 graphs with hostile text through Inductor, up to the compiler (slow)
	$(BIN)/python -m pytest -m slow tests/hostile/test_native_lowering.py

check: $(STAMP) proto-check ## Check format, lint, types, import direction, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

proto-check: $(STAMP) $(PROTO_VENV)/.installed ## Check that stubs are up to date, protos lint, and nothing breaks main
	$(PROTO_VENV)/bin/python proto/generate.py --check
	$(PROTO_VENV)/bin/python proto/generate.py --image build/lazyfx.binpb
	$(BIN)/buf lint build/lazyfx.binpb --config buf.yaml
	PYTHON=$(PROTO_VENV)/bin/python BUF=$(BIN)/buf sh proto/breaking.sh

bench: $(STAMP) ## Benchmark against alternatives, in one table; ARGS="--quick --json FILE"
	$(BIN)/python -m bench $(ARGS)

bench-abuse: $(STAMP) ## Measure a legitimate client next to 20 hostile ones; ARGS="--seconds 60"
	$(BIN)/python -m bench.abuse $(ARGS)

bench-fairness: $(STAMP) ## Measure what a flood of one tenant costs another; ARGS="--rounds 5"
	$(BIN)/python -m bench.fairness $(ARGS)

load: $(STAMP) ## Hits, misses and both at 1 to 256 in flight beside an echo; ARGS="--hits 1000000" or "--soak 3600"
	$(BIN)/python -m bench.load $(ARGS)

fleet: $(STAMP) ## Simulate fleets of up to 100,000 ranks from measured times, checked with 200 real clients
	$(BIN)/python -m bench.fleet $(ARGS)

chaos: $(STAMP) ## Load while processes die and freeze, disks fill and links break; ARGS="--seed N --short" (10 min)
	$(BIN)/python -m chaos $(ARGS)

targets: $(STAMP) ## Diff the reviewed table of targets with this torch; ARGS=--write writes it
	$(BIN)/python -m lazyfx_server.security.allowed $(ARGS)

bounds: $(STAMP) ## Write docs/bounds.md from the settings
	$(BIN)/python -m lazyfx_server.bounds_page --write

zoo: $(STAMP) ## Encode and decode real architectures in every capture; ARGS="--write docs/zoo.md"
	$(BIN)/python -m zoo $(ARGS)

saved-formats: $(STAMP) ## Save graphs of the zoo and of torch's databases, call the files with torch alone (2-3 hours, goes on after a stop); ARGS="'zoo gpt2 *' --formats pickle"
	mkdir -p build
	$(BIN)/python -m conformance.saved $(if $(ARGS),$(ARGS),--record build/saved-formats.jsonl)

conformance: $(STAMP) ## Send torch's databases of operators and modules through a server (30 min); ARGS="'op linalg*' --calls 3"
	$(BIN)/python -m conformance $(ARGS)

remote-share: $(STAMP) ## Count the graphs of torch's databases and the zoo that go remote, others by reason (2 h); ARGS="'op *' --every 6"
	$(BIN)/python -m conformance.remote $(ARGS)

# Not in .venv itself, because transformers imports torchao if it finds it.
torchao: $(STAMP) ## Install torchao next to .venv, and run the tests that need it
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/torchao torchao
	PYTHONPATH=build/torchao $(BIN)/python -m pytest -q tests/passes/test_quantize_weights.py

zoo-passes: $(STAMP) ## Run every pass over real architectures, and compare a training step; ARGS="--write docs/passes_zoo.md"
	$(BIN)/python -m zoo.numerics $(ARGS)

bench-warm: $(STAMP) ## Measure the first step of a job that has run before; ARGS="--delay 10 --kept"
	$(BIN)/python -m bench.warm_start $(ARGS)

bench-training: $(STAMP) ## Measure the time to the first training step, with five kinds of cache; ARGS="--ranks 1,4"
	$(BIN)/python -m bench.training $(ARGS)

# Uses the host's own torch. Without network: run `make gpu-wheels` elsewhere, for the same
# Python (GPU_PYTHON_VERSION), and copy build/wheels here.
GPU_PYTHON_VERSION ?= 3.12
WHEELS := $(wildcard build/wheels)
GPU_VENV := build/gpu-venv

gpu: ## On a CUDA host: run all GPU tests with the host's own torch
	$(PYTHON) -m venv --system-site-packages $(GPU_VENV)
	$(PYTHON) tests/gpu/requirements.py > build/gpu-requirements.txt
	$(GPU_VENV)/bin/pip install --quiet $(if $(WHEELS),--no-index --find-links $(WHEELS)) --requirement build/gpu-requirements.txt
	$(GPU_VENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	$(GPU_VENV)/bin/python -m pytest -m gpu tests/gpu

gpu-wheels: ## Download the packages for `make gpu`, for a host without network
	mkdir -p build
	$(PYTHON) tests/gpu/requirements.py > build/gpu-requirements.txt
	$(PYTHON) -m pip download --quiet --only-binary=:all: --python-version $(GPU_PYTHON_VERSION) --dest build/wheels --requirement build/gpu-requirements.txt

clean: ## Remove everything that was set up and built
	rm -rf $(VENV) build dist
