"""Faults of Redis in our own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError

from service.contract.errors import Overloaded, Unavailable


@contextmanager
def as_unavailable() -> Iterator[None]:
    """Turn every fault of Redis into our own words: its texts may hold addresses."""
    try:
        yield
    except OutOfMemoryError as err:
        msg = "The queue's memory is full."
        raise Overloaded(msg) from err
    except ReadOnlyError as err:
        msg = "The queue accepts no writes at the moment."
        raise Unavailable(msg) from err
    except (RedisError, OSError) as err:
        msg = "The queue does not answer."
        raise Unavailable(msg) from err
