#!/usr/bin/env bash
# check-dockerfile.sh ARGUMENTS: runs every RUN line of a Dockerfile, its health
# check and its command, without a container engine, in plain roots that stand
# in for the base images (debootstrap makes such; docs/cuda-11.8.md). Needs root.
# The arguments are those of scripts/dockerfile.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p bin
"${GO:-go}" build -o bin/check-dockerfile ./scripts/dockerfile
exec unshare --mount --propagation private bin/check-dockerfile "$@"
