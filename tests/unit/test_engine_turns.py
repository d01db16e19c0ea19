"""Who wants what one may have at a time gets it in order; who is stopped meanwhile keeps nobody waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.strands import Desk, say
from worker.engine.strands import Strand
from worker.engine.turns import one_at_a_time


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def visit(desk: Desk, name: str, key: str = "k") -> Strand:
    """Begin a strand that says its name in its turn, and once more."""

    def body() -> str:
        with one_at_a_time(key):
            say(name)
            return say(f"{name} again")

    return desk.start(body)


def finish(desk: Desk) -> list[str]:
    """Answer all; return what was said, in order."""
    said: list[str] = []
    while words := desk.words():
        said.append(words[0])
        desk.answer(text=words[0])
    assert desk.hub.lines == {}
    return said


def test_outside_of_any_strand_there_is_nobody_to_wait_for() -> None:
    with one_at_a_time("k"), one_at_a_time("k"):
        pass


def test_turns_are_taken_in_order_and_none_overlaps() -> None:
    desk = Desk()
    for name in "abc":
        visit(desk, name)
    assert desk.words() == ["a"]
    assert finish(desk) == ["a", "a again", "b", "b again", "c", "c again"]


def test_other_things_are_had_at_the_same_time() -> None:
    desk = Desk()
    visit(desk, "a")
    visit(desk, "b", "other")
    assert desk.words() == ["a", "b"]
    finish(desk)


def test_who_fails_in_its_turn_lets_the_next_begin() -> None:
    desk = Desk()
    for name in "ab":
        visit(desk, name)
    desk.answer(error=ValueError("no"))
    assert finish(desk) == ["b", "b again"]
    assert isinstance(desk.ends[0], ValueError)


@pytest.mark.parametrize(
    ("stopped", "said"), [("a", ["b", "b again", "c", "c again"]), ("b", ["a", "a again", "c", "c again"])]
)
def test_who_is_stopped_has_left(stopped: str, said: list[str]) -> None:
    desk = Desk()
    strands = {name: visit(desk, name) for name in "abc"}
    desk.hub.stop(strands[stopped], ValueError("stopped"))
    desk.hub.run()
    assert finish(desk) == said
    assert [str(end) for end in desk.ends if isinstance(end, ValueError)] == ["stopped"]


def test_who_is_stopped_when_its_turn_has_just_come_passes_it_on() -> None:
    desk = Desk()
    strands = {name: visit(desk, name) for name in "abc"}
    desk.answer()
    strand, work = desk.waiting.pop()
    assert strand is strands["a"]
    desk.hub.wake(strand, work)
    # Behind a's last words in the hub's queue, so that b is woken by a, and then stopped before it goes on.
    desk.hub.start(lambda: desk.hub.stop(strands["b"], ValueError("stopped")))
    desk.hub.run()
    assert finish(desk) == ["c", "c again"]
    assert [str(end) for end in desk.ends if isinstance(end, ValueError)] == ["stopped"]


def test_all_are_stopped_at_once() -> None:
    desk = Desk()
    for strand in [visit(desk, name) for name in "abc"]:
        desk.hub.stop(strand, ValueError("stopped"))
    desk.hub.run()
    assert [str(end) for end in desk.ends] == ["stopped"] * 3
    assert finish(desk) == []
