"""RQ as the bell: one short RQ job per submit, whose only meaning is "there is work in this pool".

The truth is the job document; see docs/decisions/0002. Bells are JSON, never pickle.
"""

from __future__ import annotations

from functools import cache
from typing import Final, cast

from redis import Redis
from rq import Queue, SimpleWorker
from rq.job import Job as Bell
from rq.job import JobStatus
from rq.serializers import JSONSerializer
from rq.utils import now, utcformat

from service.jobs.keys import key

#: Named, not imported: a gateway has no worker package.
BELL_FUNCTION: Final = "worker.agent.bell.ring"
#: s; RQ's own limit on one bell. Waiting for room inside a bell is bounded far below it.
BELL_TIMEOUT_S: Final = 300
#: s; how long RQ keeps a bell that raised.
BELL_FAILURE_TTL_S: Final = 60
#: s; an idle worker's key lives that long, and its blocking pop a little less.
WORKER_TTL_S: Final = 60


def queue_name(pool: str) -> str:
    """Return RQ's name for a pool's queue."""
    return key("rq_queue", pool).removeprefix("rq:queue:")


def bell_id(mark: str) -> str:
    """Return an RQ job id: letters, digits, dashes and underscores only."""
    return f"bell-{mark}"


def bell_fields(pool: str, description: str) -> list[str | bytes]:
    """Return one bell as field, value, … the way RQ 2.12 stores a queued job."""
    moment = utcformat(now())
    fields = dict(_template(pool))
    fields.update(description=description, created_at=moment, enqueued_at=moment)
    return [item for pair in fields.items() for item in pair]


@cache
def _template(pool: str) -> tuple[tuple[str, str | bytes], ...]:
    bell = Bell.create(
        func=BELL_FUNCTION,
        connection=Redis(),  # rq wants one; nothing is sent through it, the script does the writing
        id=bell_id("template"),
        origin=queue_name(pool),
        serializer=JSONSerializer,
        timeout=BELL_TIMEOUT_S,
        result_ttl=0,
        failure_ttl=BELL_FAILURE_TTL_S,
        status=JobStatus.QUEUED,
    )
    stored = cast("dict[str, str | bytes | int]", bell.to_dict())
    return tuple((name, _as_stored(value)) for name, value in stored.items())


def _as_stored(value: str | bytes | int) -> str | bytes:
    if isinstance(value, bytes):
        return value
    return str(value.value if isinstance(value, JobStatus) else value)


def make_worker(connection: Redis, pool: str) -> SimpleWorker:
    """Return a stock RQ worker on the one queue of a pool.

    One queue, because a worker on several pops with BLPOP and loses a bell when it dies. `connection` must not decode
    responses. The name is random: RQ refuses a fixed one for minutes after a crash.
    """
    queue = Queue(queue_name(pool), connection=connection, serializer=JSONSerializer)
    return SimpleWorker(
        [queue],
        connection=connection,
        serializer=JSONSerializer,
        worker_ttl=WORKER_TTL_S,
        log_job_description=False,
    )
