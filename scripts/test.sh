#!/usr/bin/env bash
# test.sh: what `make test` and CI run. The engine must be built (make engine).
set -euo pipefail
cd "$(dirname "$0")/.."
NATIVEBENCH_ENGINE_DIR=$(scripts/build-engine.sh --print-dir)
export NATIVEBENCH_ENGINE_DIR
if ! NATIVEBENCH_TRACE_PROCESSOR=$(scripts/trace-processor.sh --fetch); then
    echo "test: traces are not opened in Perfetto's trace processor: see above" >&2
fi
export NATIVEBENCH_TRACE_PROCESSOR

echo "== Go, with cgo, race detector"
CGO_ENABLED=1 "${GO:-go}" test -timeout 30m -race ./...
echo "== Go, without cgo (client-only)"
CGO_ENABLED=0 "${GO:-go}" build ./...
CGO_ENABLED=0 "${GO:-go}" test -timeout 20m ./...
echo "== csrc: sampler, loop and ABI on the fake engine"
"$NATIVEBENCH_ENGINE_DIR/nb-check" "$NATIVEBENCH_ENGINE_DIR/fake/libnb.so" fake:step_us=50 100 2000
"$NATIVEBENCH_ENGINE_DIR/nb-check" --gpu # the kernels, run on the host
