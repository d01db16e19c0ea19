"""The rulers: true drawings measure as true, others as what they are, and a little softness changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.training import patterns
from training import measures
from training.captions import BACKGROUNDS
from training.drawings import STYLES
from training.latents import held_out_shapes
from training.measures import References
from training.pictures import on_background
from training.shapes import COLOURS, Shape
from training.subjects import SUBJECTS

SOME = held_out_shapes()[::9]
OPTIONS = {**measures.COMPARED, "colour": tuple(COLOURS), "background": tuple(COLOURS)}


@pytest.fixture(scope="module")
def rgba() -> np.ndarray:
    return patterns.drawings().of_subjects().rgba


@pytest.fixture(scope="module")
def references(rgba: np.ndarray) -> References:
    return References.of(rgba, BACKGROUNDS["white"])


def other(shape: Shape, word: str) -> str:
    """Another word than the shape's own, which leaves its two colours different."""
    taken = {getattr(shape, word)} | ({shape.colour, shape.background} if word in {"colour", "background"} else set())
    return next(option for option in OPTIONS[word] if option not in taken)


@pytest.mark.parametrize("by_thumbnail", [False, True])
def test_drawings_of_shapes_are_seen_as_what_they_are(by_thumbnail: bool) -> None:
    assert [
        shape for shape in SOME if measures.seen_shape(shape.draw(), shape, by_thumbnail=by_thumbnail) != shape
    ] == []


def test_blurred_drawings_of_shapes_are_still_seen_as_what_they_are() -> None:
    blurred = ((patterns.blurred(shape.draw()), shape) for shape in SOME)
    assert [shape for picture, shape in blurred if measures.seen_shape(picture, shape) != shape] == []


@pytest.mark.parametrize("word", OPTIONS)
def test_shape_with_one_word_changed_is_seen_as_changed(word: str) -> None:
    for asked in SOME:
        drawn = asked.but(**{word: other(asked, word)})
        assert getattr(measures.seen_shape(drawn.draw(), asked), word) == getattr(drawn, word)


def test_wrong_colour_does_not_hide_that_the_place_is_right() -> None:
    asked = Shape("square", "red", "white", "in the top left")
    seen = measures.seen_shape(asked.but(colour="purple").draw(), asked)
    assert seen == asked.but(colour="purple")


def test_empty_background_is_not_taken_for_the_object() -> None:
    asked = Shape("circle", "red", "green")
    empty = np.full((64, 64, 3), COLOURS["green"], np.uint8)
    seen = measures.seen_shape(empty, asked)
    assert (seen.colour, seen.background) == ("green", "green")


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_every_named_background_is_nearest_to_itself_even_a_little_off(name: str) -> None:
    colour = np.clip(np.array(BACKGROUNDS[name], float) + np.array([6, -6, 6]), 0, 255)
    assert measures.nearest_colour(colour, BACKGROUNDS) == name


def test_background_is_read_from_the_corners_alone() -> None:
    picture = np.full((64, 64, 3), 255, np.uint8)
    for y in (slice(0, 3), slice(61, 64)):
        for x in (slice(0, 3), slice(61, 64)):
            picture[y, x] = (10, 20, 30)
    assert measures.background_colour(picture).tolist() == [10, 20, 30]


def test_each_drawing_is_nearest_to_its_own_subject_and_style(rgba: np.ndarray, references: References) -> None:
    for subject in range(0, len(SUBJECTS), 20):
        for style in range(len(STYLES)):
            for soften in (np.asarray, patterns.blurred):
                picture = soften(on_background(rgba[subject, style], BACKGROUNDS["white"]))
                assert references.ranking(picture)[0] == subject
                assert references.nearest_style(picture, subject) == style


def test_ranking_names_every_subject_once_and_the_near_before_the_far() -> None:
    values = np.array([0, 40, 10, 200], np.uint8)
    thumbs = np.stack([np.full((1, 768), value, np.float32) for value in values])
    ranking = References(thumbs).ranking(np.full((64, 64, 3), 12, np.uint8))
    assert ranking.tolist() == [2, 0, 1, 3]


def test_subject_is_as_near_as_its_nearest_style() -> None:
    thumbs = np.array([[90, 90, 90], [0, 0, 50]], np.float32)[..., None].repeat(768, -1)
    references = References(thumbs)
    picture = np.full((64, 64, 3), 52, np.uint8)
    assert references.ranking(picture).tolist() == [1, 0]
    assert references.nearest_style(picture, 1) == 2


def test_logits_are_ranked_from_the_highest() -> None:
    assert measures.ranking_of(np.array([[0.1, 3, -2], [5, 6, 7]], np.float32)).tolist() == [[1, 0, 2], [2, 1, 0]]


def test_confusions_count_what_each_word_was_seen_as() -> None:
    pairs = [("a", "b"), ("a", "a"), ("b", "b"), ("a", "b")]
    assert measures.confusions(pairs) == {"a": {"b": 2, "a": 1}, "b": {"b": 1}}


def test_share_of_nothing_is_none() -> None:
    assert measures.share([True, False, True, True]) == 0.75
    assert measures.share([]) is None
