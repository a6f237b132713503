# `make demo` and `make test` need nothing but Python and make: they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTO_VENV := build/proto-venv
PROTOS := $(shell find proto -name '*.proto')

.PHONY: demo test check proto proto-check bench clean help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --constraint constraints.txt --group dev --editable '.[demo]'
	touch $@

proto: $(PROTO_VENV)/.installed ## Regenerate the protobuf stubs
	$(PROTO_VENV)/bin/python proto/generate.py

# The generator is kept at the oldest release whose stubs still load, so that
# users are not forced onto the newest protobuf; it cannot share .venv.
$(PROTO_VENV)/.installed:
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/pip install --quiet grpcio-tools==1.76.0 'protobuf<7' 'setuptools<81' mypy-protobuf==3.7.0 googleapis-common-protos==1.76.0
	touch $@
