"""`darkroom generate`: a picture from the command line, over HTTP."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.cli.failure import CommandFailed
from service.cli.follower import Follower
from service.cli.gateway_client import GatewayClient
from service.cli.stopping import Stopped, StopRequest
from service.cli.terminal import Terminal

_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller gave on the command line; None = the model's own default."""

    prompt: str
    model: str | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int | None = None
    num_images: int | None = None
    strength: float | None = None


def request_body(wish: Wish, output: Path, image: Path | None, mask: Path | None) -> dict[str, Any]:
    """Return the body of POST /v1/generations. Raises CommandFailed for files that cannot be used."""
    file_format = _FORMATS.get(output.suffix.lower())
    if file_format is None:
        msg = f"{output.name}: the name of the output must end in {', '.join(_FORMATS)}."
        raise CommandFailed(msg, exit_code=2)
    if mask and not image:
        msg = "--mask needs --image, the picture that is to be repainted."
        raise CommandFailed(msg, exit_code=2)
    given = {name: getattr(wish, name) for name in Wish.__slots__}
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    body["output"] = {"format": file_format}
    if image:
        body["task"] = "inpaint" if mask else "image-to-image"
        body["image"] = _inline(image)
    if mask:
        body["mask"] = _inline(mask)
    return body


def generate(client: GatewayClient, body: dict[str, Any], output: Path, terminal: Terminal) -> list[Path]:
    """Draw and save; returns the files. Ctrl-C cancels the job on the server. Raises CommandFailed."""
    _require_writable(output)
    with StopRequest.listening() as stop:
        follower = Follower(client, stop)
        try:
            with terminal.steps("drawing") as advance:
                resource = follower.finish(body, advance)
        except Stopped as err:
            msg = "Canceled."
            raise CommandFailed(msg, exit_code=128 + err.signal_number) from err
        return follower.save(resource, output)


def _require_writable(output: Path) -> None:
    """Make the folder, and refuse before anything is drawn what could not be saved. Raises CommandFailed."""
    reason = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        reason = err.strerror
    if output.is_dir():
        reason = "it is a folder"
    elif reason is None and not os.access(output if output.exists() else output.parent, os.W_OK):
        reason = "Permission denied"
    if reason:
        msg = f"{output} cannot be written: {reason}."
        raise CommandFailed(msg, exit_code=2)


def _inline(path: Path) -> dict[str, str]:
    try:
        return {"base64": base64.b64encode(path.read_bytes()).decode("ascii")}
    except OSError as err:
        msg = f"{path} cannot be read: {err.strerror}."
        raise CommandFailed(msg, exit_code=2) from err
