#!/usr/bin/env bash
# check-tools.sh: says what is missing to build, all at once, and how to get it.
# As root on Debian or Ubuntu it installs what apt has.
set -euo pipefail

# absent prints the Debian packages of the commands that are not there. The
# source of llama.cpp comes by curl or by npm, whichever there is.
absent() {
    local pair
    for pair in c++:g++ cc:gcc cmake:cmake git:git make:make flock:util-linux; do
        command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
    done
    if [ -z "${NATIVEBENCH_LLAMA_SRC:-}" ] && ! command -v curl >/dev/null && ! command -v npm >/dev/null; then
        printf '%s\n' curl ca-certificates
    fi
}

mapfile -t missing < <(absent)
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing: ${missing[*]}" >&2
    apt-get update -qq >/dev/null || true
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || true
    mapfile -t missing < <(absent)
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
