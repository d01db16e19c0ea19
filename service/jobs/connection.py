"""Connections to Redis, with the patience that each side can afford."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from service.settings.groups import RedisSettings

#: s; a caller gets its 503 within 2 s of an outage.
_GATEWAY_TIMEOUT_S = 1.5
#: s; an agent rather waits: everything it says may be repeated.
_AGENT_TIMEOUT_S = 5.0


def connect(settings: RedisSettings, *, decode_responses: bool = True) -> Redis:
    """Return a client for agents and tools. RQ needs one that does not decode responses."""
    return Redis.from_url(
        settings.url.get_secret_value(),
        decode_responses=decode_responses,
        # What is no text of ours is then no JSON of ours either, and refused as such.
        encoding_errors="replace",
        socket_connect_timeout=_AGENT_TIMEOUT_S,
        socket_timeout=_AGENT_TIMEOUT_S,
        health_check_interval=15,
        retry=Retry(
            ExponentialWithJitterBackoff(base=0.05, cap=0.5),
            retries=4,
            supported_errors=(RedisConnectionError, RedisTimeoutError),
        ),
    )


def connect_async(settings: RedisSettings) -> AsyncRedis:
    """Return a client for gateways: one retry for a connection that had died, none for a server that is slow."""
    client = AsyncRedis.from_url(
        settings.url.get_secret_value(),
        decode_responses=True,
        encoding_errors="replace",
        socket_connect_timeout=_GATEWAY_TIMEOUT_S,
        socket_timeout=_GATEWAY_TIMEOUT_S,
        max_connections=512,
        retry=AsyncRetry(
            ExponentialWithJitterBackoff(base=0.02, cap=0.1), retries=1, supported_errors=(RedisConnectionError,)
        ),
    )
    _pack_natively(client)
    return client


def _pack_natively(client: AsyncRedis) -> None:
    """Have commands put together by hiredis, as the synchronous client does: a submit has 130 arguments."""
    pool = client.connection_pool
    # Which class it is depends on the URL: TCP, TLS or a Unix socket.
    pool.connection_class = type("_NativelyPacking", (_NativePacking, pool.connection_class), {})


class _NativePacking:
    """A part of an asynchronous connection of redis-py: what its synchronous ones use, theirs packs in Python."""

    _serializer = HiredisRespSerializer()

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return a command as it goes over the wire."""
        return self._serializer.pack(*args)
