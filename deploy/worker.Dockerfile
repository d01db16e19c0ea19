# The worker: an agent, and its engine with torch. From the repository's root:
#   docker build -f deploy/worker.Dockerfile -t darkroom-worker .
#   docker build -f deploy/worker.Dockerfile -t darkroom-worker-cuda --build-arg TORCH_INDEX= .
FROM python:3.11-slim-bookworm AS build
# An index to look at besides pip's own: PyTorch's with CPU builds. Empty = pip's own alone, whose torch for Linux is the
# CUDA build; or PyTorch's index of another CUDA version.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# `worker,tracing` adds what sends spans.
ARG EXTRAS=worker
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python -m venv /srv/darkroom \
    && PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" /srv/darkroom/bin/pip install --no-cache-dir --disable-pip-version-check \
        -c constraints.txt torch
COPY service service
COPY worker worker
RUN /srv/darkroom/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[${EXTRAS}]"

FROM python:3.11-slim-bookworm
# `options.compile` of a model compiles with it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y g++ \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 darkroom \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/darkroom darkroom \
    && install -d -o 10001 -g 10001 /var/lib/darkroom
COPY --from=build /srv/darkroom /srv/darkroom
# Caches, of the hub and of what was compiled, are all that a worker writes, beside /tmp.
ENV PATH=/srv/darkroom/bin:$PATH \
    HOME=/var/lib/darkroom \
    XDG_CACHE_HOME=/var/lib/darkroom/cache \
    HF_HOME=/var/lib/darkroom/hub \
    CUDA_CACHE_PATH=/var/lib/darkroom/cache/cuda \
    TRITON_CACHE_DIR=/var/lib/darkroom/cache/triton \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DARKROOM_LOG=json \
    DARKROOM_METRICS_PORT=9100
VOLUME /var/lib/darkroom
USER 10001:10001
WORKDIR /
# The agent's own page of metrics: an engine that hangs is the agent's business, which replaces it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-P", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['DARKROOM_METRICS_PORT'] + '/metrics', timeout=4)"]
CMD ["python", "-P", "-m", "worker.agent"]
