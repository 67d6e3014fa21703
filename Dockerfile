# syntax=docker/dockerfile:1
# nativebench with its engine for CPUs, whichever there is: the engine takes the
# best of its variants at run time. `make docker` builds it; docs/containers.md.
# For NVIDIA GPUs: Dockerfile.cuda.
#
#   CPU_VARIANTS  all, or native: the instruction set of this machine alone
#   PYTHON_ENV    transformers (some gigabytes), or none
#   GO_URL        a mirror of https://go.dev/dl
ARG BASE=debian:trixie-slim

FROM ${BASE} AS build
WORKDIR /src
COPY scripts/image.sh scripts/
RUN scripts/image.sh tools
ARG CPU_VARIANTS=all
ENV NATIVEBENCH_CACHE=/cache NATIVEBENCH_CPU=${CPU_VARIANTS} NATIVEBENCH_CUDA=0
COPY scripts/build-engine.sh scripts/llama-pin.sh scripts/source-hash.sh scripts/
COPY csrc/ csrc/
RUN --mount=type=cache,id=nativebench,target=/cache,sharing=locked scripts/image.sh engine
COPY . .
ARG VERSION=unknown
ARG GO_URL=https://go.dev/dl
RUN --mount=type=cache,id=nativebench,target=/cache,sharing=locked scripts/image.sh program

FROM ${BASE} AS engine
WORKDIR /opt/nativebench
COPY scripts/image.sh scripts/
RUN scripts/image.sh runtime
COPY --from=build /opt/nativebench/ ./
ENV PATH=/opt/nativebench:${PATH}
RUN scripts/image.sh check
ARG VERSION=unknown
LABEL org.opencontainers.image.title="nativebench" \
      org.opencontainers.image.description="What does serving a language model cost over running it? CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.base.name="docker.io/library/debian:trixie-slim"
USER 1000:1000
WORKDIR /bench
# doctor fails when the engine does not load or the cache cannot be written. It
# is asked once, early: a measuring machine should have nothing else to do.
HEALTHCHECK --interval=24h --timeout=30s --start-period=60s --start-interval=5s CMD ["nativebench", "doctor"]
ENTRYPOINT ["nativebench"]
CMD ["doctor"]

FROM engine AS full
USER 0:0
ARG PYTHON_ENV=none
WORKDIR /opt/nativebench
COPY scripts/image.sh scripts/python-env.sh scripts/
COPY scripts/python/ scripts/python/
RUN --mount=type=cache,id=nativebench-pip,target=/root/.cache/pip,sharing=locked scripts/image.sh python ${PYTHON_ENV}
ENV NATIVEBENCH_PYTHON_TRANSFORMERS=/opt/nativebench/python/transformers
RUN scripts/image.sh check
USER 1000:1000
WORKDIR /bench
