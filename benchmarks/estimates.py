"""How far estimates of starts and ends are from what happens: several tenants and priorities on one worker, over HTTP.

    .venv/bin/python -m benchmarks.estimates [--jobs 150] [--load 4] [--capacity 4] [--seed 1]

The boxed model; jobs of three tenants, of 5 to 60 steps, one to three pictures and all priorities come at random, in
waves: `--load` times as many as the worker draws, then none until half of the queue is gone. Every job's estimate is
noted in the reply that accepts it and twice a second from then on, and compared with what came of it. Relative error =
|estimated - true| / true, seconds from the moment of the estimate, of those that were more than a second away. Nobody
knows at submit how many will yet come and go before: the rest of the wave does, wherever it has more right to it. What
is reckoned for them (`outlook.overtaking`) takes a part of that away; at submit some 35 % remain in the median, most of
it too short, where knowing the end of each wave would leave some 25 %. A machine that is busy with something else adds
its own.

Two others are computed from the same moments: `costs alone`, without what was measured of the workers' pace, and `drain
alone`, the position times the mean time between the last ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import redis

from benchmarks.figures import machine, quantile
from benchmarks.fleet import fleet
from service.jobs.keys import key
from tests.e2e.processes import Gateway, Service, free_port, wait_for
from tests.gateway import make_key

TENANTS = ("ada", "bob", "eve")
STEPS = (5, 10, 20, 30, 40, 60)
#: s; nearer than that, a relative error says nothing.
NEAR_S = 1.0
#: Ends that `drain alone` knows the pace by.
DRAIN_ENDS = 20
WARM_UP = 12


@dataclass(frozen=True, slots=True)
class Note:
    """What was told of a job at one moment."""

    at_s: float
    when: str
    position: int | None
    start_s: float | None
    finish_s: float | None
    speed: float


@dataclass(slots=True)
class Watched:
    """One job, and what became of it."""

    notes: list[Note] = field(default_factory=list)
    started_s: float = 0.0
    finished_s: float = 0.0


class Crowd:
    """The callers."""

    def __init__(self, url: str, keys: list[str], store: redis.Redis, seed: int) -> None:
        self._random = random.Random(seed)
        self._store = store
        self._clients = [
            httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {each}"}, timeout=60) for each in keys
        ]
        self.jobs: dict[str, Watched] = {}
        self.waiting = 0
        self._started = asyncio.Event()

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()

    async def draw(self) -> None:
        """Submit one job, note what is told of it until it has ended."""
        client = self._random.choice(self._clients)
        body: dict[str, Any] = {
            "prompt": "a red circle",
            "steps": self._random.choice(STEPS),
            "num_images": self._random.choices((1, 2, 3), (6, 2, 1))[0],
            "priority": self._random.choices(("high", "normal", "low"), (1, 6, 2))[0],
            "guidance_scale": self._random.choice((1.0, 4.0)),
        }
        reply = await client.post("/v1/generations", json=body)
        reply.raise_for_status()
        resource = reply.json()
        path, watched = reply.headers["Location"], self.jobs.setdefault(resource["id"], Watched())
        self._note(watched, resource, "at submit")
        self.waiting += 1
        waits = True
        while resource["status"] in {"queued", "running"}:
            await asyncio.sleep(0.5)
            resource = (await client.get(path)).json()
            if resource["status"] in {"queued", "running"}:
                self._note(watched, resource, "waiting" if resource["status"] == "queued" else "running")
            if waits and resource["status"] != "queued":
                waits, self.waiting = False, self.waiting - 1
                self._started.set()
        assert resource["status"] == "succeeded", resource
        watched.started_s, watched.finished_s = _moment_s(resource["started_at"]), _moment_s(resource["finished_at"])

    async def half_gone(self) -> None:
        """Return when half of what waits now has started."""
        height = self.waiting
        while self.waiting > height / 2:
            self._started.clear()
            await self._started.wait()

    def _note(self, watched: Watched, resource: dict[str, Any], when: str) -> None:
        queue = resource["queue"] or {}
        progress = resource["progress"] or {}
        finish_s = queue.get("estimated_finish_s", progress.get("estimated_finish_s"))
        start_s = queue.get("estimated_start_s")
        watched.notes.append(Note(time.time(), when, queue.get("position"), start_s, finish_s, self._speed()))

    def _speed(self) -> float:
        stored = self._store.get(key("forecast"))
        pools = json.loads(stored)["pools"] if isinstance(stored, str) else {}
        return (pools.get("default") or {}).get("speed") or 1.0


def _moment_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def waves(crowd: Crowd, jobs: int, load: float) -> None:
    """Have jobs come, and wait until all have ended."""
    begun, tasks = time.perf_counter(), [asyncio.create_task(crowd.draw()) for _ in range(WARM_UP)]
    await asyncio.gather(*tasks)
    each_s = (time.perf_counter() - begun) / WARM_UP
    crowd.jobs.clear()
    tasks.clear()
    pause = random.Random(7)
    while len(tasks) < jobs:
        wave = min(jobs - len(tasks), jobs // 3)
        for _ in range(wave):
            tasks.append(asyncio.create_task(crowd.draw()))
            await asyncio.sleep(pause.expovariate(load / each_s))
        await crowd.half_gone()
    await asyncio.gather(*tasks)


def errors(estimates: Iterable[tuple[float | None, float]]) -> tuple[list[float], int]:
    """Return the relative errors of (estimated, true) seconds, and how many were not told."""
    far = [(told, true) for told, true in estimates if true >= NEAR_S]
    return [abs(told - true) / true for told, true in far if told is not None], sum(1 for t, _ in far if t is None)


def drained_s(note: Note, ends_s: list[float]) -> float | None:
    """Return the seconds to the start by the pace of the last ends alone."""
    last = [end_s for end_s in ends_s if end_s <= note.at_s][-DRAIN_ENDS:]
    if len(last) < 2 or note.position is None:
        return None
    return note.position * (note.at_s - last[0]) / len(last)


def report(jobs: list[Watched]) -> None:
    ends_s = sorted(job.finished_s for job in jobs)
    told = [(note, job) for job in jobs for note in job.notes]
    print(f"{'relative error':44} {'told':>6} {'not':>5} {'p50':>7} {'p90':>7}")
    every: list[float] = []
    for when in ("at submit", "waiting", "running"):
        of = [(note, job) for note, job in told if note.when == when]
        rows: dict[str, list[tuple[float | None, float]]] = {}
        if when != "running":
            start = [(note, job.started_s - note.at_s) for note, job in of]
            rows["start"] = [(n.start_s, true) for n, true in start]
            rows["start, costs alone"] = [(n.start_s and n.start_s * n.speed, true) for n, true in start]
            rows["start, drain alone"] = [(drained_s(n, ends_s), true) for n, true in start]
        rows["finish"] = [(note.finish_s, job.finished_s - note.at_s) for note, job in of]
        for name, estimates in rows.items():
            found, untold = errors(estimates)
            if name in {"start", "finish"}:
                every += found
            p50, p90 = (quantile(found, q) if found else float("nan") for q in (0.5, 0.9))
            print(f"{f'{when}: {name}':44} {len(found):6} {untold:5} {p50:7.1%} {p90:7.1%}")
    if every:
        print(f"{'all estimates':44} {len(every):6} {'':5} {quantile(every, 0.5):7.1%} {quantile(every, 0.9):7.1%}")


def keyed_gateway(service: Service) -> Gateway:
    port = free_port()
    process = service.spawn("gateway", "service.app", AUTH="keys", PORT=str(port))
    gateway = Gateway(process, f"http://127.0.0.1:{port}")
    wait_for("the gateway answers", lambda: service.lives(process, "gateway") and gateway.healthy())
    return gateway


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--jobs", type=int, default=150)
    arguments.add_argument("--load", type=float, default=4.0)
    arguments.add_argument("--capacity", type=int, default=4)
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    print(machine())
    with fleet() as service:
        store = redis.Redis.from_url(service.redis.url.get_secret_value(), decode_responses=True)
        keys = [make_key(store, tenant) for tenant in TENANTS]
        service.agent(DARKROOM_ENGINE_CAPACITY=str(given.capacity))
        gateway = keyed_gateway(service)
        headers = {"Authorization": f"Bearer {keys[0]}"}

        def warm() -> bool:
            models = httpx.get(f"{gateway.url}/v1/models", headers=headers, timeout=5).json()["data"]
            return bool(models) and models[0]["workers"] > 0

        wait_for("a warm worker", warm, timeout_s=120)
        jobs = asyncio.run(_measure(gateway.url, keys, store, given))
        store.close()
    deepest = max(note.position or 0 for job in jobs for note in job.notes)
    print(f"{len(jobs)} jobs of {len(TENANTS)} tenants, {given.capacity} drawn at once, up to {deepest} waiting\n")
    report(jobs)


async def _measure(url: str, keys: list[str], store: redis.Redis, given: argparse.Namespace) -> list[Watched]:
    crowd = Crowd(url, keys, store, given.seed)
    try:
        await waves(crowd, given.jobs, given.load)
    finally:
        await crowd.close()
    return list(crowd.jobs.values())


if __name__ == "__main__":
    main()
