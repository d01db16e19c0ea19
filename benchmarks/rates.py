"""How much one gateway and one agent take: submits, polls, bells a second.

    .venv/bin/python -m benchmarks.rates [--seconds 5] [--connections 16]

The load comes from one process over plain sockets with keep-alive; gateway and load share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import redis

from benchmarks.figures import machine, quantile
from benchmarks.fleet import fleet
from service.jobs.keys import key


class Load:
    """Connections that each send the next request as soon as the last is answered."""

    def __init__(self, url: str, connections: int) -> None:
        self.host, _, port = url.removeprefix("http://").partition(":")
        self.port = int(port)
        self.connections = connections

    async def run(self, request: bytes, seconds: float, expect: bytes) -> tuple[float, list[float], bytes]:
        """Return (answers a second, their latencies in s, the last body)."""
        stop = time.perf_counter() + seconds
        latencies: list[float] = []
        last = b""

        async def one() -> None:
            nonlocal last
            reader, writer = await asyncio.open_connection(self.host, self.port)
            while time.perf_counter() < stop:
                begun = time.perf_counter()
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 " + expect), head
                length = next(
                    int(line.partition(b":")[2])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                )
                last = await reader.readexactly(length)
                latencies.append(time.perf_counter() - begun)
            writer.close()

        begun = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(self.connections)))
        return len(latencies) / (time.perf_counter() - begun), latencies, last

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Length: {len(body)}\r\n"
        if body:
            head += "Content-Type: application/json\r\n"
        return head.encode() + b"\r\n" + body


def show(name: str, per_second: float, latencies: list[float]) -> None:
    p50, p99 = quantile(latencies, 0.5), quantile(latencies, 0.99)
    print(f"{name:44} {per_second:8.0f}/s   p50 {1000 * p50:6.1f} ms   p99 {1000 * p99:6.1f} ms")


def bells(store: redis.Redis) -> float:
    """Return bells a second: the queue is emptied of jobs, so that every bell finds nothing to claim."""
    queue = key("rq_queue", "default")
    before = store.llen(queue)
    begun = time.perf_counter()
    while (left := store.llen(queue)) > before * 0.1:
        time.sleep(0.02)
    return (before - left) / (time.perf_counter() - begun)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=5)
    arguments.add_argument("--connections", type=int, default=16)
    given = arguments.parse_args()
    print(machine())
    body = json.dumps({"prompt": "a red circle on a blue background " * 8, "steps": 20}).encode()
    for fsync in ("always", "everysec"):
        with fleet(fsync=fsync) as service:
            store = redis.Redis.from_url(service.redis.url.get_secret_value(), decode_responses=True)
            agent = service.agent("first")
            gateway = service.gateway(DARKROOM_QUEUE_LIMIT="1000000")
            gateway.wait_for_workers()
            agent.terminate()
            agent.wait(60)
            load = Load(gateway.url, given.connections)
            rate, latencies, last = asyncio.run(
                load.run(load.request("POST", "/v1/generations", body), given.seconds, b"202")
            )
            print(f"\nfsync {fsync}, one gateway, {given.connections} connections")
            show("submits (300-character prompt, queue growing)", rate, latencies)
            path = f"/v1/generations/{json.loads(last)['id']}"
            show("polls of a queued job", *asyncio.run(load.run(load.request("GET", path), given.seconds, b"200"))[:2])
            # Bells whose jobs are gone: what is left is RQ's own cost and one claim each.
            jobs = 3000
            for name in list(store.scan_iter("dr:queue:*")) + list(store.scan_iter("dr:active:*")):
                store.delete(name)
            store.hset(key("pool", "default"), "queued", 0)
            store.ltrim(key("rq_queue", "default"), 0, jobs - 1)
            service.agent("second")
            gateway.wait_for_workers()
            print(f"{'bells answered by one agent':44} {bells(store):8.0f}/s")
            store.close()


if __name__ == "__main__":
    main()
