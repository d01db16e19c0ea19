"""RQ as the bell: one short RQ job per submit, whose only meaning is "there is work in this pool".

The truth is the job document; see docs/decisions/0002. Bells are JSON, never pickle.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Final, cast

import structlog
from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.exceptions import StopRequested
from rq.job import Job as Bell
from rq.job import JobStatus
from rq.serializers import JSONSerializer
from rq.utils import now, utcformat

from service.jobs.keys import key

log = structlog.get_logger(__name__)

#: What RQ's tools show as a bell's function. Nothing is imported by that name: see `_bell_class`.
BELL_FUNCTION: Final = "darkroom.bell"
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


def bell_fields(description: str) -> list[str | bytes]:
    """Return one bell as field, value, … the way RQ 2.12 stores a queued job; the script writes its pool over it."""
    moment = utcformat(now())
    fields = dict(_template())
    fields.update(description=description, created_at=moment, enqueued_at=moment)
    return [item for pair in fields.items() for item in pair]


@cache
def _template() -> tuple[tuple[str, str | bytes], ...]:
    bell = Bell.create(
        func=BELL_FUNCTION,
        connection=Redis(),  # rq wants one; nothing is sent through it, the script does the writing
        id=bell_id("template"),
        origin=queue_name("any"),
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


class BellWorker(SimpleWorker):
    """A stock RQ worker that says when it was told to stop, and hears when that was before its own handlers stood."""

    on_stop: Callable[[], None] | None = None
    is_stopping: Callable[[], bool] | None = None

    #: s; its own are doubled up to a minute, which jobs would wait for after an outage of Redis.
    exponential_backoff_factor = 1.0
    max_connection_wait_time = 1.0

    def handle_warm_shutdown_request(self) -> None:
        """RQ's own hook of its signal handler."""
        super().handle_warm_shutdown_request()
        if self.on_stop is not None:
            # A bell may be waiting for room just then.
            self.on_stop()

    def check_for_suspension(self, burst: bool) -> None:
        """RQ's own look before every bell, the first one just after its signal handlers were installed."""
        if self.is_stopping is not None and self.is_stopping():
            raise StopRequested
        super().check_for_suspension(burst)


def _bell_class(ring: Callable[[], object]) -> type[Bell]:
    """Return RQ's job class for agents: it rings, whatever is stored with the job.

    RQ calls any function, callback and URL that a job names: a write to Redis would be code on the worker's host.
    """

    class RungBell(Bell):
        def restore(self, raw_data: Any) -> None:
            super().restore(raw_data)
            self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
            self.webhooks = []

        def perform(self) -> None:
            ring()

    return RungBell


def make_worker(
    connection: Redis, pool: str, *, ring: Callable[[], object], on_stop: Callable[[], None] | None = None
) -> BellWorker:
    """Return an RQ worker on the one queue of a pool; each bell calls `ring`.

    One queue, because a worker on several pops with BLPOP and loses a bell when it dies. `connection` must not decode
    responses. The name is random: RQ refuses a fixed one for minutes after a crash. `on_stop` is called in a signal
    handler: it may set a flag and no more.
    """
    bell_class = _bell_class(ring)
    queue = Queue(queue_name(pool), connection=connection, serializer=JSONSerializer, job_class=bell_class)
    worker = BellWorker(
        [queue],
        connection=connection,
        serializer=JSONSerializer,
        job_class=bell_class,
        worker_ttl=WORKER_TTL_S,
        log_job_description=False,
    )
    worker.on_stop = on_stop
    return worker


def answer_bells(
    connection: Redis,
    pool: str,
    *,
    ring: Callable[[], object],
    stopping: Callable[[], bool],
    stop: Callable[[], None],
    pause_s: float = 0.2,
) -> None:
    """Call `ring` for every bell until `stopping()`: RQ's own worker gives up when Redis is away, and we do not.

    Main thread only. `stop` is called in RQ's signal handlers. The caller's handlers are back on return.
    """
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        # RQ's handlers stay between two workers, and raise, anywhere, where they find no job under way.
        with suppress(StopRequested):
            while not stopping():
                try:
                    worker = make_worker(connection, pool, ring=ring, on_stop=stop)
                    worker.is_stopping = stopping
                    worker.work(logging_level="WARNING")
                except (RedisError, OSError) as err:
                    log.warning("bells_interrupted", error=type(err).__name__)
                if not stopping():
                    time.sleep(pause_s)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
