#!/usr/bin/env bash
# fuzz.sh TIME: runs every fuzz target for TIME each.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-20s}
while IFS=: read -r file target; do
    echo "== $target ($file), $time"
    "${GO:-go}" test "./$(dirname "$file")" -run '^$' -fuzz "^$target\$" -fuzztime "$time"
done < <(grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed 's|^\./||; s|func ||')
