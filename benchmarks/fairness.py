"""How long one tenant's thousand waiting jobs keep another tenant's single job waiting: fair share against first-come.

    .venv/bin/python -m benchmarks.fairness [--jobs 1000] [--probes 20] [--rounds 3] [--agents 2]

The same jobs on the same workers, drawn for real by the model in the box. In one half of a round the single jobs belong
to a tenant of their own; in the other they belong to the tenant of the thousand, whose queue is first-come. A wait is
counted in job lengths: the median time from start to end of a job of the thousand.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import redis
from rich.progress import Progress

from benchmarks.figures import machine, quantile
from benchmarks.fleet import fleet
from service.contract.generation import GenerationSpec
from service.contract.job import Job
from service.jobs.commands import SubmitLimits
from service.jobs.store import JobStore
from tests.e2e.processes import wait_for
from tests.jobs import make_job

ROOM = SubmitLimits(None, 1_000_000)
STEPS = 4


class Crowd:
    """One tenant's many jobs, and single ones that come while they wait."""

    def __init__(self, store: JobStore) -> None:
        card = store.models()[0].card
        self.store = store
        self.named = 0
        self.spec = GenerationSpec(
            task="text-to-image",
            model=card.id,
            prompt="a red circle",
            width=card.width,
            height=card.height,
            steps=STEPS,
            guidance_scale=card.guidance_scale,
            scheduler=card.scheduler,
            seed=1,
        )

    def submit(self, tenant: str) -> str:
        self.named += 1
        job = make_job(
            f"gen_{self.named:040}",
            tenant=tenant,
            model=self.spec.model,
            spec=self.spec,
            cost=float(STEPS),
            created_ms=time.time_ns() // 1_000_000,
        )
        assert self.store.submit(job, limits=ROOM).outcome == "created"
        return job.id

    def ended(self, tenant: str, job_id: str) -> Job | None:
        job = self.store.get(tenant, job_id)
        return job if job is not None and job.ended else None

    def half(self, jobs: int, probes: int, prober: str, label: str) -> tuple[list[float], list[float]]:
        """Return the waits of the single jobs and the lengths of the many, in s."""
        with Progress(transient=True) as progress:
            bar = progress.add_task(label, total=jobs)
            many = [self.submit("crowd") for _ in range(jobs)]
            waits: list[float] = []
            for _ in range(probes):
                single = self.submit(prober)
                found = wait_for(
                    "the single job ends",
                    lambda single=single: self.ended(prober, single),
                    timeout_s=3600,
                    every_s=0.01,
                )
                assert found.started_ms is not None
                waits.append((found.started_ms - found.created_ms) / 1000)
                progress.update(bar, completed=jobs * len(waits) / probes)
            wait_for("the crowd ends", lambda: self.ended("crowd", many[-1]), timeout_s=3600)
        lengths = [_length_s(self.store.get("crowd", job_id)) for job_id in many]
        return waits, lengths


def _length_s(job: Job | None) -> float:
    assert job is not None
    assert job.started_ms is not None
    assert job.finished_ms is not None
    return (job.finished_ms - job.started_ms) / 1000


def show(name: str, waits: Sequence[float]) -> None:
    worst = f"longest {max(waits):8.1f}"
    print(f"{name:24} single jobs waited: median {statistics.median(waits):8.1f}, {worst} job lengths ({len(waits)})")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=1000)
    arguments.add_argument("--probes", type=int, default=20)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--agents", type=int, default=2)
    given = arguments.parse_args()
    print(machine())
    fair: list[float] = []
    first_come: list[float] = []
    lengths_s: list[float] = []
    with fleet(fsync="everysec") as service:
        client = redis.Redis.from_url(service.redis.url.get_secret_value(), decode_responses=True)
        store = JobStore(client)
        for number in range(given.agents):
            service.agent(f"agent{number}")
        wait_for("the workers are warm", lambda: sum(m.warm for m in store.models()) >= given.agents, timeout_s=180)
        crowd = Crowd(store)
        crowd.half(8 * given.agents, 1, "warm-up", "warming up")
        for number in range(given.rounds):
            waits, lengths = crowd.half(given.jobs, given.probes, "single", f"round {number + 1}, fair share")
            length_s = quantile(lengths, 0.5)
            fair += [wait / length_s for wait in waits]
            lengths_s += lengths
            # The same tenant's queue is first-come: the only single job of this half waits behind all the others.
            waits, lengths = crowd.half(given.jobs, 1, "crowd", f"round {number + 1}, first-come")
            length_s = quantile(lengths, 0.5)
            first_come += [wait / length_s for wait in waits]
            lengths_s += lengths
        client.close()
    print(f"\n{given.jobs} jobs of {STEPS} steps wait, {given.agents} workers, {given.rounds} rounds")
    print(f"a job takes {1000 * quantile(lengths_s, 0.5):.0f} ms (p99 {1000 * quantile(lengths_s, 0.99):.0f} ms)\n")
    show("fair share", fair)
    show("first-come", first_come)


if __name__ == "__main__":
    main()
