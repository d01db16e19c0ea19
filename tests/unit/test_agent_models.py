"""What an agent makes of its engine's words about models."""

from __future__ import annotations

import copy

import pytest

from service.contract.engine import ModelCold, ModelFailed, ModelLoaded, ModelLoading
from tests.gateway import SHAPES
from worker.agent.models import Models, ModelWord


def loading(model: str) -> ModelWord:
    return ModelLoading(model=model)


def loaded(model: str) -> ModelWord:
    return ModelLoaded(card=SHAPES.model_copy(update={"id": model}), seconds=1.0)


def cold(model: str) -> ModelWord:
    return ModelCold(card=SHAPES.model_copy(update={"id": model}))


def failed(model: str) -> ModelWord:
    return ModelFailed(model=model, message="no")


def after(*words: ModelWord) -> Models:
    models = Models("ab")
    for word in words:
        models.hear(word)
    return models


@pytest.mark.parametrize(
    ("words", "claimable", "cold_ones"),
    [
        ((), "", ""),
        ((loading("a"),), "", ""),
        ((loading("a"), loaded("a")), "a", ""),
        # One that was never held may fail yet: nothing is claimed for it, and what is warm is drawn meanwhile.
        ((loading("a"), loaded("a"), loading("b")), "a", ""),
        ((loading("a"), loaded("a"), loading("b"), cold("b")), "ab", "b"),
        # Wanted: until it is there nothing else that is cold is claimed.
        ((loaded("a"), cold("b"), cold("a"), loading("a")), "", "b"),
        ((loaded("a"), cold("b"), loading("b"), cold("a"), loaded("b")), "ba", "a"),
        ((loaded("a"), loading("b"), failed("b")), "a", ""),
        # One that was drawn with before is tried again, but not at once.
        ((loaded("a"), cold("b"), loading("b"), failed("b")), "a", "b"),
        ((loaded("a"), cold("b"), loading("b"), failed("b"), loading("b"), loaded("b"), cold("b")), "ab", "b"),
    ],
)
def test_what_may_be_claimed_for(words: tuple[ModelWord, ...], claimable: str, cold_ones: str) -> None:
    models = after(*words)
    assert "".join(models.claimable) == claimable
    assert "".join(models.cold) == cold_ones


def test_a_model_that_could_not_be_read_again_is_claimed_for_after_a_while() -> None:
    now_s = 100.0
    models = Models("ab", clock=lambda: now_s)
    for word in (loaded("a"), cold("b"), loading("b"), failed("b")):
        models.hear(word)
    assert models.claimable == ("a",)
    now_s += 29
    assert models.claimable == ("a",)
    now_s += 1
    assert copy.deepcopy(models).claimable == ("a", "b")


def test_models_are_settled_when_each_is_known_to_be_of_use_or_of_none() -> None:
    assert not after(loading("a"), loaded("a")).settled
    assert not after(loading("a"), loaded("a"), loading("b")).settled
    assert after(loaded("a"), cold("b")).settled
    models = after(loaded("a"), failed("b"))
    assert models.settled
    assert models.failures == {"b": "no"}
    assert [known.id for known in models.cards] == ["a"]
