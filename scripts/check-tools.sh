#!/usr/bin/env bash
# check-tools.sh: says what is missing to build, all at once, and how to get it.
# As root on Debian or Ubuntu it installs what apt has.
set -euo pipefail

missing=()
for pair in c++:g++ cc:gcc cmake:cmake git:git make:make; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing: ${missing[*]}" >&2
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    missing=()
fi
if [ ${#missing[@]} -gt 0 ]; then
    echo "missing: ${missing[*]}; on Debian or Ubuntu: sudo apt-get install ${missing[*]}" >&2
    exit 1
fi

need=$(awk '$1 == "go" {print $2}' go.mod)
if ! command -v "${GO:-go}" >/dev/null; then
    echo "missing: Go $need or newer (https://go.dev/dl)" >&2
    exit 1
fi
have=$("${GO:-go}" env GOVERSION | sed 's/^go//')
if [ "$(printf '%s\n%s\n' "$need" "$have" | sort -V | head -n 1)" != "$need" ]; then
    echo "Go $have is too old: $need or newer is needed (https://go.dev/dl)" >&2
    exit 1
fi
