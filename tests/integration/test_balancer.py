"""Two real gateways behind the real HAProxy, with the file that is deployed."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import redis

from service.cli.ports import free_ports
from service.settings.groups import RedisSettings, StorageSettings
from tests.balancer import HAPROXY, Balancer, Origin, balancer, until
from tests.gateway import SHAPES, Hand, gateway_process, make_key, show_models

pytestmark = [
    pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed; Debian has it as a package of that name"),
    pytest.mark.skipif(sys.platform != "linux", reason="gateways need 127.0.0.2, which only Linux has from the start"),
]

#: Where replicas listen, on one port, as containers do.
FIRST, SECOND = "127.0.0.1", "127.0.0.2"
PATH = "/v1/generations"
MIB = 1 << 20


@pytest.fixture(scope="module")
def origins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Balancer, Origin, Origin]]:
    (port,) = free_ports(1)
    with ExitStack() as stack:
        first, second = (Origin(address, port) for address in (FIRST, SECOND))
        stack.callback(first.close)
        stack.callback(second.close)
        front = stack.enter_context(balancer(tmp_path_factory.mktemp("haproxy"), (FIRST, SECOND), port))
        front.wait_for(2)
        yield front, first, second


def test_request_that_was_sent_is_never_sent_again(origins: tuple[Balancer, Origin, Origin]) -> None:
    front, *pair = origins
    # Without a body the whole request is in HAProxy's hands when it breaks: none is easier to send again.
    replies = [httpx.post(f"{front.url}/{number}") for number in range(6)]
    assert {reply.status_code for reply in replies} == {502}
    assert {reply.headers["content-type"] for reply in replies} == {"application/problem+json"}
    assert replies[0].json()["status"] == 502
    received = [path for each in pair for path in each.received]
    assert sorted(received) == [f"/{number}" for number in range(6)]


def test_nor_is_one_on_a_connection_that_was_used_before(origins: tuple[Balancer, Origin, Origin]) -> None:
    front, *pair = origins
    with httpx.Client(base_url=front.url) as client:
        assert client.get("/").status_code == 200
        # To such a caller HAProxy says it by closing.
        with contextlib.suppress(httpx.RemoteProtocolError):
            assert client.post("/once").status_code == 502
    assert [path for each in pair for path in each.received].count("/once") == 1


def test_address_of_the_caller_is_what_the_balancer_sees(origins: tuple[Balancer, Origin, Origin]) -> None:
    claimed = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Forwarded-Proto": "https"}
    seen = httpx.get(f"{origins[0].url}/headers", headers=claimed).json()
    told = {name.lower(): value for name, value in seen.items() if "orwarded" in name.lower()}
    assert told == {"x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "http"}


def test_events_come_through_one_by_one(origins: tuple[Balancer, Origin, Origin]) -> None:
    front, *pair = origins
    with httpx.stream("GET", f"{front.url}/stream", timeout=10) as reply:
        events = reply.iter_text()
        assert next(events) == "data: 1\n\n"  # the second is not sent before this one was seen
        for each in pair:
            each.go_on.set()
        assert "".join(events) == "data: 2\n\n"


def test_no_gateway_at_all_is_a_problem_like_any_other(tmp_path: Path) -> None:
    with balancer(tmp_path, (), 8000) as front:
        reply = httpx.get(f"{front.url}/v1/models")
    assert (reply.status_code, reply.headers["content-type"]) == (503, "application/problem+json")
    assert (reply.json()["code"], reply.headers["retry-after"]) == ("unavailable", "5")


def test_gateways_may_die_and_stop_behind_it(
    redis_client: redis.Redis,
    redis_settings: RedisSettings,
    storage_settings: StorageSettings,
    hand: Hand,
    tmp_path: Path,
) -> None:
    (port,) = free_ports(1)
    with ExitStack() as stack:

        def start(address: str) -> subprocess.Popen[str]:
            variables = {"DARKROOM_HOST": address, "DARKROOM_PORT": str(port)}
            return stack.enter_context(gateway_process(redis_settings, storage_settings, **variables)).process

        front = stack.enter_context(balancer(tmp_path, (FIRST, SECOND), port))
        first = start(FIRST)
        assert_health_check_passes(port)
        assert_gateways_that_are_not_ready_still_answer(front)
        show_models(redis_client, SHAPES)
        front.wait_for(1)
        key = {"Authorization": f"Bearer {make_key(redis_client)}"}
        client = stack.enter_context(httpx.Client(base_url=front.url, headers=key, timeout=30))
        threads = stack.enter_context(ThreadPoolExecutor(1))

        assert_large_bodies_come_through(client)
        order = {**key, "Idempotency-Key": "order-1"}
        held = {"json": {"prompt": "a red circle"}, "headers": {**order, "Prefer": "wait=60"}, "timeout": 70}
        waiting = threads.submit(httpx.post, f"{front.url}{PATH}", **held)
        job = hand.claim()
        second = start(SECOND)
        front.wait_for(2)
        first.kill()
        broken = waiting.result(timeout=20)
        assert (broken.status_code, broken.json()["code"]) == (502, "unavailable")
        # The second gateway was there to take it, and did not get it.
        assert [each["id"] for each in client.get(PATH).json()["data"]] == [job.id]
        again = client.post(PATH, json={"prompt": "a red circle"}, headers=order)
        assert (again.status_code, again.json()["id"]) == (202, job.id)
        assert again.headers["Idempotency-Replayed"] == "true"

        front.wait_for(1)
        start(FIRST)
        front.wait_for(2)
        assert_nothing_is_lost_while_one_stops(front, client.headers, second)


def assert_health_check_passes(port: int) -> None:
    """The image's own command, run here."""
    text = (Path(__file__).parents[2] / "deploy" / "gateway.Dockerfile").read_text("utf-8")
    found = re.search(r"^HEALTHCHECK .*\\\n\s+CMD (\[.*\])$", text, re.MULTILINE)
    assert found
    _, *arguments = json.loads(found[1])
    subprocess.run([sys.executable, *arguments], env={"PORT": str(port)}, check=True, timeout=20)
    with socket.create_server((FIRST, 0)) as silent:
        closed = str(silent.getsockname()[1])
    failed = subprocess.run([sys.executable, *arguments], env={"PORT": closed}, capture_output=True, check=False)
    assert failed.returncode != 0


