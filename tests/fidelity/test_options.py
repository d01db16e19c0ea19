"""Every option of speed keeps its promises: exact requests are diffusers' to the bit, shared ones up to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from service.contract.catalog import CatalogEntry, EngineOptions
from tests.fidelity.cases import Case
from tests.fidelity.engine import EngineSide, assert_equal
from tests.fidelity.mixed import Guest, Mix
from tests.fidelity.reference import Reference
from tests.models import COMPILER_WARNINGS, LIBRARY_WARNINGS, tiny_model
from tests.recorder import Rerun
from worker.engine.compiled import Compiled
from worker.engine.speed import Speed
from worker.pipelines.loading import load

pytestmark = [*LIBRARY_WARNINGS, COMPILER_WARNINGS]

#: Of the pixel range, as of a batch.
ROUNDING = 5e-5

CASES = [
    Case(deterministic=True, scheduler="euler"),
    Case(deterministic=True, scheduler="dpmpp_2m", guidance_scale=1.0, seed=5),
    Case(deterministic=True, task="image-to-image", negative_prompt="blurry"),
]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def side_of(name: str = "sd15", **options: object) -> EngineSide:
    entry = CatalogEntry(id="tiny", source=str(tiny_model(name)), options=EngineOptions.model_validate(options))
    return EngineSide(load(entry))


def recording_side(name: str = "sd15") -> tuple[EngineSide, Rerun]:
    """Return a side whose calls are recorded, though this device has no graphs."""
    side, recorder = side_of(name), Rerun()
    side.model.kept["speed"] = Speed(side.model, recorder=recorder)
    return side, recorder


def together(side: EngineSide, cases: list[Case]) -> list[Guest]:
    mix = Mix(side)
    guests = [mix.join(Guest(case.but(deterministic=False), num_images=2)) for case in cases]
    guests += [mix.join(Guest(cases[0]))]
    mix.finish()
    assert [guest.error for guest in guests] == [None] * len(guests)
    return guests


def assert_promises_kept(side: EngineSide, reference: Reference, cases: list[Case] = CASES) -> None:
    """Shared requests agree up to rounding; the exact one beside them, and each alone, to the bit."""
    for guest in together(side, cases):
        for index, picture in guest.pictures.items():
            expected = reference.pictures([guest.case.but(seed=guest.case.seed + index)])
            if guest.case.deterministic:
                assert torch.equal(picture, expected)
            else:
                assert (picture - expected).abs().max() <= ROUNDING
    for case in cases:
        assert_equal(side, reference, case)


FLOW_CASES = [
    Case(deterministic=True, scheduler="flow_euler", guidance_scale=3.5, steps=6),
    Case(deterministic=True, scheduler="flow_euler", guidance_scale=2.0, seed=5, steps=5),
]


@pytest.mark.parametrize(
    ("name", "cases"), [("sd15", CASES), ("sdxl", CASES), ("sd3", FLOW_CASES), ("flux", FLOW_CASES)]
)
def test_recorded_calls_keep_what_is_promised(name: str, cases: list[Case]) -> None:
    side, recorder = recording_side(name)
    assert_promises_kept(side, Reference(tiny_model(name)), cases)
    assert recorder.repeated > 0


class Counted(Compiled):
    """Counts its calls."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().__call__(*args, **kwargs)


def test_compiled_calls_keep_what_is_promised() -> None:
    """Traced and padded as for any compiler; writing kernels for it all would take minutes (`test_engine_compiled`)."""
    torch.compiler.reset()
    side = side_of(compile=True)
    speed = Speed(side.model, backend="eager")
    speed.decoder = decoder = Counted(side.model.pipeline.vae.decode, "decoder", backend="eager")
    side.model.kept["speed"] = speed
    assert_promises_kept(side, Reference(tiny_model("sd15")))
    assert counters["stats"]["unique_graphs"] > 0
    assert decoder.calls > 0
    decoder.calls = 0
    side.draw(CASES[0])
    assert decoder.calls == 0
    torch.compiler.reset()


def test_few_pictures_a_decode_keep_what_is_promised() -> None:
    side = side_of(vae_batch=2)
    widths: list[int] = []
    decoder = side.model.pipeline.vae.decoder
    decoder.register_forward_pre_hook(lambda _, args: widths.append(len(args[0])))
    assert_promises_kept(side, Reference(tiny_model("sd15")))
    assert set(widths) == {1, 2}


def test_channels_last_is_diffusers_with_the_same_arrangement_to_the_bit() -> None:
    assert_promises_kept(side_of(channels_last=True), Reference(tiny_model("sd15"), channels_last=True))
