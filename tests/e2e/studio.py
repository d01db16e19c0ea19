"""Pictures through the whole service, as arrays."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.e2e.looks import Picture

#: Enough for clean shapes, and half the time of the model's default.
STEPS = 12


class Studio:
    """A caller of one gateway who looks at pictures."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def samplers(self) -> list[str]:
        """Return the ids of the samplers that the default model is offered with."""
        return self._client.get("/v1/models").json()["data"][0]["schedulers"]

    def draw(self, prompt: str, **request: Any) -> list[Picture]:
        """Return the pictures of one job."""
        return self._pictures(self._post(prompt, request))

    def draw_each(self, prompts: Sequence[str], **request: Any) -> list[Picture]:
        """Return the first picture of each prompt. All are queued before the first is looked at."""
        locations = [self._post(prompt, request) for prompt in prompts]
        return [self._pictures(location)[0] for location in locations]

    def redraw(self, image: Picture, prompt: str, **request: Any) -> list[Picture]:
        """Return the pictures of one job of image-to-image."""
        return self.draw(prompt, task="image-to-image", image=_asset(image), **request)

    def repaint(self, image: Picture, mask: Picture, prompt: str, **request: Any) -> list[Picture]:
        """Return the pictures of one job of inpainting; the mask is uint8 (height, width), white is drawn anew."""
        return self.draw(prompt, task="inpaint", image=_asset(image), mask=_asset(mask), **request)

    def _post(self, prompt: str, request: dict[str, Any]) -> str:
        body = {"prompt": prompt, "steps": STEPS, "seed": 1, **request}
        reply = self._client.post("/v1/generations", json=body)
        assert reply.status_code == 202, reply.text
        return reply.headers["Location"]

    def _pictures(self, location: str) -> list[Picture]:
        resource = self._client.get(location, headers={"Prefer": "wait=60"}).json()
        while resource["status"] in {"queued", "running"}:
            resource = self._client.get(location, headers={"Prefer": "wait=60"}).json()
        assert resource["status"] == "succeeded", resource
        return [self._opened(image["url"]) for image in resource["images"]]

    def _opened(self, url: str) -> Picture:
        reply = self._client.get(url, follow_redirects=True)
        assert reply.status_code == 200, reply.text
        image = Image.open(io.BytesIO(reply.content))
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def _asset(picture: Picture) -> dict[str, str]:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return {"base64": base64.b64encode(buffer.getvalue()).decode()}
