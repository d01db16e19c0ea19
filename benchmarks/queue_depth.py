"""What a call of the queue costs Valkey with 100 000 jobs of 200 tenants waiting, against an empty queue.

    .venv/bin/python -m benchmarks.queue_depth [--jobs 100000] [--tenants 200] [--rounds 7]

Both queues lie on servers of their own, measured in turns, round by round. The figures are Valkey's own (`INFO
commandstats`, µs per EVALSHA): what a call costs the one thread that all gateways and workers share. One round submits,
places, claims, takes back and commits one job of every tenant, so that both queues stay as deep as they are.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from rich.progress import track

from benchmarks.figures import machine
from service.cli.embedded import EmbeddedValkey
from service.contract.job import Job, Status
from service.jobs.commands import Outcome, SubmitLimits
from service.jobs.store import LEASE_MS, JobStore
from tests.jobs import make_job

ROOM = SubmitLimits(None, 10_000_000)
AGENT = "agent"


class Queue:
    """One server with jobs of `tenants` tenants. The clock is ours, so that leases run out when they shall."""

    def __init__(self, client: redis.Redis, tenants: int) -> None:
        self.client = client
        self.tenants = [f"tenant-{number:03}" for number in range(tenants)]
        self.now_ms = time.time_ns() // 1_000_000
        self.store = JobStore(client, clock=lambda: self.now_ms)
        self.named = 0

    def submit(self, tenant: str) -> Job:
        self.named += 1
        job = make_job(f"gen_{self.named:040}", tenant=tenant, created_ms=self.now_ms)
        assert self.store.submit(job, limits=ROOM).outcome == "created"
        return job

    def fill(self, jobs: int) -> None:
        for number in track(range(jobs), description=f"queueing {jobs} jobs"):
            self.submit(self.tenants[number % len(self.tenants)])

    def round(self) -> dict[str, float]:
        """Return µs per call by what was called."""
        costs: dict[str, float] = {}
        claimed: list[Job] = []

        def claim() -> None:
            for number, _ in enumerate(self.tenants):
                job = self.store.claim("default", f"{self.named}-{number}-{self.now_ms}", AGENT)
                assert job is not None
                claimed.append(job)

        def take_back() -> None:
            for _ in self.tenants:
                assert self.store.reap(take_back=True, limit=1).leases == 1

        def commit() -> None:
            for job in claimed:
                assert job.execution_id is not None
                assert self.store.commit(job.id, job.execution_id, Outcome(Status.SUCCEEDED)) == "committed"

        costs["submit"] = self._cost_us(lambda: [self.submit(tenant) for tenant in self.tenants])
        costs["claim"] = self._cost_us(claim)
        # The agent is silent for longer than its leases.
        self.now_ms += LEASE_MS + 1
        costs["take-back"] = self._cost_us(take_back)
        claimed.clear()
        claim()
        costs["commit"] = self._cost_us(commit)
        return costs

    def _cost_us(self, calls: Callable[[], object]) -> float:
        self.client.config_resetstat()
        calls()
        return float(self.client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"])


@contextmanager
def server(folder: Path) -> Iterator[redis.Redis]:
    valkey = EmbeddedValkey(folder, fsync="everysec")
    valkey.start()
    client = redis.Redis.from_url(valkey.url, decode_responses=True)
    try:
        yield client
    finally:
        client.close()
        valkey.stop()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=100_000)
    arguments.add_argument("--tenants", type=int, default=200)
    arguments.add_argument("--rounds", type=int, default=7)
    given = arguments.parse_args()
    print(machine())
    with (
        tempfile.TemporaryDirectory() as folder,
        server(Path(folder) / "a") as one,
        server(Path(folder) / "b") as other,
    ):
        empty, deep = Queue(one, given.tenants), Queue(other, given.tenants)
        deep.fill(given.jobs)
        empty.round()
        deep.round()
        rounds = [(empty.round(), deep.round()) for _ in track(range(given.rounds), description="measuring")]
    print(f"\n{given.jobs} jobs of {given.tenants} tenants against none; {given.rounds} rounds, median (range)\n")
    print(f"{'call':12} {'empty, µs':>12} {'deep, µs':>12}   ratio")
    for name in rounds[0][0]:
        ratios = [deep_us[name] / empty_us[name] for empty_us, deep_us in rounds]
        empty_us = statistics.median(each[name] for each, _ in rounds)
        deep_us = statistics.median(each[name] for _, each in rounds)
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
        print(f"{name:12} {empty_us:12.1f} {deep_us:12.1f}   {ratio}")


if __name__ == "__main__":
    main()
