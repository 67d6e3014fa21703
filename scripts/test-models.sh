#!/usr/bin/env bash
# test-models.sh: synthetic weights of every architecture against Transformers in
# the pinned Python environment, which is made the first time (some gigabytes):
# the same token ids, the same logits. Needs 12 GB in TMPDIR and 8 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."
NATIVEBENCH_ENGINE_DIR=$(scripts/build-engine.sh --print-dir)
NATIVEBENCH_TEST_TRANSFORMERS=$(scripts/python-env.sh transformers)/bin/python
export NATIVEBENCH_ENGINE_DIR NATIVEBENCH_TEST_TRANSFORMERS
# shellcheck source=scripts/llama-pin.sh
. scripts/llama-pin.sh
cache=${NATIVEBENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nativebench}
if [ -d "$cache/llama.cpp-$LLAMA_TAG" ]; then
    export NATIVEBENCH_TEST_LLAMA_SOURCES=$cache/llama.cpp-$LLAMA_TAG
fi
if [ -x "$cache/python/convert/bin/python" ]; then
    export NATIVEBENCH_TEST_CONVERTER=$cache/python/convert/bin/python
fi
"${GO:-go}" test ./internal/synth -run 'TokenizerFilesAgree|TokenizersAreThose|LogitsAreThose|ConverterMakes|TextIsVaried' -count=1 -timeout 40m -v
