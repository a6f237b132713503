# The lazyfx server.
#
#   docker build -t lazyfx .                                   CPU (the default)
#   docker build -t lazyfx:cuda \
#     --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 \
#     --build-arg TORCH_INDEX= .                               CUDA
#
# NATIVE       1 for an image that can build native artifacts (lazyfx serve --native).
# RAY          1 for an image that can use a Ray cluster, or be a node of one (docs/scale.md).
# BASE         any Debian or Ubuntu image; Python comes from it or from its packages.
# TORCH_INDEX  an extra package index. The default has the small CPU build of
#              torch; empty uses the build on PyPI, which includes CUDA.
ARG BASE=python:3.13-slim-bookworm

# ---- The base of both stages: one interpreter at one path. ----
FROM ${BASE} AS base
SHELL ["/bin/sh", "-eu", "-c"]
ENV LANG=C.UTF-8
# The python images have an interpreter; CUDA and plain Debian images have none.
# Only the distribution knows which patch release its security archive serves, so no pin.
# hadolint ignore=DL3008
RUN if ! command -v python3 >/dev/null; then \
      apt-get update; \
      DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends python3 python3-venv; \
      rm -rf /var/lib/apt/lists/*; \
    fi

# ---- The virtual environment. Nothing else leaves this stage. ----
FROM base AS builder
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_EXTRA_INDEX_URL=${TORCH_INDEX}
RUN python3 -m venv /opt/lazyfx
WORKDIR /src
# Torch is most of the image and changes least, so it has its own layer.
COPY constraints.txt ./
RUN /opt/lazyfx/bin/pip install --constraint constraints.txt torch numpy
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY server server
ARG RAY=
RUN /opt/lazyfx/bin/pip install --constraint constraints.txt ".[server,redis,s3${RAY:+,ray}]" && \
    /opt/lazyfx/bin/pip check

# ---- The runtime image. ----
FROM base AS runtime
# NATIVE=1 adds the C++ compiler that `lazyfx serve --native` needs, and Python's headers.
ARG NATIVE=
# hadolint ignore=DL3008
RUN if [ -n "${NATIVE}" ]; then \
      apt-get update; \
      DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends g++ libc6-dev; \
      if ! [ -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]; then \
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-dev; \
      fi; \
      rm -rf /var/lib/apt/lists/*; \
    fi
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="lazyfx" \
      org.opencontainers.image.description="Compiles torch.fx graphs once, remotely, and only on demand" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"

# A fixed user id, so that Kubernetes can check runAsNonRoot and volumes keep their owner.
RUN groupadd --gid 10001 lazyfx && \
    useradd --uid 10001 --gid 10001 --home-dir /var/lib/lazyfx --no-create-home \
            --no-log-init --shell /usr/sbin/nologin lazyfx && \
    install -d -o 10001 -g 10001 -m 0750 /var/lib/lazyfx
COPY --from=builder /opt/lazyfx /opt/lazyfx

# 0.0.0.0 is only the container's own network; what is published is decided
# outside. HOME is on /tmp because the root file system may be read-only.
ENV PATH=/opt/lazyfx/bin:${PATH} \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LAZYFX_LISTEN=0.0.0.0:8700 \
    LAZYFX_METRICS_HOST=0.0.0.0 \
    LAZYFX_METRICS_PORT=8701 \
    LAZYFX_STORE_PATH=/var/lib/lazyfx \
    LAZYFX_LOG_FORMAT=json

USER 10001:10001
WORKDIR /var/lib/lazyfx
VOLUME /var/lib/lazyfx
EXPOSE 8700 8701
# The server drains on SIGTERM; the exec form below makes it process 1, so it gets it.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python3", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['LAZYFX_METRICS_PORT']), timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["lazyfx"]
CMD ["serve"]
