"""How much one gateway on one core and one agent take: submits, polls, bells a second, and whose time that is.

    .venv/bin/python -m benchmarks.rates [--seconds 5] [--connections 16] [--rounds 3]

The load comes from wrk (Debian's package of that name) over keep-alive connections. The gateway is bound to one core
where the system can do that; Valkey and wrk have the others.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import redis

from benchmarks.figures import machine
from benchmarks.fleet import fleet
from service.jobs.keys import key
from tests.e2e.processes import Gateway

SUBMIT = {"prompt": "a red circle on a blue background " * 8, "steps": 20}

_FIGURES = re.compile(
    r"\s50%\s+(?P<p50>[\d.]+)(?P<p50_unit>us|ms|s).*\s99%\s+(?P<p99>[\d.]+)(?P<p99_unit>us|ms|s)"
    r".*?(?P<count>\d+) requests in .*Requests/sec:\s+(?P<rate>[\d.]+)",
    re.DOTALL,
)
_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True)
class Figures:
    """One run of wrk, and the processor's time that it took of others."""

    per_second: float
    p50_ms: float
    p99_ms: float
    gateway_us: float
    valkey_us: float


class Load:
    """wrk against one gateway."""

    def __init__(self, gateway: Gateway, valkey_pid: int, *, connections: int, seconds: float) -> None:
        self.gateway = gateway
        self.pids = gateway.process.pid, valkey_pid
        self.options = ["-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency"]

    def run(self, path: str, body: bytes | None = None) -> Figures:
        """Ask for `path` again and again, or send it `body`; every answer has to be a success."""
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            if body is not None:
                headers = 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
                script.write(f"{headers}wrk.body = {json.dumps(body.decode())}\n")
            script.flush()
            before = [_cpu_s(pid) for pid in self.pids]
            command = ["wrk", *self.options, "-s", script.name, self.gateway.url + path]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            spent = [_cpu_s(pid) - s for pid, s in zip(self.pids, before, strict=True)]
        found = _FIGURES.search(done.stdout)
        assert found, done.stdout
        assert "Non-2xx" not in done.stdout, done.stdout
        count = int(found["count"])
        return Figures(
            per_second=float(found["rate"]),
            p50_ms=float(found["p50"]) * _MS[found["p50_unit"]],
            p99_ms=float(found["p99"]) * _MS[found["p99_unit"]],
            gateway_us=1e6 * spent[0] / count,
            valkey_us=1e6 * spent[1] / count,
        )


def _cpu_s(pid: int) -> float:
    """Return the processor's time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show(name: str, runs: Sequence[Figures]) -> None:
    rates = sorted(run.per_second for run in runs)
    typical = statistics.median(rates)
    run = min(runs, key=lambda each: abs(each.per_second - typical))
    rate = f"{typical:7.0f}/s ({rates[0]:.0f} to {rates[-1]:.0f})"
    latency = f"p50 {run.p50_ms:5.1f} ms, p99 {run.p99_ms:5.1f} ms"
    print(f"{name:48} {rate:24} {latency}   gateway {run.gateway_us:.0f} µs, Valkey {run.valkey_us:.0f} µs each")


def bells(store: redis.Redis) -> float:
    """Return bells a second: the queue is emptied of jobs, so that every bell finds nothing to claim."""
    queue = key("rq_queue", "default")
    before = store.llen(queue)
    begun = time.perf_counter()
    while (left := store.llen(queue)) > before * 0.1:
        time.sleep(0.02)
    return (before - left) / (time.perf_counter() - begun)


def bind(gateway: Gateway, valkey_pid: int) -> None:
    """Give the gateway a core of its own; what is started later has the others."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(gateway.process.pid, cores[-1:])
    for pid in (valkey_pid, os.getpid()):
        os.sched_setaffinity(pid, cores[:-1] or cores)


def measure(fsync: str, given: argparse.Namespace) -> None:
    with fleet(fsync=fsync) as service:
        store = redis.Redis.from_url(service.redis.url.get_secret_value(), decode_responses=True)
        agent = service.agent("first")
        gateway = service.gateway(DARKROOM_QUEUE_LIMIT="10000000")
        gateway.wait_for_workers()
        agent.terminate()
        agent.wait(60)
        valkey_pid = int(store.info("server")["process_id"])
        everywhere = os.sched_getaffinity(0)
        bind(gateway, valkey_pid)
        load = Load(gateway, valkey_pid, connections=given.connections, seconds=given.seconds)
        body = json.dumps(SUBMIT).encode()
        job = httpx.post(f"{gateway.url}/v1/generations", json=SUBMIT).raise_for_status().json()
        print(f"\nfsync {fsync}, one gateway on one core, {given.connections} connections, {given.rounds} rounds")
        load.run("/v1/generations", body)
        submits = [load.run("/v1/generations", body) for _ in range(given.rounds)]
        show("submits (280-character prompt, queue growing)", submits)
        show("polls of a queued job", [load.run(job["urls"]["self"]) for _ in range(given.rounds)])
        httpx.post(gateway.url + job["urls"]["cancel"]).raise_for_status()
        show("polls of a job that ended", [load.run(job["urls"]["self"]) for _ in range(given.rounds)])
        os.sched_setaffinity(0, everywhere)
        os.sched_setaffinity(valkey_pid, everywhere)
        # Bells whose jobs are gone: what is left is RQ's own cost and one claim each.
        for name in list(store.scan_iter("dr:queue:*")) + list(store.scan_iter("dr:active:*")):
            store.delete(name)
        store.hset(key("pool", "default"), "queued", 0)
        store.ltrim(key("rq_queue", "default"), 0, 3000 - 1)
        service.agent("second")
        gateway.wait_for_workers()
        print(f"{'bells answered by one agent':48} {bells(store):7.0f}/s")
        store.close()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=5)
    arguments.add_argument("--connections", type=int, default=16)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("This needs wrk: `apt install wrk`, or `brew install wrk`.")
    print(machine())
    for fsync in ("always", "everysec"):
        measure(fsync, given)


if __name__ == "__main__":
    main()
