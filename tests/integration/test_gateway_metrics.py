"""What a running gateway tells Prometheus, and where."""

from __future__ import annotations

import httpx
import redis

from service.settings.groups import RedisSettings, StorageSettings
from service.telemetry import metric_names
from tests.e2e.processes import free_port, samples, wait_for
from tests.gateway import EMOJI, SHAPES, gateway_process, make_key, show_models

GENERATION = "/v1/generations/{generation_id}"


def of_request(method: str, route: str, status: str) -> str:
    return f'{metric_names.REQUESTS}{{method="{method}",route="{route}",status="{status}"}}'


def test_prometheus_reads_what_a_gateway_does(
    redis_settings: RedisSettings, storage_settings: StorageSettings, redis_client: redis.Redis
) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    key = make_key(redis_client)
    redis_client.config_set("maxmemory", 1 << 30)
    port = free_port()
    try:
        with gateway_process(redis_settings, storage_settings, DARKROOM_METRICS_PORT=str(port)) as gateway:
            with httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {key}"}) as client:
                posted = client.post("/v1/generations", json={"prompt": "a private prompt", "priority": "low"})
                assert posted.status_code == 202
                client.post("/v1/generations", json={"prompt": "a private prompt", "steps": "many"})
                client.get("/v1/secret-path-of-a-caller")
                path = posted.headers["Location"]
                for _ in range(3):
                    client.get(path)
                held = client.get(path, headers={"Prefer": "wait=1"})
                assert held.json()["status"] == "queued"
                assert client.get("/metrics").status_code == 404
            waiting = f'{metric_names.QUEUE_JOBS}{{pool="default",priority="low"}}'
            probed = f"{metric_names.STORAGE_SECONDS}_count"

            def look() -> dict[str, float] | None:
                seen = samples(port)
                return seen if seen.get(waiting) == 1 and seen[probed] else None

            found = wait_for("a census with the job, and a probe of the bucket", look, timeout_s=15)

            assert found[f'{metric_names.QUEUE_OLDEST_SECONDS}{{pool="default",priority="low"}}'] > 0
            assert found[f'{metric_names.RUNNING_JOBS}{{pool="default"}}'] == 0
            assert found[of_request("POST", "/v1/generations", "2xx")] == 1
            assert found[of_request("POST", "/v1/generations", "4xx")] == 1
            assert found[of_request("GET", GENERATION, "2xx")] == 4
            assert found[f'{metric_names.REFUSALS}{{code="invalid_request",route="/v1/generations"}}'] == 1
            assert found[f'{metric_names.ACCEPTED}{{priority="low"}}'] == 1
            # A second of waiting is no second of work.
            assert 0 < found[f'{metric_names.REQUEST_SECONDS}_sum{{method="GET",route="{GENERATION}"}}'] < 0.9
            assert found[f"{metric_names.REDIS_SECONDS}_count"] >= 1
            assert found[f"{metric_names.LOOP_LAG_SECONDS}_count"] >= 1
            assert found[metric_names.WAITS_OPEN] == found[metric_names.STREAMS_OPEN] == 0
            assert 0 < found[metric_names.REDIS_MEMORY_RATIO] < 0.5

            text = "".join(found)
            job_id = posted.json()["id"]
            assert not [each for each in ("private", "secret-path", "acme", job_id, key) if each in text]
    finally:
        redis_client.config_set("maxmemory", 0)
