"""How much of Redis one job takes, waiting and ended.

.venv/bin/python -m benchmarks.memory
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import redis

from service.cli.embedded import EmbeddedValkey
from service.contract.generation import Receipt, ResultImage, Timings
from service.contract.job import Status
from service.jobs.commands import Outcome, SubmitLimits
from service.jobs.keys import key
from service.jobs.store import JobStore
from tests.jobs import make_job

JOBS = 5000
PROMPT = "a red circle on a blue background " * 8


def used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedValkey(Path(folder), fsync="off")
        server.start()
        client = redis.Redis.from_url(server.url, decode_responses=True)
        store = JobStore(client)
        empty = used(client)
        for number in range(JOBS):
            job = make_job(f"gen_{number:040}", tenant=f"tenant-{number % 50}")
            job = job.model_copy(update={"spec": job.spec.model_copy(update={"prompt": PROMPT})})
            store.submit(job, limits=SubmitLimits(None, JOBS))
        waiting = used(client)
        receipt = Receipt(model_sha256="0" * 64, scheduler_config_sha256="0" * 64, device="cpu", dtype="float32")
        for number in range(JOBS):
            job = store.claim("default", f"{number:016}", "agent_000000000000")
            assert job is not None
            name = f"{job.object_prefix}{number:016}/0.png"
            image = ResultImage(
                index=0, seed=1, width_px=64, height_px=64, key=name, content_type="image/png", bytes=1, sha256="0" * 64
            )
            outcome = Outcome(Status.SUCCEEDED, (image,), Timings(), receipt)
            assert store.commit(job.id, f"{number:016}", outcome) == "committed"
        for name in client.scan_iter("rq:*"):
            client.delete(name)
        ended = used(client)
        assert client.hget(key("pool", "default"), "queued") == "0"
        client.close()
        server.stop()
    print(f"{JOBS} jobs, prompt of {len(PROMPT)} characters")
    print(f"waiting, with its bell:     {(waiting - empty) / JOBS:7.0f} bytes a job")
    print(f"ended, with one picture:    {(ended - empty) / JOBS:7.0f} bytes a job")


if __name__ == "__main__":
    main()
