#!/usr/bin/env bash
# test-servers.sh [NAME …]: the conformance suite against real servers on this
# machine's CPU: by default vllm, transformers and transformers-serve, each in
# its pinned Python environment, which is made the first time (some gigabytes).
#
# ENDPOINTS="tgi=http://host:8080 …" adds servers that run already.
set -euo pipefail
cd "$(dirname "$0")/.."
NATIVEBENCH_ENGINE_DIR=$(scripts/build-engine.sh --print-dir)
export NATIVEBENCH_ENGINE_DIR

if [ $# = 0 ]; then
    set -- transformers transformers-serve vllm
fi
servers=()
for name in "$@"; do
    env=$name
    if [ "$name" = transformers-serve ]; then
        env=transformers
    fi
    servers+=("$name=$(scripts/python-env.sh "$env")/bin")
done
NATIVEBENCH_TEST_SERVERS="${servers[*]}" NATIVEBENCH_TEST_ENDPOINTS="${ENDPOINTS:-}" \
    "${GO:-go}" test ./httpbackends -run TestRealServersConform -count=1 -timeout 40m -v
