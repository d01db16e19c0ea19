"""Waiting for jobs to change or to end: one pub/sub connection per gateway, however many callers wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, cast

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from service.contract.job import TERMINAL, Job
from service.jobs.async_store import AsyncJobStore
from service.jobs.keys import key

log = structlog.get_logger(__name__)

#: s; a message that was lost costs this much at most.
REREAD_S = 5.0
#: s; pause before a broken subscription is made anew.
_RECONNECT_S = 0.5
#: A channel that always stays subscribed: without one, redis-py has nothing to read.
_KEEP = key("changes", "-")


class JobWatch:
    """What wakes one caller. It says nothing of the job: whoever is woken reads the document."""

    def __init__(self, *, every_change: bool) -> None:
        #: False = only the end wakes.
        self.every_change = every_change
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Have the wait return, the present one or the next."""
        self._event.set()

    @property
    def is_woken(self) -> bool:
        """Whether something woke it since `clear`."""
        return self._event.is_set()

    def clear(self) -> None:
        """Forget what woke; call it before the document is read, so that no later change is missed."""
        self._event.clear()

    async def woken(self, timeout_s: float) -> None:
        """Return when woken since `clear`, or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), timeout_s)


class Waiters:
    """Wakes callers when their job changes or ends.

    Messages only wake; the truth is read from the document, before the first wait and after each waking.
    """

    def __init__(self, redis: Redis, store: AsyncJobStore) -> None:
        self._redis = redis
        self._store = store
        self._watches: defaultdict[str, set[JobWatch]] = defaultdict(set)
        self._pubsub: PubSub | None = None
        self._reader: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        #: Callers that wait for an end.
        self.waits = 0

    async def start(self) -> None:
        """Begin to listen."""
        self._reader = asyncio.create_task(self._listen(), name="waiters")

    async def stop(self) -> None:
        """Let every waiter go and stop listening."""
        self.release()
        # Once is not enough: a connection that is just being made may swallow a cancellation (seen 1 in 50).
        while self._reader and not self._reader.done():
            self._reader.cancel()
            await asyncio.wait({self._reader}, timeout=0.1)

    def release(self) -> None:
        """Let every waiter go with the job as it is: the process is about to end."""
        self._closing.set()
        self._wake_all()

    @property
    def closing(self) -> bool:
        """Whether the process is about to end: nobody should wait any more."""
        return self._closing.is_set()

    @contextlib.asynccontextmanager
    async def watching(self, job_id: str, *, every_change: bool) -> AsyncIterator[JobWatch]:
        """Yield what is woken by changes of a job, or by its end alone, until the block ends.

        Messages may be lost: read the document again after `REREAD_S` without one.
        """
        watch = JobWatch(every_change=every_change)
        channel = key("changes", job_id)
        watches = self._watches[channel]
        watches.add(watch)
        try:
            if len(watches) == 1:
                await self._subscribe(channel)
            yield watch
        finally:
            watches.discard(watch)
            if not watches:
                del self._watches[channel]
                await self._unsubscribe(channel)

    async def ended(self, tenant: str, job_id: str, timeout_s: float) -> Job | None:
        """Return the job when it has ended, or as it is after `timeout_s`; None where this tenant has none such."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        self.waits += 1
        try:
            async with self.watching(job_id, every_change=False) as watch:
                while True:
                    watch.clear()
                    job = await self._store.get(tenant, job_id)
                    left = deadline - loop.time()
                    if job is None or job.ended or left <= 0 or self.closing:
                        return job
                    await watch.woken(min(left, REREAD_S))
        finally:
            self.waits -= 1

    async def _subscribe(self, channel: str) -> None:
        # Without a live subscription the re-read alone finds the end; the listener subscribes anew.
        if self._pubsub is not None:
            try:
                await self._pubsub.subscribe(channel)
            except (RedisError, OSError):
                log.info("waiters_subscribe_failed")

    async def _unsubscribe(self, channel: str) -> None:
        if self._pubsub is not None:
            try:
                await self._pubsub.unsubscribe(channel)
            except (RedisError, OSError):
                log.info("waiters_unsubscribe_failed")

    async def _listen(self) -> None:
        while True:
            pubsub = self._redis.pubsub()
            try:
                asked = set(self._watches)
                await pubsub.subscribe(_KEEP, *asked)
                self._pubsub = pubsub
                # Who came and went meanwhile found nothing to subscribe on.
                for channel in asked.symmetric_difference(self._watches):
                    await (self._subscribe if channel in self._watches else self._unsubscribe)(channel)
                self._wake_all()
                while True:
                    message = cast(
                        "dict[str, Any] | None",
                        await pubsub.get_message(ignore_subscribe_messages=True, timeout=30.0),
                    )
                    if message is not None:
                        self._wake(str(message["channel"]), str(message["data"]))
            except (RedisError, OSError) as err:
                log.warning("waiters_connection_lost", error=type(err).__name__)
                await asyncio.sleep(_RECONNECT_S)
            finally:
                self._pubsub = None
                await pubsub.aclose()

    def _wake(self, channel: str, message: str) -> None:
        status = message.rpartition(" ")[2]
        over = status in TERMINAL or status == "erased"
        for watch in self._watches.get(channel, ()):
            if over or watch.every_change:
                watch.wake()

    def _wake_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.wake()
