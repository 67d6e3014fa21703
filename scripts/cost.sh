#!/usr/bin/env bash
# cost.sh [arguments of scripts/cost]: what the HTTP client costs, and how far
# its times are off, against a server that knows the truth.
set -euo pipefail
cd "$(dirname "$0")/.."
"${GO:-go}" build -o bin/cost ./scripts/cost
exec bin/cost "$@"
