# What people and CI type. `make` lists it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help run test check fix stubs clients conformance bench bench-quick image lock clean

# The first of these that is Python 3.11 or newer; `make PYTHON=... test` chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; \
  done)
IMAGE ?= imagetasks
# Processes that run tests.
WORKERS ?= 2

bin := .venv/bin
python := $(bin)/python
# pip compiles one module after the other; `compile_all` all processors at once.
pip := python -m pip --disable-pip-version-check install --quiet --no-compile
compile_all := python -m compileall -qq -j 0
protoset := clients/python/imagetasks/v1/store_image_tasks.protoset
buf_config := --config buf.yaml --path imagetasks
# What ruff finds by itself, mypy is told: the three packages of pyproject.toml, and these.
own_scripts := scripts tests/project tests/ci tests/conformance

# Beyond Python: each language has its tool, and a target that builds its client and runner and tests them.
languages := go typescript java rust
tool_go := go
tool_typescript := npm
tool_java := mvn
tool_rust := cargo
built = $(foreach each,$(languages),$(if $(shell command -v $(tool_$(each))),$(each)))
go_bin := $(CURDIR)/.build/bin
npm_installed := clients/typescript/node_modules/.package-lock.json

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

# gRPC's own log lines would stand among ours; it is read when gRPC is imported.
run: export GRPC_VERBOSITY ?= NONE
run: .venv/project ## start a sandbox and the gateway, and watch tasks progress (RUN_SECONDS=20 ends it)
	@$(python) scripts/demo.py

test: .venv/project .venv-awscli/installed ## run every test that needs only Python
	$(python) -m pytest -n $(WORKERS) --dist loadfile

check: .venv/project ## lint, types, the contract's style and compatibility, generated code
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/mypy $(own_scripts)
	$(bin)/mypy benchmarks
	$(python) scripts/stubs.py --check
	$(bin)/buf lint '$(protoset)#format=binpb' $(buf_config)
	$(bin)/buf breaking '$(protoset)#format=binpb' --against protos/imagetasks.v1.released.binpb $(buf_config)

fix: .venv/project ## repair what ruff can, and format
	$(bin)/ruff check --fix
	$(bin)/ruff format

stubs: .venv/project $(if $(shell command -v go),.build/bin/protoc-gen-go .build/bin/protoc-gen-go-grpc) $(if $(shell command -v npm),$(npm_installed)) $(if $(shell command -v cargo),.build/rust/debug/imagetasks-stubs) ## generate from the contract what is checked in: stubs, descriptor set, fingerprints
	$(python) scripts/stubs.py

clients: $(addprefix client-,$(built)) ## build and test the clients of other languages whose toolchain is here
	@for each in $(filter-out $(built),$(languages)); do echo "clients: $$each is left out, for its toolchain is not here"; done

conformance: .venv/project ## play the scenarios to the clients that are built (LANGUAGES=python,go demands these)
	@GRPC_VERBOSITY=NONE $(python) tests/conformance/run.py $(if $(LANGUAGES),--languages $(LANGUAGES),--built)

bench: .venv/project .venv-awscli/installed ## run the benchmarks, and write docs/performance.md (ONLY="describe fanout": these)
	$(python) benchmarks/run.py $(ONLY)

bench-quick: .venv/project .venv-awscli/installed ## a reduced set in two minutes; fails if a ratio is far from its goal
	$(python) benchmarks/run.py --quick $(ONLY)

image: ## build the container image (IMAGE=name:tag)
	@docker version >/dev/null 2>&1 || { echo 'make image needs docker and a running engine; "docker version" tells more.' >&2; exit 1; }
	docker build --tag $(IMAGE) .

# All extras; of these what the image runs, and what builds its wheel; the AWS command line.
lock: .venv/project ## resolve the dependencies anew, within pyproject.toml (UPGRADE=1: to the newest)
	$(bin)/uv $(compile) --all-extras --output-file requirements.lock pyproject.toml
	$(bin)/uv $(compile) --extra server --extra fast --extra otel --constraints requirements.lock --output-file requirements.server.lock pyproject.toml
	printf 'hatchling\neditables\n' | $(bin)/uv $(compile) --constraints requirements.lock --output-file requirements.build.lock -
	$(bin)/uv $(compile) --output-file tests/awscli/requirements.lock tests/awscli/requirements.in

compile = pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header $(if $(UPGRADE),--upgrade)

clean: ## remove everything that make has made
	rm -rf .venv .venv-awscli .build dist clients/typescript/dist clients/typescript/node_modules .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# pip refuses hashes and an editable project in one go: first what is locked, then the project alone.
.venv/locked: requirements.lock
	$(call venv,.venv)
	$(bin)/$(pip) --require-hashes -r requirements.lock
	@$(bin)/$(compile_all) .venv/lib
	@touch $@

.venv/project: .venv/locked pyproject.toml
	$(bin)/$(pip) --no-deps --no-build-isolation --editable .
	@touch $@

# The AWS command line needs another botocore than the gateway.
.venv-awscli/installed: tests/awscli/requirements.lock
	$(call venv,.venv-awscli)
	.venv-awscli/bin/$(pip) --require-hashes -r $<
	@.venv-awscli/bin/$(compile_all) .venv-awscli/lib
	@touch $@

protoc_gen_go := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
protoc_gen_go_grpc := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2

.PHONY: $(addprefix client-,$(languages))

client-go:
	@cd clients/go && unformatted=$$(gofmt -l .) && test -z "$$unformatted" || { echo "not as gofmt has it: $$unformatted" >&2; exit 1; }
	cd clients/go && go vet ./... && go test -race ./... && GOBIN=$(go_bin) go install ./cmd/... ./examples/...

client-java:
	cd clients/java && mvn --quiet --batch-mode package

client-rust:
	cd clients/rust && $(rust_build) cargo build --quiet --examples
	$(if $(call cargo_has,fmt),cd clients/rust && cargo fmt --check && cargo fmt --check --manifest-path generate/Cargo.toml,@echo 'client-rust: the format is not looked at, for rustfmt is not here')
	$(if $(call cargo_has,clippy),cd clients/rust && $(rust_build) cargo clippy --quiet --all-targets -- -D warnings,@echo 'client-rust: nothing is linted, for clippy is not here')

cargo_has = $(shell cargo $(1) --version 2>/dev/null)
rust_build := CARGO_TARGET_DIR=$(CURDIR)/.build/rust

.build/rust/debug/imagetasks-stubs: clients/rust/generate/Cargo.toml clients/rust/generate/src/main.rs
	cd clients/rust/generate && $(rust_build) cargo build --quiet
	@touch $@

.build/bin/protoc-gen-go .build/bin/protoc-gen-go-grpc: Makefile
	GOBIN=$(go_bin) go install $(if $(filter %-grpc,$@),$(protoc_gen_go_grpc),$(protoc_gen_go))
	@touch $@

client-typescript: $(npm_installed)
	cd clients/typescript && npm run --silent check && npm run --silent build && npm run --silent test

$(npm_installed): clients/typescript/package.json clients/typescript/package-lock.json clients/typescript/.npmrc
	cd clients/typescript && npm ci
	@touch $@

define venv
@test -n "$(PYTHON)" || { echo 'imagetasks needs Python 3.11 or newer, and none was found: make PYTHON=/path/to/python3 ...' >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "imagetasks needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
@echo 'Installing into $(1) (once; about a minute)'
@$(PYTHON) -m venv $(1)
endef
