#!/usr/bin/env bash
# exact-gelu.sh: an engine folder for tests, in the cache, whose CPU plugin
# computes GELU in float32; prints it. llama.cpp's own looks GELU up in a table of
# float16 (GGML_GELU_FP16 in ggml-cpu/vec.h), which alone puts logits of GPT-2 and
# Phi-2 more than 1e-3 away from float32's. All else is the engine's own build.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/llama-pin.sh
. scripts/llama-pin.sh

engine=$(scripts/build-engine.sh)
exact=$engine-exact-gelu
if [ -e "$exact/complete" ]; then
    echo "$exact"
    exit
fi
cache=$(dirname "$engine")
src=${NATIVEBENCH_LLAMA_SRC:-$cache/llama.cpp-$LLAMA_TAG}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$src" "$work/src"
sed -i 's|^#define GGML_GELU_\(QUICK_\)\?FP16$||' "$work/src/ggml/src/ggml-cpu/vec.h"
if grep -q '^#define GGML_GELU' "$work/src/ggml/src/ggml-cpu/vec.h" || ! grep -q GGML_GELU_FP16 "$work/src/ggml/src/ggml-cpu/vec.h"; then
    echo "exact-gelu: vec.h of $LLAMA_TAG is not as this script knows it" >&2
    exit 1
fi
mapfile -t flags < <(grep '^-D' "$engine/flags.txt")
echo "exact-gelu: building the CPU plugin (once; about 2 minutes on 2 cores)" >&2
if ! { cmake -S "$work/src" -B "$work/build" "${flags[@]}" -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF &&
    cmake --build "$work/build" --parallel "$(nproc)" --target ggml-cpu; } >"$work/log" 2>&1; then
    tail -n 20 "$work/log" >&2
    exit 1
fi
rm -rf "$exact"
mkdir "$exact"
ln -s "$engine"/* "$exact/"
rm -f "$exact/complete" "$exact"/libggml-cpu*.so
cp "$work"/build/bin/libggml-cpu*.so "$exact/"
touch "$exact/complete"
echo "$exact"
