"""A gateway closes what it opened, however it ends."""

from __future__ import annotations

import asyncio
import threading
from contextlib import nullcontext

import pytest

from service.app import create_app
from service.settings.gateway import GatewaySettings

pytestmark = pytest.mark.anyio


class _Failed(Exception):
    """What runs inside has failed."""


@pytest.mark.parametrize("failure", [None, _Failed()])
async def test_nothing_that_was_opened_outlives_the_app(settings: GatewaySettings, failure: _Failed | None) -> None:
    before = asyncio.all_tasks()
    app = create_app(settings)
    with nullcontext() if failure is None else pytest.raises(_Failed):
        async with app.router.lifespan_context(app):
            assert asyncio.all_tasks() > before
            await asyncio.get_running_loop().run_in_executor(app.state.gateway.threads, lambda: None)
            assert _threads()
            if failure:
                raise failure
    assert asyncio.all_tasks() == before
    assert not _threads()


def _threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("storage")]
