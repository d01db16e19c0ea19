"""Waiting for jobs to end: one pub/sub connection per gateway, however many callers wait."""

from __future__ import annotations

import asyncio
from collections import defaultdict
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
_REREAD_S = 5.0
#: s; pause before a broken subscription is made anew.
_RECONNECT_S = 0.5
#: A channel that always stays subscribed: without one, redis-py has nothing to read.
_KEEP = key("changes", "-")


class Waiters:
    """Wakes callers when their job ends.

    Messages only wake; the truth is read from the document, before the first wait and after each waking.
    """

    def __init__(self, redis: Redis, store: AsyncJobStore) -> None:
        self._redis = redis
        self._store = store
        self._events: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._pubsub: PubSub | None = None
        self._reader: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

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
        for events in self._events.values():
            for event in events:
                event.set()

    async def ended(self, tenant: str, job_id: str, timeout_s: float) -> Job | None:
        """Return the job when it has ended, or as it is after `timeout_s`; None where this tenant has none such."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        event = asyncio.Event()
        channel = key("changes", job_id)
        self._events[channel].add(event)
        try:
            if len(self._events[channel]) == 1:
                await self._subscribe(channel)
            while True:
                event.clear()
                job = await self._store.get(tenant, job_id)
                left = deadline - loop.time()
                if job is None or job.ended or left <= 0 or self._closing.is_set():
                    return job
                try:
                    await asyncio.wait_for(event.wait(), min(left, _REREAD_S))
                except TimeoutError:
                    continue
        finally:
            self._events[channel].discard(event)
            if not self._events[channel]:
                del self._events[channel]
                await self._unsubscribe(channel)

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
                await pubsub.subscribe(_KEEP, *self._events)
                self._pubsub = pubsub
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
        if status in TERMINAL or status == "erased":
            for event in self._events.get(channel, ()):
                event.set()

    def _wake_all(self) -> None:
        for events in self._events.values():
            for event in events:
                event.set()
