"""What happens to one request over a real model happens to no other: cancels, faults, too little memory, formats."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.contract.catalog import CatalogEntry
from tests.fidelity.cases import Case
from tests.fidelity.engine import EngineSide
from tests.fidelity.mixed import Guest, Mix, watching
from tests.models import LIBRARY_WARNINGS, tiny_model
from worker.engine.strands import Strand
from worker.pipelines.errors import Refusal
from worker.pipelines.loading import load

pytestmark = LIBRARY_WARNINGS

EngineSides = Callable[[str], EngineSide]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def half_precision(model: str) -> EngineSide:
    """Return a model in float16 whose autoencoder overflows where it encodes, but not in float32."""
    loaded = load(CatalogEntry(id="half", source=str(tiny_model(model)), dtype="float16"))
    loaded.pipeline.vae.register_to_config(force_upcast=False)
    loaded.pipeline.vae.encoder.conv_in.weight.data.mul_(200_000.0)
    return EngineSide(loaded)


@pytest.mark.parametrize("ticks_apart", range(5))
@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_a_picture_encoded_in_float32_leaves_the_autoencoder_to_the_others(model: str, ticks_apart: int) -> None:
    """Some of them are about to decode, some to encode, some denoise when it happens."""
    side = half_precision(model)
    text, image = Case(steps=1, deterministic=True), Case(task="image-to-image", steps=3, deterministic=True)
    expected = {case.task: side.draw(case)[0][0] for case in (text, image)}
    mix = Mix(side)
    for case in (text, image, image, text):
        mix.join(Guest(case))
        for _ in range(ticks_apart):
            mix.tick()
    mix.finish()
    assert [guest.error for guest in mix.guests] == [None] * 4
    assert [guest.degraded for guest in mix.guests] == [(), ("vae-float32",), ("vae-float32",), ()]
    for guest in mix.guests:
        assert np.array_equal(guest.pixels[0], expected[guest.case.task])
    assert side.model.pipeline.vae.dtype == torch.float16


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_input_pictures_of_several_requests_are_encoded_in_one_call(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = EngineSide(load(CatalogEntry(id="x", source=str(tiny_model(model)))))
    vae, widths = side.model.pipeline.vae, list[int]()
    encode = vae.encode

    def counted(pictures: torch.Tensor) -> object:
        widths.append(pictures.shape[0])
        return encode(pictures)

    monkeypatch.setattr(vae, "encode", counted)
    mix = Mix(side)
    for seed in range(3):
        mix.join(Guest(Case(task="image-to-image", steps=3, seed=seed)))
    mix.join(Guest(Case(task="image-to-image", steps=3, seed=3, deterministic=True)))
    mix.finish()
    assert [guest.error for guest in mix.guests] == [None] * 4
    assert sorted(widths) == [1, 3]


CASES = (
    Case(scheduler="euler_a", steps=3),
    Case(scheduler="dpmpp_2m", steps=4, prompt="a blue car", guidance_scale=1.0, seed=2),
    Case(scheduler="heun", steps=2, negative_prompt="a dog", seed=3),
    Case(scheduler="ddim", steps=3, task="image-to-image", seed=4),
    Case(scheduler="lcm", steps=3, task="inpaint", seed=5),
    Case(scheduler="unipc", steps=3, width=72, seed=6),
)
POISON = Case(scheduler="euler", steps=4, prompt="poison", seed=7)


@dataclass(frozen=True)
class Visit:
    """One request and how it goes."""

    case: Case
    joins_at_tick: int
    num_images: int = 1
    cancel_at_step: int | None = None
    stop_at_step: int | None = None


@dataclass(frozen=True)
class Evening:
    """Requests, and what the model does to them."""

    visits: tuple[Visit, ...]
    glitch_at: int | None
    fits_rows: int


EVENINGS = st.builds(
    Evening,
    visits=st.lists(
        st.builds(
            Visit,
            case=st.sampled_from([*CASES, POISON]),
            joins_at_tick=st.integers(0, 8),
            num_images=st.sampled_from([1, 1, 2]),
            cancel_at_step=st.none() | st.integers(1, 3),
            stop_at_step=st.none() | st.integers(1, 3),
        ),
        min_size=2,
        max_size=6,
    ).map(tuple),
    glitch_at=st.none() | st.integers(0, 8),
    fits_rows=st.sampled_from([2, 5, 1000]),
)


@cache
def pixels_alone(side: EngineSide, case: Case, image: int) -> NDArray[np.uint8]:
    return side.draw(case.but(seed=case.seed + image))[0][0]


def play(side: EngineSide, evening: Evening) -> Mix:
    """Return the batch after everybody has ended."""
    mix = Mix(side)
    with watching(side, poison=POISON, after=1, glitch_at=evening.glitch_at, fits_rows=evening.fits_rows):
        for tick in range(9):
            for visit in evening.visits:
                if visit.joins_at_tick == tick:
                    mix.join(
                        Guest(
                            visit.case,
                            num_images=visit.num_images,
                            cancel_at_step=visit.cancel_at_step,
                            stop_at_step=visit.stop_at_step,
                        )
                    )
            mix.tick()
        mix.finish()
    return mix


def check(side: EngineSide, guest: Guest) -> None:
    if isinstance(guest.error, Refusal):
        assert guest.canceled
        assert guest.error.code == "canceled"
    elif guest.case == POISON:
        assert str(guest.error) == "poisoned"
    else:
        assert guest.error is None
        assert sorted(guest.pixels) == list(range(guest.num_images))
        for image, pixels in guest.pixels.items():
            difference = pixels.astype(int) - pixels_alone(side, guest.case, image)
            assert np.abs(difference).max() <= 1
    if guest.canceled and not guest.pixels:
        assert isinstance(guest.error, Refusal)


@settings(max_examples=25, deadline=None)
@given(evening=EVENINGS)
def test_whatever_joins_leaves_and_fails_every_request_ends_with_what_is_its_own(
    engine_side: EngineSides, evening: Evening
) -> None:
    before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    mix = play(engine_side("sd15"), evening)
    assert len(mix.guests) == len(evening.visits)
    for guest in mix.guests:
        assert guest.strand is not None
        assert guest.strand.dead
        check(engine_side("sd15"), guest)
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")) == before


def test_no_tensor_of_requests_that_ended_is_left(engine_side: EngineSides) -> None:
    evening = Evening(
        visits=(
            Visit(CASES[0], 0, num_images=2),
            Visit(CASES[1], 0),
            Visit(CASES[3], 1, stop_at_step=1),
            Visit(CASES[2], 1, num_images=2, cancel_at_step=2),
            Visit(POISON, 1),
            Visit(CASES[5], 2),
        ),
        glitch_at=2,
        fits_rows=5,
    )
    side = engine_side("sd15")
    strands: weakref.WeakSet[Strand] = weakref.WeakSet()
    counts: list[int] = []
    for _ in range(4):
        mix = play(side, evening)
        strands.update(guest.strand for guest in mix.guests if guest.strand)
        del mix
        gc.collect()
        assert len(strands) == 0
        counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    # The first fills what is kept on purpose: samplers that were made.
    assert counts[1] == counts[2] == counts[3]
