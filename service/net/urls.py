"""Where a caller's URL leads, parsed once and strictly: what two parsers could read differently is refused.

Of RFC 3986 what a picture or a receiver needs. What else browsers and libraries make of a URL (a backslash for a slash,
0x7f.1 for 127.0.0.1, full-width letters, …) has let requests past checks before: CVE-2026-46526, CVE-2026-44502.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address

from service.contract.errors import DarkroomError
from service.net.addresses import Address, literal

#: Characters of a URL; presigned links with a session's token have some 2000.
URL_MAX_CHARS = 4096

_CHARACTERS = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
_FORM = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?P<fragment>#.*)?")
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>.*))?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
#: Letters, digits, hyphens inside; underscores too, since names of services have them.
_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
#: The last label of what some parsers read as an IPv4 address, in octal or hexadecimal perhaps.
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", re.DOTALL)

_DEFAULT_PORTS = {"https": 443, "http": 80}


class UrlRefused(DarkroomError):
    """The URL is not one that this server calls; the message says what is allowed, and never quotes the URL."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a URL leads, in parts that are put together again and never parsed a second time."""

    scheme: str
    #: Lower case, without brackets.
    host: str
    port: int
    #: Path and query, as given; at least `/`.
    target: str
    #: What `host` is where it is no name.
    address: Address | None

    @property
    def authority(self) -> str:
        """The `Host` header: with the port where it is not the scheme's own."""
        host = f"[{self.host}]" if isinstance(self.address, IPv6Address) else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole, as a base for relative references."""
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_url(url: str, *, http: bool, ports: tuple[int, ...]) -> Destination:
    """Return where a URL leads; `http` allows that scheme, `ports` are all that are allowed.

    Raises `UrlRefused`. Whether its address may be called is not looked at.
    """
    if len(url) > URL_MAX_CHARS:
        raise UrlRefused(f"must have at most {URL_MAX_CHARS} characters")
    if not _CHARACTERS.fullmatch(url):
        raise UrlRefused(
            "must have the characters of RFC 3986 alone, without spaces and backslashes; write others as %XX, "
            "and a host's name in its ASCII form (xn--…)"
        )
    parts = _FORM.fullmatch(url)
    scheme = parts["scheme"].lower() if parts else ""
    if parts is None or scheme not in ({"https", "http"} if http else {"https"}):
        raise UrlRefused("must begin with https://" + (" or http://" if http else ""))
    if parts["fragment"] is not None:
        raise UrlRefused("must have no fragment (#…)")
    if "@" in parts["authority"]:
        raise UrlRefused("must hold no user name and no password")
    authority = _AUTHORITY.fullmatch(parts["authority"])
    if authority is None:
        raise UrlRefused("must name a host, and nothing else, between // and /")
    port = _port(authority["port"], _DEFAULT_PORTS[scheme], ports)
    host, address = _host(authority["host"].lower())
    target = parts["target"]
    return Destination(scheme, host, port, target if target.startswith("/") else f"/{target}", address)


def _port(text: str | None, default: int, allowed: tuple[int, ...]) -> int:
    if text is not None and not _PORT.fullmatch(text):
        raise UrlRefused("must have a port of digits, or none")
    port = default if text is None else int(text)
    if port not in allowed:
        raise UrlRefused(f"must have one of the ports {', '.join(map(str, sorted(allowed)))}")
    return port


def _host(text: str) -> tuple[str, Address | None]:
    """Return a host without brackets, and the address that it is."""
    if text.startswith("["):
        inner = text[1:-1]
        address = literal(inner)
        if not isinstance(address, IPv6Address) or "%" in inner:
            raise UrlRefused("must have an IPv6 address without a zone between [ and ]")
        return str(address), address
    if text.endswith("."):
        raise UrlRefused("must name a host without a dot at its end")
    if _NUMERIC.fullmatch(text):
        address = literal(text)
        if address is None:
            raise UrlRefused("must have an IPv4 address in its usual form, such as 192.0.2.7")
        return str(address), address
    if not _NAME.fullmatch(text):
        raise UrlRefused("must name a host: letters, digits, hyphens and dots, in its ASCII form (xn--…)")
    return text, None
