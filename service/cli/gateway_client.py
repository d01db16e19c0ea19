"""The gateway as the command line sees it: HTTP and nothing else."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from service.cli.failure import CommandFailed

#: Exit codes of commands that talk to a gateway.
REFUSED, UNREACHABLE = 1, 3

Resource = dict[str, Any]


class GatewayRefused(CommandFailed):
    """The gateway answered with a problem; the message is its detail and what it says about fields."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message, exit_code=REFUSED)
        self.status = status


class GatewayUnreachable(CommandFailed):
    """Nothing answers at the address."""

    def __init__(self, url: str, reason: str) -> None:
        message = f"No gateway answers at {url} ({reason}); start one with `darkroom up`, or pass --url."
        super().__init__(message, exit_code=UNREACHABLE)


class GatewayClient:
    """Calls of `/v1`. Every method raises GatewayRefused or GatewayUnreachable."""

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 30.0) -> None:
        if not _is_address(url):
            msg = f"{url!r} is no address of a gateway; it looks like http://127.0.0.1:8000."
            raise CommandFailed(msg, exit_code=2)
        if key is not None and not (key.isascii() and key.isprintable()):
            msg = "This is no API key: one looks like dk_…, without spaces or line breaks."
            raise CommandFailed(msg, exit_code=2)
        self._url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A proxy of the environment is for other machines.
        environment = not _is_this_machine(self._url)
        self._http = httpx.Client(base_url=self._url, headers=headers, timeout=timeout_s, trust_env=environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, body: Mapping[str, Any]) -> Resource:
        """POST a generation; returns the resource."""
        try:
            content = json.dumps(dict(body), allow_nan=False, ensure_ascii=False).encode()
        except ValueError as err:  # UnicodeEncodeError too
            msg = "This cannot be sent: a number must be finite, and a text must be UTF-8."
            raise CommandFailed(msg, exit_code=2) from err
        return self._call("POST", "/v1/generations", content=content, headers={"Content-Type": "application/json"})

    def generation(self, generation_id: str) -> Resource:
        """Return the resource as it is now."""
        return self._call("GET", f"/v1/generations/{generation_id}")

    def cancel(self, generation_id: str) -> Resource:
        """Ask for the end of a generation; returns the resource as it is then."""
        return self._call("POST", f"/v1/generations/{generation_id}/cancel", json={})

    def picture(self, url: str) -> bytes:
        """Return the bytes behind an image link of the resource, which redirects to storage."""
        return self._request("GET", url, follow_redirects=True).content

    def models(self) -> list[Resource]:
        """Return the registered models."""
        return self._call("GET", "/v1/models")["data"]

    def earlier_generations(self, limit: int) -> list[Resource]:
        """Return the newest generations, at most `limit`."""
        return self._call("GET", "/v1/generations", params={"limit": limit})["data"]

    def warm_models(self) -> list[str]:
        """Return the ids of the models that a live worker holds in memory."""
        return [model["id"] for model in self.models() if model.get("workers")]

    def listens(self) -> bool:
        """Whether a gateway answers at all."""
        try:
            return self._http.get("/healthz").is_success
        except httpx.TransportError:
            return False

    def readiness(self) -> str | None:
        """Return None when the gateway is ready to serve, else what it waits for."""
        try:
            response = self._http.get("/readyz")
        except httpx.TransportError as err:
            raise GatewayUnreachable(self._url, type(err).__name__) from err
        return None if response.is_success else _explain(response)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _call(self, method: str, path: str, **options: Any) -> Resource:
        response = self._request(method, path, **options)
        try:
            return response.json()
        except ValueError as err:
            msg = f"{self._url}{path} answered {response.status_code} without JSON: this is no Darkroom gateway."
            raise CommandFailed(msg, exit_code=UNREACHABLE) from err

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except (httpx.TransportError, httpx.InvalidURL) as err:
            raise GatewayUnreachable(self._url, str(err) or type(err).__name__) from err
        if response.is_success:
            return response
        raise GatewayRefused(_explain(response), status=response.status_code)


def _explain(response: httpx.Response) -> str:
    """Say what a problem+json reply says: its detail, then a line per field."""
    try:
        problem = response.json()
        detail = problem.get("detail") or problem.get("title") or f"HTTP {response.status_code}"
        fields = [_field_line(each) for each in problem.get("errors") or []]
    except (ValueError, AttributeError, KeyError):
        return f"{response.request.url} answered HTTP {response.status_code}"
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        detail += " Pass --key, or set DARKROOM_KEY."
    return "\n".join([detail, *fields])


def _field_line(error: Mapping[str, Any]) -> str:
    name = str(error.get("pointer", "")).removeprefix("#").strip("/") or "request"
    return f"  {name}: {error.get('detail') or error.get('message')}"


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
