"""When an execution sends previews, of what, and that no fault of one reaches the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from service.contract.catalog import CatalogEntry
from service.contract.engine import FromEngine, ImageDrawn, PreviewDrawn
from service.contract.framing import Buffer
from tests.models import BOXED_MODEL, LIBRARY_WARNINGS, tiny_model
from tests.tiny_requests import tiny_request
from worker.engine.drawing import Drawing
from worker.engine.previewing import Previewer
from worker.pipelines.loading import LoadedModel, load
from worker.pipelines.quiet import quiet_libraries

pytestmark = LIBRARY_WARNINGS

#: s, so short that every step has its preview.
ALWAYS_S = 1e-9


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


def model_of(name: str) -> LoadedModel:
    return load(CatalogEntry(id="tiny", source=str(tiny_model(name))))


def drawn(model: LoadedModel, **request: Any) -> tuple[list[tuple[FromEngine, bytes]], list[bytes]]:
    """Return all previews and the messages that they came as, and the pictures."""
    previews: list[tuple[FromEngine, bytes]] = []
    pictures: list[bytes] = []

    def send(message: FromEngine, buffers: Sequence[Buffer] = ()) -> None:
        data = b"".join(bytes(buffer) for buffer in buffers)
        if isinstance(message, PreviewDrawn):
            previews.append((message, data))
        elif isinstance(message, ImageDrawn):
            pictures.append(data)

    Drawing(model, tiny_request(scheduler="euler", **request), [], send=send, is_canceled=lambda: False).run()
    return previews, pictures


def test_the_first_picture_of_a_request_is_shown_after_every_call_where_time_allows() -> None:
    previews, pictures = drawn(model_of("sd15"), previews_s=ALWAYS_S, num_images=2)
    assert len(pictures) == 2
    assert [message for message, _ in previews] == [
        PreviewDrawn(execution_id="e", step=step, width_px=8, height_px=8) for step in (1, 2, 3, 4)
    ]
    assert {len(data) for _, data in previews} == {8 * 8 * 3}
    assert len({data for _, data in previews}) == 4


def test_none_are_made_unless_asked_for_and_none_that_a_safety_checker_might_withhold() -> None:
    assert drawn(model_of("sd15"), previews_s=0.0)[0] == []
    # An hour is over after none of the steps.
    assert drawn(model_of("sd15"), previews_s=3600.0)[0] == []
    assert drawn(model_of("sd15_checked"), previews_s=ALWAYS_S)[0] == []


def test_the_last_preview_is_the_picture_made_small() -> None:
    model = load(CatalogEntry(id="boxed", source=str(BOXED_MODEL)))
    previews, pictures = drawn(model, previews_s=ALWAYS_S, prompt="a rocket", steps=8)
    picture = np.frombuffer(pictures[0], np.uint8).reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    preview = np.frombuffer(previews[-1][1], np.uint8).reshape(16, 16, 3)
    assert np.corrcoef(preview.astype(float).ravel(), picture.ravel())[0, 1] > 0.97


class Broken:
    """Previews that fail."""

    def __init__(self) -> None:
        self.tried = 0

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        self.tried += 1
        raise RuntimeError(f"no preview of {len(latents)} rows")


def test_a_preview_that_fails_is_told_once_and_the_picture_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of("sd15")
    _, pictures = drawn(model, previews_s=0.0)
    broken = Broken()
    previews, same = drawn(replace(model, preview=broken), previews_s=ALWAYS_S)
    assert previews == []
    assert same == pictures
    assert broken.tried == 1
    assert capsys.readouterr().out.count("preview_failed") == 1


class Slow:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_previews_keep_their_distance_and_the_first_comes_after_it() -> None:
    model, clock, sent = model_of("sd15"), Slow(), list[FromEngine]()
    request = tiny_request(scheduler="euler", previews_s=1.0)

    def send(message: FromEngine, _buffers: Sequence[Buffer] = ()) -> None:
        sent.append(message)

    previewer = Previewer(model, request, send=send, clock=clock)
    rows = torch.zeros(2, 4, 8, 8)
    calls: list[tuple[Any, ...]] = []

    def call(*args: Any, **_kwargs: Any) -> tuple[torch.Tensor]:
        calls.append(args)
        return (rows,)

    watched = previewer.watching(0, model.pipeline, call)
    assert previewer.watching(1, model.pipeline, call) is call
    for _ in range(10):
        clock.now_s += 0.4
        assert watched(model.pipeline.unet, rows, torch.tensor(500))[0] is rows
    assert len(calls) == 10
    # At 1.2, 2.4 and 3.6 s.
    assert [message.step for message in sent if isinstance(message, PreviewDrawn)] == [3, 6, 9]
