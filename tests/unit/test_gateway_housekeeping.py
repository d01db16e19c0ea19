"""What a gateway does by the clock goes on, whatever one round met."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from service.generations.housekeeping import Housekeeping
from service.jobs.async_store import AsyncJobStore
from service.jobs.commands import Reaped, ServerState

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class _OddStore:
    """A store whose server does not say at first how long it is up."""

    def __init__(self) -> None:
        self.looks = 0

    async def server(self) -> ServerState:
        self.looks += 1
        if self.looks == 1:
            raise KeyError("uptime_in_seconds")
        return ServerState(uptime_s=100.0, memory_ratio=None)

    async def reap(self, *, take_back: bool) -> Reaped:
        assert not take_back
        return Reaped(0, 1, 0)


async def test_a_round_that_fails_is_not_the_last() -> None:
    housekeeping = Housekeeping(cast("AsyncJobStore", _OddStore()), refuse_ratio=0.9, interval_s=0.001)
    reaped = asyncio.Event()
    housekeeping.on_reaped = lambda _: reaped.set()
    housekeeping.start()
    async with asyncio.timeout(5):
        await reaped.wait()
    await housekeeping.stop()
