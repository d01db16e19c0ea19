"""The engine draws what diffusers' own tests publish, alone and in mixed company: not only what diffusers draws here.

Only figures of text-to-image, image-to-image and inpainting that a request can ask for; not those of custom timesteps,
of a generator shared by two images, of a scheduler swapped past its pipeline's corrections, or of AutoencoderTiny.
Those of SD 3 are of latents with 4 channels, which no SD 3 has, and of a T5 tokenizer that lies on the hub; FLUX's
tests publish none for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from service.contract.catalog import CatalogEntry
from tests.fidelity.engine import EngineSide
from tests.fidelity.mixed import Guest, Mix, Watch, watching
from tests.fidelity.published import Figure, PublishedCase, build, figures
from tests.fidelity.reference import Reference
from tests.models import LIBRARY_WARNINGS
from worker.pipelines.loading import load

pytestmark = [
    *LIBRARY_WARNINGS,
    # Said of the schedulers that diffusers' tests put in.
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]

FIGURES = figures()
#: Half of a figure's last digit, and as much for other sums: those of its machine, or the engine's in company.
CLOSE = 1e-4

#: What the neighbours of a figure's request have of their own, besides a step more each.
NEIGHBOURS = (
    {"prompt": "a french squirrel", "scheduler": "dpmpp_2m", "guidance_scale": 1.0, "seed": 71},
    {"prompt": "fries", "negative_prompt": "a painting", "scheduler": "euler_a", "seed": 72},
)

Folders = Callable[[str], tuple[EngineSide, Reference]]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def published_model(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Give a model of diffusers' tests as the engine holds it and as a user of diffusers loads it."""
    folder = tmp_path_factory.mktemp("published")

    @cache
    def make(name: str) -> tuple[EngineSide, Reference]:
        path = build(name, folder)
        return EngineSide(load(CatalogEntry(id=name.replace("_", "-"), source=str(path)))), Reference(path)

    return make


def guest_of(case: PublishedCase) -> Guest:
    return Guest(case, floats=case.floats() if case.input == "floats" else None)


def alone(side: EngineSide, case: PublishedCase) -> torch.Tensor:
    """Return the picture, (1, 3, height, width) in [0, 1], of a request that had the batch for itself."""
    mix = Mix(side)
    guest = mix.join(guest_of(case))
    mix.finish()
    assert guest.error is None
    return guest.pictures[0]


def assert_published(picture: torch.Tensor, figure: Figure) -> None:
    blue = picture[0, -1, -3:, -3:]
    assert (blue - figure.corner).abs().max() <= (figure.within or CLOSE), f"{blue} is not {figure.corner}"


@pytest.mark.parametrize("figure", FIGURES, ids=str)
def test_a_request_of_diffusers_tests_draws_what_they_publish(published_model: Folders, figure: Figure) -> None:
    side, _ = published_model(figure.model)
    assert_published(alone(side, figure.case), figure)


@dataclass(frozen=True)
class Company:
    """All requests of the figures of one model in one batch, each among neighbours."""

    guests: list[Guest]
    watch: Watch


@cache
def company(side: EngineSide, model: str) -> Company:
    mix = Mix(side)
    joining = [guest_of(figure.case) for figure in FIGURES if figure.model == model]
    guests = list(joining)
    for guest in guests:
        joining += [guest_of(guest.case.but(**own, steps=guest.case.steps + n)) for n, own in enumerate(NEIGHBOURS, 1)]
    # Neighbours first, and one a tick: they are in the middle of their steps when a figure's request begins.
    with watching(side) as watch:
        for guest in reversed(joining):
            mix.join(guest)
            mix.tick()
        mix.finish()
    return Company(guests, watch)


@pytest.mark.parametrize("figure", FIGURES, ids=str)
def test_it_does_so_in_mixed_company(published_model: Folders, figure: Figure) -> None:
    side, _ = published_model(figure.model)
    (guest,) = (guest for guest in company(side, figure.model).guests if guest.case == figure.case)
    assert guest.error is None
    assert_published(guest.pictures[0], figure)


@pytest.mark.parametrize("model", sorted({figure.model for figure in FIGURES}))
def test_that_company_really_shared_its_calls(published_model: Folders, model: str) -> None:
    side, _ = published_model(model)
    widths = company(side, model).watch.widths
    # Guidance takes a second row, but for a denoiser that has it as an input.
    most_alone = 2 if side.model.pipeline.unet.config.time_cond_proj_dim is None else 1
    assert sum(rows for rows in widths if rows > most_alone) > sum(widths) / 2


@pytest.mark.parametrize("figure", [f for f in FIGURES if f.within], ids=str)
def test_where_the_last_digits_differ_they_differ_in_plain_diffusers_too(
    published_model: Folders, figure: Figure
) -> None:
    side, plain = published_model(figure.model)
    assert torch.equal(alone(side, figure.case), plain.pictures([figure.case]))
