#!/usr/bin/env bash
# test-servers.sh [NAME …]: the conformance suite against real servers on this
# machine's CPU, and our Transformers server's own checks: by default vllm,
# transformers, transformers-4.36 (the same server with Transformers 4.36 and
# PyTorch 2.1) and transformers-serve, each in its pinned Python environment,
# which is made the first time (some gigabytes).
#
# ENDPOINTS="tgi=http://host:8080 …" adds servers that run already.
set -euo pipefail
cd "$(dirname "$0")/.."
NATIVEBENCH_ENGINE_DIR=$(scripts/build-engine.sh --print-dir)
export NATIVEBENCH_ENGINE_DIR

if [ $# = 0 ]; then
    set -- transformers transformers-4.36 transformers-serve vllm
fi
servers=()
for name in "$@"; do
    row=$name env=$name
    case $name in
    transformers-serve) env=transformers ;;
    transformers-4.36) row=transformers ;;
    esac
    bin=$(scripts/python-env.sh "$env")/bin
    servers+=("$row=$bin")
    if [ "$row" = transformers ]; then
        echo "== $name: scripts/python/test_transformers_server.py"
        HF_HUB_OFFLINE=1 "$bin/python" scripts/python/test_transformers_server.py "$(dirname "$(scripts/tiny-model.sh)")/hf"
        # Phi-2's checkpoints have another form than Transformers 4.36 knows.
        NATIVEBENCH_PYTHON_TRANSFORMERS=$(dirname "$bin") "${GO:-go}" run ./cmd/nativebench verify --weights synthetic --model phi-2 --layers 2 --width 160 \
            --backends native,transformers --prompts 4 --max-tokens 16
    fi
done
echo "== conformance"
NATIVEBENCH_TEST_SERVERS="${servers[*]}" NATIVEBENCH_TEST_ENDPOINTS="${ENDPOINTS:-}" \
    "${GO:-go}" test ./httpbackends -run TestRealServersConform -count=1 -timeout 40m -v
