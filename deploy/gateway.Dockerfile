# The gateway: HTTP in front of Redis and S3. No worker and no torch in it. From the repository's root:
#   docker build -f deploy/gateway.Dockerfile -t darkroom-gateway .
FROM python:3.11-slim-bookworm AS build
# `gateway,cli` adds the darkroom command, for tenants and keys; `gateway,tracing` what sends spans.
ARG EXTRAS=gateway
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service service
RUN python -m venv /srv/darkroom \
    && /srv/darkroom/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[${EXTRAS}]"

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 darkroom \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent darkroom
COPY --from=build /srv/darkroom /srv/darkroom
ENV PATH=/srv/darkroom/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DARKROOM_HOST=0.0.0.0 \
    DARKROOM_LOG=json \
    PORT=8000
USER 10001:10001
WORKDIR /
EXPOSE 8000
# Whether the process answers; whether it is ready is the load balancer's question.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-P", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/healthz', timeout=4)"]
CMD ["python", "-P", "-m", "service.app"]
