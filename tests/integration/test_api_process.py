"""The gateway as a process: starting, refusing to start, outages, stopping."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import redis
from pydantic import SecretStr

from service.cli.embedded import EmbeddedValkey
from service.settings.groups import RedisSettings, StorageSettings
from tests.gateway import SHAPES, gateway_process, make_key, show_models

PATH = "/v1/generations"


def refused_start(**variables: str) -> str:
    """Start a gateway that must refuse; return what it says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")} | variables
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "service.app"],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refused_start(PORT=str(port))
    assert told == (
        f"darkroom gateway: cannot listen on 127.0.0.1 port {port} (address already in use); "
        "set DARKROOM_HOST or PORT to another\n"
    )


def test_a_taken_port_of_the_metrics_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refused_start(PORT="0", DARKROOM_METRICS_PORT=str(port))
    assert told == (
        f"darkroom gateway: DARKROOM_METRICS_HOST, DARKROOM_METRICS_PORT: cannot listen on 127.0.0.1:{port}: "
        "Address already in use\n"
    )


def test_a_malformed_setting_is_one_line_naming_the_variable() -> None:
    told = refused_start(DARKROOM_WAIT_CAP_S="long")
    assert told.startswith("darkroom gateway: DARKROOM_WAIT_CAP_S: ")
    assert told.count("\n") == 1


def test_no_keys_on_a_public_address_is_one_line() -> None:
    told = refused_start(AUTH="none", DARKROOM_HOST="0.0.0.0")
    assert told.startswith("darkroom gateway: AUTH: ")
    assert told.count("\n") == 1


def test_readiness_tells_each_part(
    redis_client: redis.Redis, redis_settings: RedisSettings, storage_settings: StorageSettings
) -> None:
    with gateway_process(redis_settings, storage_settings) as gateway:
        url = gateway.url
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
        empty = httpx.get(f"{url}/readyz")
        assert empty.status_code == 503
        assert empty.json()["checks"].items() >= {"redis": "ok", "storage": "ok"}.items()
        assert "No worker has shown a model yet" in empty.json()["detail"]
        show_models(redis_client, SHAPES)
        assert until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        assert httpx.get(f"{url}/readyz").json() == {
            "status": "ready",
            "checks": {"redis": "ok", "storage": "ok", "models": "ok"},
        }


def test_a_missing_bucket_is_not_ready(
    redis_client: redis.Redis, redis_settings: RedisSettings, storage_settings: StorageSettings
) -> None:
    show_models(redis_client, SHAPES)
    elsewhere = storage_settings.model_copy(update={"bucket": "no-such-bucket"})
    with gateway_process(redis_settings, elsewhere) as gateway:
        response = httpx.get(f"{gateway.url}/readyz", timeout=20)
    assert response.status_code == 503
    assert response.json()["checks"]["storage"] != "ok"
    assert response.json()["checks"]["redis"] == "ok"


def test_sigterm_answers_waits_at_once_and_ends_within_seconds(
    redis_client: redis.Redis, redis_settings: RedisSettings, storage_settings: StorageSettings
) -> None:
    show_models(redis_client, SHAPES)
    headers = {"Authorization": f"Bearer {make_key(redis_client)}", "Prefer": "wait=60"}
    answers: list[httpx.Response] = []
    with gateway_process(redis_settings, storage_settings) as gateway:

        def wait() -> None:
            answers.append(httpx.post(f"{gateway.url}{PATH}", json={"prompt": "x"}, headers=headers, timeout=60))

        waiting = [threading.Thread(target=wait) for _ in range(5)]
        for thread in waiting:
            thread.start()
        assert until(lambda: len(redis_client.keys("dr:job:*")) == 5)
        stopped = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        for thread in waiting:
            thread.join(timeout=20)
        assert gateway.wait() == 0
        assert time.monotonic() - stopped < 8
    assert [answer.status_code for answer in answers] == [202] * 5
    assert {answer.json()["status"] for answer in answers} == {"queued"}


def test_redis_away_is_503_within_2_seconds_and_back_is_back(tmp_path: Path, storage_settings: StorageSettings) -> None:
    server = EmbeddedValkey(tmp_path)
    server.start()
    settings = RedisSettings(url=SecretStr(server.url))
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        show_models(client, SHAPES)
        headers = {"Authorization": f"Bearer {make_key(client)}"}
    with (
        gateway_process(settings, storage_settings) as gateway,
        httpx.Client(base_url=gateway.url, timeout=10) as api,
    ):
        created = api.post(PATH, json={"prompt": "x"}, headers=headers).json()
        server.stop()
        for method, path, body in [
            ("POST", PATH, {"prompt": "x"}), ("GET", created["urls"]["self"], None), ("GET", PATH, None),
            ("DELETE", created["urls"]["self"], None),
        ]:  # fmt: skip
            asked = time.monotonic()
            response = api.request(method, path, json=body, headers=headers)
            assert time.monotonic() - asked < 2
            assert response.status_code == 503
            assert response.headers["content-type"] == "application/problem+json"
            assert int(response.headers["retry-after"]) > 0
        assert api.get("/healthz").status_code == 200
        assert api.get("/readyz").json()["checks"]["redis"] != "ok"
        server.start()
        assert until(lambda: api.get(created["urls"]["self"], headers=headers).status_code == 200)
        again = api.post(PATH, json={"prompt": "x"}, headers={**headers, "Prefer": "wait=1"})
        assert again.status_code == 202
        assert gateway.process.poll() is None
    server.stop()


