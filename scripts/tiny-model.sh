#!/usr/bin/env bash
# tiny-model.sh: writes a two-layer GPT-2 relative with synthetic weights into
# the cache, once, and prints its path.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${NATIVEBENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nativebench}/models/gpt2-tiny
if ! compgen -G "$dir/*.gguf" >/dev/null; then
    rm -rf "$dir"
    [ -x bin/nativebench ] || make -s build >&2
    bin/nativebench models synth --layers 2 --width 128 -o "$dir" gpt2 >&2
fi
ls "$dir"/*.gguf
