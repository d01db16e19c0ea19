"""Hostile requests over a real socket: each is a 4xx problem that repeats nothing, and queues nothing.

What they are stands in `tests/hostile.py`.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest
import redis
from pydantic import SecretStr

from service.settings.groups import RedisSettings, StorageSettings
from tests.gateway import SHAPES, gateway_process, make_key, show_models
from tests.hostile import BODY_LIMIT, CASES, GENUINE, KEY, MARKER, Case

#: s; the gateway of these tests waits that long for a body.
BODY_TIMEOUT_S = 1


@dataclass(frozen=True)
class Target:
    """A gateway process with a database of its own."""

    url: str
    key: str
    genuine: str
    client: redis.Redis


@pytest.fixture(scope="module")
def target(valkey_url: str, storage_settings: StorageSettings) -> Iterator[Target]:
    url = valkey_url.rpartition("/")[0] + "/7"
    client = redis.Redis.from_url(url, decode_responses=True)
    client.flushdb()
    show_models(client, SHAPES)
    key = make_key(client)
    variables = {"DARKROOM_BODY_LIMIT_BYTES": str(BODY_LIMIT), "DARKROOM_BODY_TIMEOUT_S": str(BODY_TIMEOUT_S)}
    with gateway_process(RedisSettings(url=SecretStr(url)), storage_settings, **variables) as gateway:
        headers = {"Authorization": f"Bearer {key}"}
        created = httpx.post(f"{gateway.url}/v1/generations", json={"prompt": "x"}, headers=headers)
        yield Target(gateway.url, key, created.json()["id"], client)
        assert gateway.process.poll() is None
    log = "".join(gateway.lines)
    assert "unexpected_error" not in log
    assert MARKER not in log
    assert key.rpartition("_")[2] not in log
    client.flushdb()
    client.close()


def exchange(url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are, reading at the same time; return status, headers and body of the reply."""
    parts = urlsplit(url)
    reply = b""
    deadline = time.monotonic() + 20
    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=10) as connection:
        connection.setblocking(False)
        with selectors.DefaultSelector() as selector, contextlib.suppress(ConnectionError):
            selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while time.monotonic() < deadline:
                for _, events in selector.select(timeout=1):
                    if events & selectors.EVENT_READ:
                        received = connection.recv(65536)
                        reply += received
                        if not received:
                            return parsed(reply)
                    if events & selectors.EVENT_WRITE:
                        with contextlib.suppress(ConnectionError):
                            sent = connection.send(request)
                            request = request[sent:]
                        if not request:
                            selector.modify(connection, selectors.EVENT_READ)
    return parsed(reply)


def parsed(reply: bytes) -> tuple[int, dict[str, str], bytes]:
    top, _, body = reply.partition(b"\r\n\r\n")
    status, *lines = top.decode("latin-1").split("\r\n")
    assert status.startswith("HTTP/1.1 "), "the connection was closed without an answer"
    headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
    return int(status.split()[1]), headers, body


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_request_is_refused_without_echo_or_effect(target: Target, case: Case) -> None:
    wire = case.wire().replace(KEY[:-1].encode(), target.key[:-1].encode())
    wire = wire.replace(target.key[:-1].encode() + b"}", target.key.encode())
    wire = wire.replace(GENUINE.encode(), target.genuine.encode())
    before = target.client.keys("dr:job:*")
    status, headers, body = exchange(target.url, wire)
    assert 400 <= status < 500, body[:500]
    assert MARKER.encode() not in body
    assert len(body) < 10_000
    if not (case.parser and headers["content-type"].startswith("text/plain")):
        assert headers["content-type"] == "application/problem+json"
        problem = json.loads(body)
        assert problem["status"] == status
        assert problem["code"]
        assert problem["request_id"] == headers["x-request-id"]
        assert all(len(error["detail"]) < 300 for error in problem.get("errors") or [])
    assert target.client.keys("dr:job:*") == before
    assert target.client.keys("dr:idem:*") == []


def test_there_are_at_least_80_hostile_requests_of_20_kinds() -> None:
    kinds = Counter(case.kind for case in CASES)
    assert len(CASES) >= 80
    assert len(kinds) >= 20
    assert len({str(case) for case in CASES}) == len(CASES)
