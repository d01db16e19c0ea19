"""A request means what it says: seen in pictures drawn through the whole service by the model in the box.

The fidelity suite holds the engine equal to diffusers; these tests know nothing of diffusers. They look at a picture
and ask whether it is what the caller asked for, so they also see a field that was lost, exchanged or misunderstood
anywhere between HTTP and the link. Each says which defect it would see.

Where a model decides, one of several pictures may be wrong, and thresholds lie well off what the model does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.e2e import looks
from tests.e2e.looks import Picture, distance
from tests.e2e.processes import Service
from tests.e2e.studio import Studio
from training.shapes import COLOURS, PLACES, Shape

#: Object and background: every colour once as either.
PAIRS = (
    ("red", "blue"),
    ("green", "white"),
    ("blue", "orange"),
    ("yellow", "black"),
    ("purple", "yellow"),
    ("orange", "purple"),
    ("white", "green"),
    ("black", "red"),
)
GREEN_ON_WHITE = Shape("square", "green", "white", size="big")
RED_ON_BLUE = Shape("circle", "red", "blue")
#: Mean difference, 0 … 255, that a batch of another size makes: rounding, seen after every step.
ROUNDING = 0.5


@pytest.fixture(scope="module")
def studio(service: Service) -> Iterator[Studio]:
    service.agent()
    gateway = service.gateway()
    gateway.wait_for_workers()
    with gateway.client() as client:
        yield Studio(client)


def shows(picture: Picture, shape: Shape) -> bool:
    return (looks.object_colour(picture), looks.background(picture)) == (shape.colour, shape.background)


def resized(picture: Picture, width: int, height: int) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def mean_distance(pictures: list[Picture], other: Picture) -> float:
    return float(np.mean([distance(picture, other) for picture in pictures]))


# ── prompt and seed ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_picture_has_the_colours_that_its_prompt_names(studio: Studio) -> None:
    """Sees a prompt that is lost or given to another job of the queue, and guidance away from the prompt."""
    shapes = [Shape(("circle", "square")[n % 2], *pair) for n, pair in enumerate(PAIRS)]
    pictures = studio.draw_each([shape.caption for shape in shapes])
    wrong = [shape.caption for shape, picture in zip(shapes, pictures, strict=True) if not shows(picture, shape)]
    assert len(wrong) <= 1, wrong


def test_a_shape_is_where_its_prompt_puts_it(studio: Studio) -> None:
    """Sees a picture that is mirrored, turned, or sent column by column."""
    shapes = [Shape("circle", *pair, place) for place in PLACES if place for pair in PAIRS[:2]]
    pictures = studio.draw_each([shape.caption for shape in shapes])
    found = {s.caption: looks.object_centre(picture) for s, picture in zip(shapes, pictures, strict=True)}
    wrong = [
        (shape.caption, found[shape.caption])
        for shape in shapes
        if not np.allclose(found[shape.caption], PLACES[shape.place], atol=0.15)
    ]
    assert len(wrong) <= 1, wrong


def test_every_image_of_a_job_has_a_seed_and_a_picture_of_its_own(studio: Studio) -> None:
    """Sees a seed that is ignored, shared by the images of a job, or counted otherwise than seed + i.

    The empty prompt leaves everything to the seed.
    """
    several = studio.draw("", seed=40, num_images=3)
    assert len(several) == 3
    assert min(distance(one, other) for one, other in itertools.combinations(several, 2)) > 10
    for index in (0, 2):
        (alone,) = studio.draw("", seed=40 + index)
        assert np.abs(alone.astype(np.int16) - several[index]).max() <= 1  # the three shared their calls


def test_every_sampler_of_the_card_draws_what_is_asked(studio: Studio) -> None:
    """Sees a sampler that reads the model's velocity as noise, or scales its latents for another noise schedule.

    Without guidance: with it, samplers of several past steps (LMS, PNDM) want more than these few.
    """
    for sampler in studio.samplers():
        (picture,) = studio.draw(RED_ON_BLUE.caption, scheduler=sampler, guidance_scale=1.0, steps=16)
        assert shows(picture, RED_ON_BLUE), sampler
        assert looks.object_centre(picture) == pytest.approx((0.5, 0.5), abs=0.15), sampler


# ── guidance and negative prompt ──────────────────────────────────────────────────────────────────────────────────────


def test_guidance_draws_nearer_to_the_prompt(studio: Studio) -> None:
    """Sees a guidance scale that is ignored, replaced by the default, or turned round.

    A picture that says something else than the prompt stands against it; guidance decides which of the two wins.
    """
    given, wanted = GREEN_ON_WHITE.draw(), RED_ON_BLUE.draw()

    def mean_error(guidance_scale: float) -> float:
        pictures = studio.redraw(given, RED_ON_BLUE.caption, strength=0.6, guidance_scale=guidance_scale, num_images=3)
        return mean_distance(pictures, wanted)

    unguided, guided = mean_error(1.0), mean_error(6.0)
    assert guided < 0.7 * unguided


def test_guidance_of_one_and_less_is_off(studio: Studio) -> None:
    """Sees a guidance scale of 0 or 0.5 that is applied, which would draw the negative prompt."""
    (plain,) = studio.draw(RED_ON_BLUE.caption, guidance_scale=1.0)
    for guidance_scale in (1.0, 0.5, 0.0):
        (picture,) = studio.draw(
            RED_ON_BLUE.caption, guidance_scale=guidance_scale, negative_prompt=GREEN_ON_WHITE.caption
        )
        assert np.array_equal(picture, plain), guidance_scale


def test_guidance_starts_from_the_prompt_alone(studio: Studio) -> None:
    """Sees prompt and negative prompt exchanged, and a formula that begins at another number than 1.

    n + g (p - n) is p at g = 1, whatever the model: just above 1, where both halves are drawn, next to nothing changes.
    """
    (plain,) = studio.draw(RED_ON_BLUE.caption, guidance_scale=1.0)
    (guided,) = studio.draw(RED_ON_BLUE.caption, guidance_scale=1.0001, negative_prompt=GREEN_ON_WHITE.caption)
    (exchanged,) = studio.draw(GREEN_ON_WHITE.caption, guidance_scale=1.0)
    assert distance(guided, plain) < ROUNDING
    assert distance(exchanged, plain) > 50


def test_guidance_between_a_prompt_and_itself_changes_nothing(studio: Studio) -> None:
    """Sees a negative prompt that is dropped, cut, or encoded otherwise than the prompt.

    n + g (p - n) with n = p is p for every g.
    """
    caption = RED_ON_BLUE.caption
    (plain,) = studio.draw(caption, guidance_scale=1.0)
    for guidance_scale in (2.0, 12.0):
        (picture,) = studio.draw(caption, guidance_scale=guidance_scale, negative_prompt=caption)
        assert distance(picture, plain) < ROUNDING, guidance_scale


def test_a_negative_prompt_drives_its_colour_out(studio: Studio) -> None:
    """Sees a negative prompt that is ignored, or added to the prompt instead of taken away."""

    def background_without(colour: str) -> np.ndarray:
        negative = Shape("circle", "red", colour).caption
        pictures = studio.draw("a circle", negative_prompt=negative, num_images=4)
        return np.mean([np.median(picture[:4].reshape(-1, 3), axis=0) for picture in pictures], axis=0)

    blue, yellow = (np.asarray(COLOURS[word], float) for word in ("blue", "yellow"))
    towards_blue = (blue - yellow) / np.linalg.norm(blue - yellow)
    assert towards_blue @ (background_without("yellow") - background_without("blue")) > 40


# ── image-to-image ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_higher_strength_leaves_less_of_the_input(studio: Studio) -> None:
    """Sees a strength that is ignored, or turned round.

    Without guidance, which would let this prompt win over this input at 0.6 already.
    """
    given = GREEN_ON_WHITE.draw()
    low, middle, high = (
        studio.redraw(given, RED_ON_BLUE.caption, strength=strength, guidance_scale=1.0, num_images=3)
        for strength in (0.3, 0.6, 0.9)
    )
    assert mean_distance(low, given) + 10 < mean_distance(middle, given) < mean_distance(high, given) - 3
    assert [looks.background(picture) for picture in (*low, *high)] == ["white"] * 3 + ["blue"] * 3


def test_full_strength_forgets_the_input(studio: Studio) -> None:
    """Sees noise that is too weak for the first timestep."""
    pictures = studio.redraw(GREEN_ON_WHITE.draw(), RED_ON_BLUE.caption, strength=1.0, num_images=3)
    assert [shows(picture, RED_ON_BLUE) for picture in pictures].count(True) >= 2


def test_an_input_of_any_size_is_brought_to_the_size_asked_for(studio: Studio) -> None:
    """Sees an input that is cropped, turned, or left at its own size; latents of another factor than the model's 4."""
    given = np.zeros((50, 100, 3), np.uint8)
    given[:, :30], given[:, 30:] = COLOURS["red"], COLOURS["blue"]
    (asked,) = studio.redraw(given, "", strength=0.1, width=72, height=88)
    (default,) = studio.redraw(given, "", strength=0.1)
    for picture, wanted in ((asked, resized(given, 72, 88)), (default, resized(given, 64, 64))):
        assert picture.shape == wanted.shape
        assert distance(picture, wanted) < 12


