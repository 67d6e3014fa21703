# shellcheck shell=bash
# The Go that the container images are built with. Sourced by image.sh.
# shellcheck disable=SC2034
GO_VERSION=1.26.8
GO_SHA256_amd64=d0f743b33e8d8945e6b1f432edd15785c70507121d6e2a723b21285eddf8b57b
GO_SHA256_arm64=211ffced9dcb9633a55eac6364816ec0ddd951389a740e88fa8b3337971bdda0
