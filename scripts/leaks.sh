#!/usr/bin/env bash
# leaks.sh: 1,000 open/close of a small model and 10,000 requests on it; fails
# when resident memory still grows over the second half of either.
set -euo pipefail
cd "$(dirname "$0")/.."
engine=$(scripts/build-engine.sh)
"$engine/nb-check" "$engine/libnb.so" "$(scripts/tiny-model.sh)" 1000 10000
