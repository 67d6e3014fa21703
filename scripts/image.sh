#!/usr/bin/env bash
# image.sh STEP: the steps of Dockerfile and Dockerfile.cuda, in their order.
#
#   tools         what building needs of the distribution
#   engine        llama.cpp and our library over it, into the cache
#   program       Go as pinned; nativebench and the engine, into $PREFIX
#   runtime       what running needs of the distribution, and the user 1000
#   python ENV    a pinned Python environment of python-env.sh, into $PREFIX; "none": none
#   check         fails unless the image can do its work
#
#   NATIVEBENCH_CACHE  where things are kept from build to build (a cache mount)
#   PREFIX             where nativebench goes; default /opt/nativebench
#   VERSION            what `nativebench version` says
#   GO_URL             where Go's archive is; default https://go.dev/dl
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=${PREFIX:-/opt/nativebench}
die() {
    echo "image: $*" >&2
    exit 1
}

# packages NAME...: installs them and leaves no lists.
packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*
}

# install_go puts the pinned Go into /opt/go.
install_go() {
    # shellcheck source=scripts/go-pin.sh
    . scripts/go-pin.sh
    local arch sum file
    arch=$(dpkg --print-architecture)
    sum=GO_SHA256_$arch
    sum=${!sum:-}
    [ -n "$sum" ] || die "no Go is pinned for $arch: scripts/go-pin.sh has amd64 and arm64"
    file=${NATIVEBENCH_CACHE:-/tmp}/go$GO_VERSION.linux-$arch.tar.gz
    if ! echo "$sum  $file" | sha256sum --check --status 2>/dev/null; then
        curl -fsSL --retry 3 -o "$file" "${GO_URL:-https://go.dev/dl}/${file##*/}" ||
            die "Go could not be fetched from ${GO_URL:-https://go.dev/dl}: give a mirror as --build-arg GO_URL=URL"
        echo "$sum  $file" | sha256sum --check --status ||
            die "${file##*/} of ${GO_URL:-https://go.dev/dl} is not what was pinned (SHA-256 $sum): nothing of it was used"
    fi
    tar -C /opt -xzf "$file"
}

case ${1:-} in
    tools) packages ca-certificates curl g++ cmake git make ;;
    engine) scripts/build-engine.sh ;;
    program)
        install_go
        export PATH=/opt/go/bin:$PATH GOTOOLCHAIN=local GOFLAGS=-buildvcs=false
        export GOMODCACHE=${NATIVEBENCH_CACHE:-/tmp}/go/mod GOCACHE=${NATIVEBENCH_CACHE:-/tmp}/go/build
        make build VERSION="${VERSION:-unknown}"
        # The cache, where half of the engine's folder leads to, is not in the image.
        mkdir -p "$prefix/engine"
        cp -a "$(dirname "$(readlink -f bin/engine/llama-server)")/." "$prefix/engine/"
        find bin/engine/ -mindepth 1 -maxdepth 1 ! -type l -exec cp -a -t "$prefix/engine" {} +
        cp bin/nativebench LICENSE "$prefix/"
        ;;
    runtime)
        packages ca-certificates libgomp1
        useradd --create-home --user-group --uid 1000 --shell /bin/bash nativebench
        # Volumes that are mounted there take their owner from these.
        cd /home/nativebench
        install -d -o nativebench -g nativebench /bench /bench/runs .cache .cache/nativebench .cache/huggingface
        ;;
    python)
        [ "${2:?python needs the name of an environment, or none}" != none ] || exit 0
        packages python3 python3-venv
        mkdir -p "$prefix/python"
        NATIVEBENCH_CACHE=$prefix scripts/python-env.sh "$2"
        ln -sfn "$2" "$prefix/python/transformers" # where the row of the same name looks
        rm -f "$prefix"/python/*.lock
        ;;
    check)
        "$prefix/nativebench" doctor
        if [ -e "$prefix/python/transformers" ]; then
            "$prefix/python/transformers/bin/python" -c 'import torch, transformers; print("transformers", transformers.__version__, "torch", torch.__version__)'
        fi
        ;;
    *) die "which step? One of: tools, engine, program, runtime, python, check" ;;
esac