def test_a_frozen_redis_is_503_within_2_seconds(tmp_path: Path, storage_settings: StorageSettings) -> None:
    server = EmbeddedValkey(tmp_path)
    server.start()
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        show_models(client, SHAPES)
        headers = {"Authorization": f"Bearer {make_key(client)}"}
        with (
            gateway_process(RedisSettings(url=SecretStr(server.url)), storage_settings) as gateway,
            httpx.Client(base_url=gateway.url, timeout=10, headers=headers) as api,
        ):
            assert api.post(PATH, json={"prompt": "x"}).status_code == 202
            client.client_pause(4000)
            asked = time.monotonic()
            response = api.post(PATH, json={"prompt": "x"})
            assert time.monotonic() - asked < 2.2
            assert response.status_code == 503
            client.client_unpause()
    server.stop()


def test_almost_full_memory_refuses_submits_only(tmp_path: Path, storage_settings: StorageSettings) -> None:
    server = EmbeddedValkey(tmp_path)
    server.start()
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        show_models(client, SHAPES)
        headers = {"Authorization": f"Bearer {make_key(client)}"}
        variables = {"DARKROOM_MEMORY_SAMPLE_S": "0.05"}
        with (
            gateway_process(RedisSettings(url=SecretStr(server.url)), storage_settings, **variables) as gateway,
            httpx.Client(base_url=gateway.url, timeout=10, headers=headers) as api,
        ):
            created = api.post(PATH, json={"prompt": "x"})
            assert created.status_code == 202
            used = int(client.info("memory")["used_memory"])
            client.config_set("maxmemory", int(used / 0.9))
            assert until(lambda: api.post(PATH, json={"prompt": "x"}).status_code == 503)
            response = api.post(PATH, json={"prompt": "x"})
            assert response.json()["code"] == "overloaded"
            assert api.get(created.json()["urls"]["self"]).status_code == 200
            assert api.post(created.json()["urls"]["cancel"]).json()["status"] == "canceled"
    server.stop()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_gateway_stops_cleanly(
    redis_settings: RedisSettings, storage_settings: StorageSettings, stop: signal.Signals
) -> None:
    with gateway_process(redis_settings, storage_settings) as gateway:
        gateway.process.send_signal(stop)
        assert gateway.wait() == 0
    events = [json.loads(line)["event"] for line in gateway.lines]
    # The session's server writes no file, which a gateway tells unless it is stopped before it has looked.
    assert [event for event in events if event != "redis_unsound"] == ["gateway_listening", "gateway_stopping"]


def test_a_caller_that_went_away_is_not_waited_for(
    redis_client: redis.Redis, redis_settings: RedisSettings, storage_settings: StorageSettings
) -> None:
    show_models(redis_client, SHAPES)
    body = b'{"prompt": "x"}'
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {make_key(redis_client)}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nPrefer: wait=60\r\n\r\n"
    )

    def watched() -> int:
        return len(redis_client.pubsub_channels("dr:changes:gen_*"))

    with gateway_process(redis_settings, storage_settings) as gateway:
        callers = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(20)]
        for caller in callers:
            caller.sendall(head.encode() + body)
        assert until(lambda: watched() == 20)
        for caller in callers:
            caller.close()
        assert until(lambda: watched() == 0)
    events = [json.loads(line)["event"] for line in gateway.lines]
    assert events.count("request_abandoned") == 20


def test_each_request_is_one_event_without_its_contents(
    redis_client: redis.Redis, redis_settings: RedisSettings, storage_settings: StorageSettings
) -> None:
    show_models(redis_client, SHAPES)
    key = make_key(redis_client)
    headers = {"Authorization": f"Bearer {key}", "X-Request-Id": "trace-7"}
    with gateway_process(redis_settings, storage_settings) as gateway:
        created = httpx.post(f"{gateway.url}{PATH}?secret=1", json={"prompt": "a private prompt"}, headers=headers)
    (event,) = [json.loads(line) for line in gateway.lines if "request_finished" in line]
    assert event.pop("duration_ms") > 0
    assert event.pop("timestamp")
    assert event == {
        "event": "request_finished",
        "level": "info",
        "method": "POST",
        "route": PATH,
        "status": 202,
        "request_id": "trace-7",
        "tenant": "acme",
        "job_id": created.json()["id"],
    }


def test_a_damaged_document_is_a_500_that_is_logged_without_the_prompt(
    redis_client: redis.Redis, redis_settings: RedisSettings, storage_settings: StorageSettings
) -> None:
    show_models(redis_client, SHAPES)
    headers = {"Authorization": f"Bearer {make_key(redis_client)}"}
    with gateway_process(redis_settings, storage_settings) as gateway:
        created = httpx.post(f"{gateway.url}{PATH}", json={"prompt": "a private prompt"}, headers=headers).json()
        name = f"dr:job:{created['id']}"
        spec = json.loads(str(redis_client.hget(name, "spec")))
        redis_client.hset(name, "spec", json.dumps({**spec, "prompt": ["a private prompt"]}))
        answer = httpx.get(f"{gateway.url}{created['urls']['self']}", headers=headers)
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    (event,) = [json.loads(line) for line in gateway.lines if "request_failed" in line]
    assert "CorruptDocument" in event["exception"]
    assert event["request_id"] == answer.headers["x-request-id"]
    assert "private" not in "".join(gateway.lines)


def test_a_head_that_never_ends_is_cut_off(redis_settings: RedisSettings, storage_settings: StorageSettings) -> None:
    with (
        gateway_process(redis_settings, storage_settings) as gateway,
        socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as caller,
    ):
        caller.sendall(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(100_000):
                caller.sendall(b"X-%d: %s\r\n" % (number, b"x" * 1000))
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = caller.recv(65536)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
        assert httpx.get(f"{gateway.url}/healthz").status_code == 200


def until(condition: Callable[[], bool]) -> bool:
    """Wait up to 10 s for a condition; return whether it came."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False
