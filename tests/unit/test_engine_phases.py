"""The phase that is told of an execution, and the time of each, when its images are in phases of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import get_args

import pytest
import torch

from service.contract.catalog import CatalogEntry
from service.contract.engine import Finished, FromEngine, Generate, ImageDrawn, Phase, PhaseStarted
from service.contract.generation import GenerationSpec
from tests.models import LIBRARY_WARNINGS, tiny_model
from tests.sums import DeviceLost
from worker.engine.batch import batch_for
from worker.engine.drawing import Drawing
from worker.engine.phases import Phases
from worker.pipelines.loading import LoadedModel, load
from worker.pipelines.quiet import quiet_libraries

pytestmark = LIBRARY_WARNINGS


class Course:
    """Phases on a clock that is moved by hand."""

    def __init__(self, images: int) -> None:
        self.now_s = 0.0
        self.told: list[Phase] = []
        self.phases = Phases(self.told.append, images, clock=lambda: self.now_s)

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds

    @property
    def spent_s(self) -> tuple[float, ...]:
        return tuple(self.phases.spent_s(phase) for phase in get_args(Phase) if phase != "load")


def test_a_phase_is_told_once_when_it_begins_and_times_are_what_passed_in_it() -> None:
    course = Course(images=1)
    course.phases.enter("encode")
    course.pass_s(1)
    course.phases.leave()
    course.phases.enter("encode", 0)
    course.pass_s(0.5)
    for _ in range(3):
        course.phases.enter("denoise", 0)
        course.pass_s(2)
    course.phases.enter("decode", 0)
    course.pass_s(3)
    course.phases.leave(0)
    assert course.told == ["encode", "denoise", "decode"]
    assert course.spent_s == (1.5, 6.0, 3.0)


def test_images_that_take_turns_are_denoised_until_the_last_is_and_then_decoded() -> None:
    course = Course(images=2)
    for image in (0, 1):
        course.phases.enter("encode", image)
        course.pass_s(1)
        course.phases.enter("denoise", image)
    course.pass_s(4)
    course.phases.enter("decode", 0)
    course.pass_s(2)
    course.phases.leave(0)
    course.pass_s(1)
    course.phases.enter("decode", 1)
    course.pass_s(5)
    course.phases.leave(1)
    assert course.told == ["encode", "denoise", "decode"]
    assert course.spent_s == (2.0, 7.0, 5.0)


def test_images_one_after_the_other_go_back_in_their_times_only() -> None:
    course = Course(images=2)
    for image in (0, 1):
        for phase, seconds in (("encode", 1.0), ("denoise", 4.0), ("decode", 2.0)):
            course.phases.enter(phase, image)
            course.pass_s(seconds)
        course.phases.leave(image)
    assert course.told == ["encode", "denoise", "decode"]
    assert course.spent_s == (2.0, 8.0, 4.0)


def test_an_image_that_is_drawn_once_more_is_denoised_again() -> None:
    course = Course(images=2)
    for phase in ("encode", "denoise", "decode"):
        course.phases.enter(phase, 0)
        course.phases.enter(phase, 1)
    course.phases.enter("encode", 1)
    course.phases.enter("denoise", 1)
    course.phases.enter("decode", 1)
    assert course.told == ["encode", "denoise", "decode", "denoise", "decode"]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    quiet_libraries()
    return load(CatalogEntry(id="tiny", source=str(tiny_model("sd15"))))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


def _lost(error: Exception) -> None:
    raise DeviceLost from error


def drawn(model: LoadedModel, *, in_batch: bool, deterministic: bool) -> tuple[list[FromEngine], Finished, float]:
    """Draw three images from a picture; return what is told, the closing message and the seconds that it took."""
    spec = GenerationSpec(
        task="image-to-image",
        model="tiny",
        prompt="a red apple",
        width=64,
        height=64,
        steps=4,
        strength=0.75,
        guidance_scale=5.0,
        scheduler="ddim",
        seed=1,
        num_images=3,
        deterministic=deterministic,
    )
    told: list[FromEngine] = []
    drawing = Drawing(
        model,
        Generate(execution_id="e", spec=spec, sizes_px=((64, 64),)),
        [bytes(range(256)) * 48],
        send=lambda message, *_, **__: told.append(message),
        is_canceled=lambda: False,
    )
    ended: list[Finished] = []
    begun_s = time.monotonic()
    if in_batch:
        batch = batch_for(torch.device("cpu"), lost=_lost)
        batch.hub.start(lambda: ended.append(drawing.run()))
        batch.hub.run()
        while batch.busy:
            batch.tick()
    else:
        ended.append(drawing.run())
    return told, ended[0], time.monotonic() - begun_s


@pytest.mark.parametrize(
    ("in_batch", "deterministic"), [(True, False), (True, True), (False, False)], ids=["shared", "in turns", "in a row"]
)
def test_several_images_are_told_as_one_course_whose_times_add_up(
    model: LoadedModel, in_batch: bool, deterministic: bool
) -> None:
    told, finished, took_s = drawn(model, in_batch=in_batch, deterministic=deterministic)
    assert [message.phase for message in told if isinstance(message, PhaseStarted)] == ["encode", "denoise", "decode"]
    assert [message.index for message in told if isinstance(message, ImageDrawn)] == [0, 1, 2]
    parts_s = (finished.encode_s, finished.denoise_s, finished.decode_s)
    assert min(parts_s) > 0
    assert 0.5 * took_s < sum(parts_s) <= took_s
