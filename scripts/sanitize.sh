#!/usr/bin/env bash
# sanitize.sh: csrc under AddressSanitizer + UBSan and under ThreadSanitizer.
#
# The loop, sampler and ABI run with the fake engine under both; with llama.cpp
# under ASan/UBSan. (Under TSan llama.cpp's OpenMP runtime, which is not
# instrumented, would only give false alarms.)
set -euo pipefail
cd "$(dirname "$0")/.."

model=${1:-}
if [ -z "$model" ]; then
    model=$(scripts/tiny-model.sh)
fi
asan=$(scripts/build-engine.sh --sanitize address)
tsan=$(scripts/build-engine.sh --sanitize thread)
export ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1

echo "== ASan + UBSan, fake engine"
"$asan/nb-check" "$asan/fake/libnb.so" fake:step_us=50 100 2000
echo "== TSan, fake engine"
"$tsan/nb-check" "$tsan/fake/libnb.so" fake:step_us=50 20 1000
echo "== ASan + UBSan, llama.cpp"
"$asan/nb-check" "$asan/libnb.so" "$model" 5 200
