"""Without keys, only this machine's own programs may call, and no web page that happens to be open on it.

A page can reach a loopback port by a plain form or image (its Origin gives it away), or by a host name of its own that
resolves to 127.0.0.1 (DNS rebinding: its Host gives it away).
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.multipart import is_multipart
from service.contract.errors import Forbidden, UnsupportedMedia
from service.settings.gateway import is_loopback

_HTTP_PORT = 80
#: A page can send a form with files anywhere without asking; a header of another name has its browser ask first.
_NO_FORM = "x-darkroom"
#: A Host header: a name or an address of either family, and a port. Nothing that two readers could take differently.
_HOST = re.compile(r"(?P<name>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?")


class LoopbackOnly:
    """ASGI middleware for a gateway without keys."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request of this machine; raises `Forbidden` for any other."""
        if scope["type"] == "http":
            check_local(Headers(scope=scope), method=scope["method"], port=(scope.get("server") or ("", None))[1])
        await self._app(scope, receive, send)


def check_local(headers: Headers, *, method: str, port: int | None) -> None:
    """Return if a request is one of this machine's own programs, judged by what browsers cannot forge.

    `port`: where this gateway listens. Raises `Forbidden`, or `UnsupportedMedia` for a body that a form could send.
    """
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not _is_ours(hosts[0], port):
        raise Forbidden("Without keys the Host header must name this machine and port, e.g. 127.0.0.1:8000.")
    origins = headers.getlist("origin")
    if origins and origins != [f"http://{hosts[0]}"]:
        raise Forbidden("Without keys no other web page may call: the Origin header is not this server's.")
    if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise Forbidden("Without keys no other web page may call: the browser says that one did.")
    content_type = headers.get("content-type")
    if method in {"GET", "HEAD"} or content_type is None or is_json(content_type):
        return
    if not is_multipart(content_type):
        raise UnsupportedMedia("Without keys a body must be application/json, or multipart/form-data with X-Darkroom.")
    if headers.getlist(_NO_FORM) != ["1"]:
        raise UnsupportedMedia("Without keys multipart/form-data needs the header `X-Darkroom: 1`: no form sends it.")


def is_json(content_type: str) -> bool:
    """Tell whether a Content-Type is JSON in UTF-8."""
    media, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().replace('"', "").replace(" ", "")
    return media.strip().lower() == "application/json" and charset in {"", "charset=utf-8"}


def _is_ours(host: str, port: int | None) -> bool:
    found = _HOST.fullmatch(host)
    return found is not None and is_loopback(found["name"]) and port in {None, int(found["port"] or _HTTP_PORT)}
