"""Connections that stall, and answers that come before the request is whole: over real sockets, with short limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.body_limit import BodyLimit
from service.api.edge import Edge
from service.api.http_protocol import GuardedHttpProtocol

pytestmark = pytest.mark.anyio

LIMIT_S = 0.3
LARGE = b"x" * (32 << 20)
HOST = b"Host: here\r\n"


class Impatient(GuardedHttpProtocol):
    """The protocol with limits that a test can wait for."""

    arrival_timeout_s = LIMIT_S
    reader_timeout_s = LIMIT_S


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without a look at the body, except at /read."""
    request = Request(scope, receive)
    body = await request.body() if request.url.path == "/read" else b""
    await Response(LARGE if request.url.path == "/large" else str(len(body)))(scope, receive, send)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def port() -> AsyncIterator[int]:
    app = Edge(BodyLimit(_app, limit_bytes=1 << 20, budget_bytes=64 << 20, timeout_s=10))
    config = uvicorn.Config(
        app, http=Impatient, ws="none", lifespan="off", log_config=None, access_log=False, timeout_keep_alive=5
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        yield int(listening.getsockname()[1])
        server.should_exit = True
        await serving


def _drip(port: int, first: bytes, drop: bytes) -> float:
    """Send `first`, then `drop` again and again; return after how many seconds the other side had enough."""
    with socket.create_connection(("127.0.0.1", port), timeout=0.05) as caller:
        began = time.monotonic()
        caller.sendall(first)
        while time.monotonic() - began < 20 * LIMIT_S:
            with contextlib.suppress(TimeoutError):
                try:
                    if caller.recv(65536) == b"":
                        break
                    caller.sendall(drop)
                except ConnectionError:
                    break
                continue
            with contextlib.suppress(ConnectionError):
                caller.sendall(drop)
        return time.monotonic() - began


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"GET / HTTP/1.1\r\n", b"X: y\r\n"),
        (b"", b"\r\n"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", b"\r\n"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\n", b"x"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["head", "blank lines at first", "blank lines after a reply", "body after its reply", "chunks after the reply"],
)
async def test_what_drips_on_is_cut_off(port: int, first: bytes, drop: bytes) -> None:
    assert await asyncio.to_thread(_drip, port, first, drop) < 10 * LIMIT_S


def _stalled(port: int) -> int:
    """Ask for much and take nothing of it until the other side has let go; return how many bytes were still got."""
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.settimeout(10)
        caller.connect(("127.0.0.1", port))
        caller.sendall((b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n") * 2)
        time.sleep(5 * LIMIT_S)
        taken = 0
        with contextlib.suppress(ConnectionError):
            while part := caller.recv(1 << 20):
                taken += len(part)
        return taken


async def test_a_reader_that_takes_nothing_is_let_go(port: int) -> None:
    assert await asyncio.to_thread(_stalled, port) < len(LARGE)


async def test_a_slow_reader_gets_everything(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4 << 20)
    writer.write(b"GET /large HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    taken = 0
    while part := await reader.read(2 << 20):
        taken += len(part)
        if taken < len(LARGE) // 4:
            await asyncio.sleep(LIMIT_S / 4)
    writer.close()
    assert taken == len(LARGE)


async def test_a_body_that_is_too_large_is_told_so_to_callers_that_first_send_it_all(port: int) -> None:
    for framing in (b"Content-Length: %d\r\n\r\n" % len(LARGE), b"Transfer-Encoding: chunked\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /read HTTP/1.1\r\n" + HOST + framing)
        chunked = b"chunked" in framing
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(LARGE), LARGE) if chunked else LARGE)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        assert json.loads(await reader.readexactly(length))["code"] == "request_too_large"
        # The connection is as good as before.
        writer.write(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_connection_is_idle_again_once_an_unwanted_body_has_come(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200 ")
    writer.write(b"x")
    await writer.drain()
    writer.write(b"x")
    await asyncio.sleep(3 * LIMIT_S)
    writer.write(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200 ")
    writer.close()


@pytest.mark.parametrize("request_text", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n" + HOST + b"X : y\r\n\r\n"])
async def test_what_is_not_http_is_a_problem_like_any_other(port: int, request_text: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_text)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head.lower()
    assert json.loads(body)["code"] == "malformed_request"
