#!/usr/bin/env bash
# lint.sh GOFUMPT STATICCHECK CLANGFORMAT SHELLCHECK (pinned versions; see the
# Makefile): fails with what is to be mended.
set -euo pipefail
cd "$(dirname "$0")/.."
gofumpt=$1 staticcheck=$2 clangformat=$3 shellcheck=$4

# pinned PACKAGE==VERSION: the command of a Python-packaged tool, installed once.
pinned() {
    local dir=${XDG_CACHE_HOME:-$HOME/.cache}/nativebench/tools/$1
    [ -x "$dir/bin/python3" ] || python3 -m venv "$dir"
    [ -e "$dir/ok" ] || { "$dir/bin/pip" install -q "$1" && touch "$dir/ok"; }
    echo "$dir/bin"
}

status=0
fail() {
    echo "lint: $*"
    status=1
}
out=$(go run "$gofumpt" -l .) && [ -z "$out" ] || fail "gofumpt: $out"
go vet ./... || fail "go vet"
CGO_ENABLED=0 go vet ./... || fail "go vet without cgo"
go run "$staticcheck" ./... || fail staticcheck
go mod tidy -diff || fail "go mod tidy"
"$(pinned "$clangformat")/clang-format" --dry-run --Werror csrc/*.h csrc/*.cpp native/*.h native/*.c || fail clang-format
"$(pinned "$shellcheck")/shellcheck" -x scripts/*.sh .ci/run || fail shellcheck
exit $status
