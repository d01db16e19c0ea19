"""Streams of events as their callers see them: a gateway that listens on a socket, and a reader of what it tells."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from service.api.http_protocol import GuardedHttpProtocol
from service.app import create_app
from service.settings.gateway import GatewaySettings

#: s in which whatever is waited for has to come.
SOON_S = 20


@dataclass(frozen=True, slots=True)
class Event:
    """A block of a stream: an event, or with an empty name a comment or a bare field."""

    name: str
    id: str | None = None
    data: Any = None


class Stream:
    """An open stream. Iterating gives its events; `beat` waits for a comment."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        # Over all of it: comments must not put the deadline off.
        async with asyncio.timeout(SOON_S):
            while (block := await self._block()) is not None:
                if "event" in block:
                    return Event(block["event"], block.get("id"), json.loads(block["data"]))
        raise StopAsyncIteration

    async def names(self) -> list[str]:
        """Return the names of all events up to the end."""
        return [event.name async for event in self]

    async def beat(self) -> None:
        """Return at the next comment; an event before it is an error."""
        block: dict[str, str] | None = {"retry": ""}
        async with asyncio.timeout(SOON_S):
            while block is not None and "retry" in block:
                block = await self._block()
        assert block == {"": ""}

    async def _block(self) -> dict[str, str] | None:
        """Return the fields up to the next empty line; None at the end of the stream."""
        fields: dict[str, str] = {}
        async for line in self._lines:
            if not line:
                return fields
            name, _, value = line.partition(":")
            assert name not in fields
            fields[name] = value.removeprefix(" ")
        assert not fields, "the stream broke off"
        return None


@asynccontextmanager
async def follow(api: httpx.AsyncClient, path: str, *, since: int | None = None) -> AsyncIterator[Stream]:
    """Open the stream of the generation at `path`."""
    headers = {} if since is None else {"Last-Event-ID": str(since)}
    async with api.stream("GET", f"{path}/events", headers=headers) as response:
        assert response.status_code == 200
        yield Stream(response)


@asynccontextmanager
async def listening(settings: GatewaySettings, key: str) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """Serve an app on a socket; yield a client of it. (httpx's own transport for apps waits for whole replies.)"""
    app = create_app(settings)
    config = uvicorn.Config(
        app, http=GuardedHttpProtocol, ws="none", lifespan="on", log_config=None, access_log=False,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as open_socket:
        serving = asyncio.create_task(server.serve(sockets=[open_socket]))
        url = f"http://127.0.0.1:{open_socket.getsockname()[1]}"
        headers = {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=None)
        try:
            async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=SOON_S) as client:
                yield client, app
        finally:
            server.should_exit = True
            await serving