def assert_gateways_that_are_not_ready_still_answer(front: Balancer) -> None:
    def told() -> str:
        return httpx.get(f"{front.url}/readyz").json()["detail"]

    until(lambda: "No worker has shown a model yet" in told(), told)
    assert (front.up(), front.up("alive")) == (0, 1)
    assert 'haproxy_backend_active_servers{proxy="alive"} 1' in front.metrics


def assert_large_bodies_come_through(client: httpx.Client) -> None:
    reply = client.post(PATH, json={"prompt": "x" * (24 * MIB)})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")


def assert_nothing_is_lost_while_one_stops(
    front: Balancer, headers: httpx.Headers, gateway: subprocess.Popen[str]
) -> None:
    """A connection each, as from many callers; SIGTERM comes among them."""
    statuses: list[int] = []
    stopping = threading.Event()

    def call() -> None:
        while not stopping.is_set():
            reply = httpx.post(f"{front.url}{PATH}", json={"prompt": "a blue circle"}, headers=headers, timeout=20)
            statuses.append(reply.status_code)

    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(call) for _ in range(2)]
        until(lambda: len(statuses) >= 10, lambda: front.log)
        gateway.send_signal(signal.SIGTERM)
        gateway.wait(timeout=20)
        seen = len(statuses)
        until(lambda: len(statuses) >= seen + 10, lambda: front.log)
        stopping.set()
        for each in calls:
            each.result(timeout=20)
    assert set(statuses) == {202}
