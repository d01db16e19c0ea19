"""What 2 000 callers that wait at once cost one gateway: memory, connections to Redis, how soon they hear of the end.

    .venv/bin/python -m benchmarks.waiters [--waiters 2000]

Half of them hold a `GET` with `Prefer: wait`, half a stream of events, each of a job of its own. Then all jobs are
canceled, one after the other, and every caller has to hear of its own. A second crowd waits while the gateway stops.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import time
from pathlib import Path

import redis

from benchmarks.figures import machine, quantile
from benchmarks.fleet import fleet
from service.jobs.commands import SubmitLimits
from service.jobs.store import JobStore
from service.tenants.records import LOCAL_TENANT
from tests.e2e.processes import Gateway
from tests.jobs import make_job

ROOM = SubmitLimits(None, 1_000_000)
WAIT_S = 300


class Waiter:
    """One connection that waits for the end of one job."""

    def __init__(self, gateway: Gateway, job_id: str, *, streams: bool) -> None:
        self.host, _, port = gateway.url.removeprefix("http://").partition(":")
        self.port = int(port)
        path = f"/v1/generations/{job_id}"
        self.head = f"GET {path}/events HTTP/1.1" if streams else f"GET {path} HTTP/1.1\r\nPrefer: wait={WAIT_S}"
        self.streams = streams
        self.heard_at: float | None = None
        self.reply = b""

    async def wait(self, connected: asyncio.Semaphore) -> None:
        async with connected:
            reader, writer = await asyncio.open_connection(self.host, self.port)
            writer.write(f"{self.head}\r\nHost: {self.host}:{self.port}\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
        while chunk := await reader.read(65536):
            self.reply += chunk
            if b'"status":"canceled"' in self.reply and self.heard_at is None:
                self.heard_at = time.monotonic()
        writer.close()


class Crowd:
    """Waiters and their jobs."""

    def __init__(self, store: JobStore, gateway: Gateway, prefix: str, size: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        self.ids = [f"gen_{prefix}{number:0{40 - len(prefix)}}" for number in range(size)]
        for job_id in self.ids:
            job = make_job(job_id, tenant=LOCAL_TENANT, created_ms=now_ms)
            assert store.submit(job, limits=ROOM).outcome == "created"
        self.waiters = [Waiter(gateway, job_id, streams=number % 2 == 1) for number, job_id in enumerate(self.ids)]

    def begin(self) -> list[asyncio.Task[None]]:
        connecting = asyncio.Semaphore(64)
        return [asyncio.create_task(waiter.wait(connecting)) for waiter in self.waiters]


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


async def all_wait(client: redis.Redis, count: int) -> None:
    """Return when the gateway has subscribed for every waiter."""
    deadline = time.monotonic() + 120
    while len(client.pubsub_channels("dr:changes:gen_*")) < count:
        assert time.monotonic() < deadline, "the callers do not all wait"
        await asyncio.sleep(0.05)


async def measure(client: redis.Redis, gateway: Gateway, size: int) -> None:
    store, pid = JobStore(client), gateway.process.pid
    crowd = Crowd(store, gateway, "a", size)
    before_mib, before_clients = resident_mib(pid), len(client.client_list())
    waiting = crowd.begin()
    await all_wait(client, size)
    during_mib, during_clients = resident_mib(pid), len(client.client_list())
    ended_at: list[float] = []
    for job_id in crowd.ids:
        await asyncio.to_thread(store.cancel, LOCAL_TENANT, job_id)
        ended_at.append(time.monotonic())
    await asyncio.wait_for(asyncio.gather(*waiting), 120)
    late_s = [waiter.heard_at - ended for waiter, ended in zip(crowd.waiters, ended_at, strict=True) if waiter.heard_at]
    assert len(late_s) == size, f"{size - len(late_s)} callers never heard"
    cancels_s = ended_at[-1] - ended_at[0]
    print(f"{size} callers wait: {during_mib - before_mib:.0f} MiB more ({before_mib:.0f} before), ", end="")
    print(f"{during_clients - before_clients} more connections to Redis")
    print(
        f"{size} ends in {cancels_s:.1f} s: heard after {1000 * quantile(late_s, 0.5):.1f} ms in the median, ", end=""
    )
    print(f"{1000 * quantile(late_s, 0.99):.1f} ms at p99, {1000 * max(late_s):.1f} ms at most")

    second = Crowd(store, gateway, "b", size)
    waiting = second.begin()
    await all_wait(client, size)
    begun = time.monotonic()
    gateway.process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(asyncio.gather(*waiting), 60)
    answered = [w for w in second.waiters if not w.streams and json.loads(w.reply.partition(b"\r\n\r\n")[2])]
    ended = [w for w in second.waiters if w.streams and w.reply.endswith(b"0\r\n\r\n")]
    code = await asyncio.to_thread(gateway.process.wait, 60)
    print(f"stopped while {size} wait: {len(answered)} answered, {len(ended)} streams ended, ", end="")
    print(f"exit status {code} after {time.monotonic() - begun:.1f} s")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--waiters", type=int, default=2000)
    given = arguments.parse_args()
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, min(hard, 4 * given.waiters)), hard))
    print(machine())
    with fleet(fsync="everysec") as service:
        client = redis.Redis.from_url(service.redis.url.get_secret_value(), decode_responses=True)
        gateway = service.gateway(DARKROOM_WAIT_CAP_S=str(WAIT_S), DARKROOM_STREAM_LIMIT=str(given.waiters))
        asyncio.run(measure(client, gateway, given.waiters))
        client.close()


if __name__ == "__main__":
    main()
