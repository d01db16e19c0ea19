"""One generation followed from the request to the files, for `darkroom generate` and the first picture of `up`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service.cli.failure import CommandFailed
from service.cli.gateway_client import GatewayClient, GatewayUnreachable, Resource
from service.cli.stopping import Stopped, StopRequest
from service.cli.terminal import Advance

POLL_S = 0.1
#: s that a gateway may be away while a generation runs; it comes back within them after a restart.
_PATIENCE_S = 20.0
#: s; longer times are told in minutes.
_MINUTES_FROM_S = 120


class Follower:
    """Submits a generation and follows it; a stop request cancels it on the server."""

    def __init__(
        self, client: GatewayClient, stop: StopRequest, *, between_polls: Callable[[], None] = lambda: None
    ) -> None:
        self._client = client
        self._stop = stop
        self._between_polls = between_polls

    def finish(self, request: Mapping[str, Any], advance: Advance) -> Resource:
        """Return the succeeded resource.

        Raises CommandFailed with the job's own error when it ended otherwise, Stopped when asked to stop.
        """
        resource = self._client.submit(request)
        generation_id = resource["id"]
        try:
            while resource["status"] in {"queued", "running"}:
                progress = resource.get("progress") or {}
                advance(progress.get("step") or 0, progress.get("steps") or 0, expected(resource))
                self._stop.wait(POLL_S)
                self._between_polls()
                resource = self._poll(generation_id)
        except Stopped:
            with contextlib.suppress(CommandFailed):  # the stop is what the caller asked for
                self._client.cancel(generation_id)
            raise
        if resource["status"] != "succeeded":
            error = resource.get("error") or {}
            reason = error.get("message") or f"it ended {resource['status']}"
            msg = f"Generation {generation_id} was not drawn: {reason}"
            raise CommandFailed(msg)
        return resource

    def save(self, resource: Resource, path: Path) -> list[Path]:
        """Write the pictures to `path`, with `-0`, `-1`, … before the ending where there are several."""
        images = [image for image in resource["images"] if not image.get("flagged")]
        if not images:
            msg = f"Generation {resource['id']}: every picture was withheld by the model's safety checker."
            raise CommandFailed(msg)
        several = len(resource["images"]) > 1
        saved: list[Path] = []
        for number, image in enumerate(resource["images"]):
            if image.get("flagged"):
                continue
            target = path.with_stem(f"{path.stem}-{number}") if several else path
            _write(target, self._client.picture(image["url"]))
            saved.append(target)
        return saved

    def _poll(self, generation_id: str) -> Resource:
        for _ in range(int(_PATIENCE_S / POLL_S)):
            try:
                return self._client.generation(generation_id)
            except GatewayUnreachable:
                self._stop.wait(POLL_S)
                self._between_polls()
        return self._client.generation(generation_id)


def expected(resource: Resource) -> str:
    """Say what is expected of a generation: its place, and the time until it is done; nothing of what is not known."""
    queue, progress = resource.get("queue") or {}, resource.get("progress") or {}
    parts: list[str] = []
    if (position := queue.get("position")) is not None:
        parts.append("next in line" if position == 1 else f"place {position} in line")
    left_s = queue.get("estimated_finish_s", progress.get("estimated_finish_s"))
    if left_s is not None and left_s >= 1:
        parts.append(f"about {left_s:.0f} s" if left_s < _MINUTES_FROM_S else f"about {left_s / 60:.0f} min")
    return ", ".join(parts)


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as err:
        msg = f"{path} cannot be written: {err.strerror}."
        raise CommandFailed(msg) from err