# ── inpainting ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("width", "height"), [(64, 64), (72, 88)])
def test_white_is_drawn_anew_and_black_is_kept(studio: Studio, width: int, height: int) -> None:
    """Sees a mask that is turned round, mirrored, transposed, or brought to latents of another factor than 4.

    With a black mask the picture is the input after encoding and decoding. What is kept may differ from the input by
    that much, and a little for what the decoder sees of its new surroundings.
    """
    given = resized(Shape("square", "green", "white", "in the bottom left").draw(), width, height)
    below, left = height * 9 // 64 * 4, width * 7 // 64 * 4
    mask, kept = np.zeros((height, width), np.uint8), np.ones((height, width), bool)
    mask[:below, left:] = 255
    kept[: below + 8, left - 8 :] = False
    prompt = Shape("circle", "red", "white", "in the top right").caption
    asked = {"width": width, "height": height, "strength": 1.0, "guidance_scale": 2.0}
    (decoded,) = studio.repaint(given, 0 * mask, prompt, **asked)
    (picture,) = studio.repaint(given, mask, prompt, **asked)
    error = distance(decoded[kept], given[kept])
    assert error < 6
    assert distance(picture[kept], given[kept]) < error + 2
    assert looks.share_of(picture[mask > 0], "red") > 0.15
    assert looks.share_of(picture[mask == 0], "red") < 0.02


def test_a_white_mask_leaves_nothing_of_the_input(studio: Studio) -> None:
    """Sees the input mixed in where everything is to be drawn anew."""
    white = np.full((64, 64), 255, np.uint8)
    pictures = studio.repaint(GREEN_ON_WHITE.draw(), white, RED_ON_BLUE.caption, strength=1.0, num_images=3)
    assert [shows(picture, RED_ON_BLUE) for picture in pictures].count(True) >= 2


# ── sizes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("width", "height"), [(72, 88), (104, 64)])
def test_any_multiple_of_eight_is_drawn_whole(studio: Studio, width: int, height: int) -> None:
    """Sees latents of another factor than the model's 4: a picture of half or twice the size, or one that is padded."""
    (picture,) = studio.draw(RED_ON_BLUE.caption, width=width, height=height)
    assert picture.shape == (height, width, 3)
    edges = picture[:4], picture[-4:], picture[:, :4], picture[:, -4:]
    assert [looks.share_of(edge, "blue") > 0.8 for edge in edges] == [True] * 4
    assert looks.share_of(picture, "red") > 0.03
