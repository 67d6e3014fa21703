#!/usr/bin/env bash
# test-models.sh: synthetic weights of every architecture against Transformers in
# the pinned Python environment, which is made the first time (some gigabytes):
# the same token ids, the same logits, the same greedy answers, the same distribution
# of sampled tokens; and the conversion to GGUF, alone and in compare. Needs 12 GB in TMPDIR and 8 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."
NATIVEBENCH_ENGINE_DIR=$(scripts/build-engine.sh --print-dir)
NATIVEBENCH_TEST_TRANSFORMERS=$(scripts/python-env.sh transformers)/bin/python
NATIVEBENCH_TEST_EXACT_ENGINE=$(scripts/exact-gelu.sh)
export NATIVEBENCH_ENGINE_DIR NATIVEBENCH_TEST_TRANSFORMERS NATIVEBENCH_TEST_EXACT_ENGINE
# shellcheck source=scripts/llama-pin.sh
. scripts/llama-pin.sh
cache=${NATIVEBENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nativebench}
if [ -d "$cache/llama.cpp-$LLAMA_TAG" ]; then
    export NATIVEBENCH_TEST_LLAMA_SOURCES=$cache/llama.cpp-$LLAMA_TAG
fi
NATIVEBENCH_PYTHON_CONVERT=$(scripts/python-env.sh convert)
NATIVEBENCH_TEST_CONVERTER=$NATIVEBENCH_PYTHON_CONVERT/bin/python
export NATIVEBENCH_PYTHON_CONVERT NATIVEBENCH_TEST_CONVERTER
# The converter for real, and compare from a hub with it.
"${GO:-go}" test ./internal/convert ./cmd/nativebench -p 1 -run 'Convert|Quantized|GivenUp|TestCompareFromTheHub' -count=1 -timeout 30m -v

# One package after the other: each holds a model of some gigabytes.
"${GO:-go}" test ./internal/synth ./internal/verify -p 1 -run 'TokenizerFilesAgree|TokenizersAreThose|LogitsAreThose|ConverterMakes|TextIsVaried|SameModelAsTransformers' \
    -count=1 -timeout 90m -v

# Top-p means the same in both: the first tokens of 2,000 seeds.
"${GO:-go}" run ./cmd/nativebench verify --sampled --weights synthetic --backends native,transformers --engine-dir "$NATIVEBENCH_ENGINE_DIR"
