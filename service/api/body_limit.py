"""Limits on request bodies where they arrive: bytes of one, bytes of all, and time. Nothing over a limit is kept."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.contract.errors import MalformedRequest, Overloaded, RequestTimedOut, RequestTooLarge


class BodyLimit:
    """ASGI middleware. A declared length over the limit is refused unread, an undeclared one when it passes it."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int, budget_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._budget_bytes = budget_bytes
        self._timeout_s = timeout_s
        #: Bytes of bodies that requests in flight hold in this process.
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request whose body is counted as it is read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._check_declared(Headers(scope=scope).getlist("content-length"))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        seen, complete = 0, False

        async def receive_counted() -> Message:
            nonlocal seen, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise RequestTimedOut(f"The body did not arrive within {self._timeout_s:g} s.") from None
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                seen += size
                self._held_bytes += size
                complete = not message.get("more_body", False)
                if seen > self._limit_bytes:
                    raise RequestTooLarge(self._too_large())
                if self._held_bytes > self._budget_bytes:
                    raise Overloaded("Too many bytes of requests are being read at the moment.")
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._held_bytes -= seen

    def _check_declared(self, lengths: list[str]) -> None:
        if not lengths:
            return
        if len(set(lengths)) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            raise MalformedRequest("The Content-Length header is not one number.")
        if len(lengths[0]) > 18 or int(lengths[0]) > self._limit_bytes:
            raise RequestTooLarge(self._too_large())

    def _too_large(self) -> str:
        return f"The body may have at most {self._limit_bytes} bytes."
