"""The README's sheet: fixed prompts, drawn over HTTP by a running service, each written under its picture.

    make run                                     # in another terminal
    .venv/bin/python -m training.gallery [--url http://127.0.0.1:8000] [--out docs/images/sheet.png]

The prompts were chosen for their range before the model could draw them, and picture i has seed i: nothing is picked.
"""

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from training.captions import caption
from training.contact_sheet import contact_sheet
from training.shapes import Shape

PROMPTS = (
    caption("red apple", "3d"),
    caption("fox", "flat"),
    caption("cactus", "noto"),
    caption("rocket", "3d", "light blue"),
    caption("sailboat", "flat", "yellow"),
    caption("owl", "noto", "pink"),
    caption("strawberry", "3d", "green"),
    caption("hamburger", "flat"),
    caption("castle", "noto"),
    caption("penguin", "3d", "gray"),
    caption("guitar", "flat"),
    caption("full moon", "noto", "blue"),
    caption("crown", "3d", "purple"),
    caption("snowman without snow", "flat", "light blue"),
    caption("fire engine", "noto"),
    caption("octopus", "3d", "black"),
    caption("sunflower", "flat"),
    caption("robot", "noto", "red"),
    Shape("circle", "red", "blue").caption,
    Shape("star", "yellow", "purple", size="big").caption,
    Shape("square", "green", "white", "in the top left", "small").caption,
    Shape("ring", "black", "green").caption,
    Shape("triangle", "white", "red", "in the bottom right").caption,
    Shape("cross", "blue", "yellow", "in the top right", "big").caption,
)
COLUMNS = 6
#: A README is read over slow lines, too.
_MOST_BYTES = 300_000


def encoded(whole: Image.Image, most_bytes: int = _MOST_BYTES) -> bytes:
    """Return the sheet as PNG. Where it would be larger than that, colours have 7, 6 or 5 bits: that shows least."""
    pixels = np.asarray(whole)
    data = _png(pixels)
    for bits in (7, 6, 5):
        if len(data) <= most_bytes:
            break
        step = 255 / (2**bits - 1)  # white stays white
        data = _png((np.round(pixels / step) * step).round().astype(np.uint8))
    return data


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def drawn(client: httpx.Client, prompts: Sequence[str]) -> Iterator[Image.Image]:
    """Yield the picture of each prompt; all are queued before the first is waited for.

    Raises:
        httpx.HTTPError: the service cannot be reached, or refuses.
        RuntimeError: a job ended without a picture.
    """
    jobs = [_called(client, "POST", "/v1/generations", json={"prompt": p, "seed": n}) for n, p in enumerate(prompts)]
    for queued in jobs:
        job, path = queued, queued["urls"]["self"]
        while job["status"] in {"queued", "running"}:
            job = _called(client, "GET", path, headers={"Prefer": "wait=30"})
        if job["status"] != "succeeded":
            msg = f"{job['request']['prompt']!r} ended {job['status']}: {(job['error'] or {}).get('message')}"
            raise RuntimeError(msg)
        reply = client.get(job["images"][0]["url"], follow_redirects=True).raise_for_status()
        yield Image.open(io.BytesIO(reply.content)).convert("RGB")


def _called(client: httpx.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
    return client.request(method, path, **options).raise_for_status().json()


def main(
    url: Annotated[str, typer.Option(help="Address of a gateway that asks for no key.")] = "http://127.0.0.1:8000",
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("docs/images/sheet.png"),
) -> None:
    """Draw the README's sheet through a running service."""
    progress = tqdm(total=len(PROMPTS), desc="drawing", unit="picture")
    pictures = []
    try:
        with progress, httpx.Client(base_url=url, timeout=90) as client:
            for picture in drawn(client, PROMPTS):
                pictures.append(picture)
                progress.update()
    except (httpx.HTTPError, RuntimeError) as err:
        sys.exit(f"not drawn: {err}")
    data = encoded(contact_sheet(pictures, PROMPTS, columns=COLUMNS, smooth=True))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(data)
    typer.echo(f"{len(pictures)} pictures in {out}, {len(data) / 1000:.0f} kB")


if __name__ == "__main__":
    typer.run(main)
