#!/usr/bin/env bash
# speed.sh [arguments of scripts/speed]: the engine against llama-bench and
# llama-batched-bench, on GPT-2 small with synthetic weights, F16.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${NATIVEBENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nativebench}/models/gpt2-speed
if ! compgen -G "$dir/*.gguf" >/dev/null; then
    rm -rf "$dir"
    bin/nativebench models synth -o "$dir" gpt2 >&2
fi
"${GO:-go}" build -o bin/speed ./scripts/speed
NATIVEBENCH_ENGINE_DIR=$(scripts/build-engine.sh) bin/speed -model "$(ls "$dir"/*.gguf)" "$@"
