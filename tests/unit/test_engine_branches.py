"""Branches of a strand: they take turns, their results come in order, and none outlives an error of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import greenlet
import pytest
import torch

from tests.strands import Desk, say
from worker.engine.strands import Dropped, gather


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_gathered_bodies_take_turns_and_their_results_come_in_order() -> None:
    desk = Desk()
    desk.start(lambda: gather([lambda: say("a", "b", "c"), lambda: say("d"), lambda: "at once"]))
    assert desk.words() == ["a", "d"]
    desk.answer(text="d")
    while desk.waiting:
        desk.answer()
    assert desk.ends == [["c of 2", "d of 2", "at once"]]


def test_gathered_bodies_that_wait_for_nothing_end_at_once() -> None:
    desk = Desk()
    desk.start(lambda: gather([lambda: 1, lambda: 2, lambda: 3]))
    desk.start(lambda: gather([]))
    assert desk.ends == [[1, 2, 3], []]


def test_gathered_bodies_may_gather_themselves() -> None:
    desk = Desk()

    def pair(name: str) -> list[str]:
        return gather([lambda: say(f"{name}1"), lambda: say(f"{name}2")])

    desk.start(lambda: gather([lambda: pair("a"), lambda: pair("b")]))
    assert desk.words() == ["a1", "a2", "b1", "b2"]
    for text in ("b2", "a1", "b1", "a2"):
        desk.answer(text=text)
    assert desk.ends == [[["a1 of 2", "a2 of 2"], ["b1 of 2", "b2 of 2"]]]


def test_a_strand_may_gather_again_and_again() -> None:
    desk = Desk()
    desk.start(lambda: [gather([lambda: say("a"), lambda: say("b")]) for _ in range(3)])
    for _ in range(6):
        desk.answer()
    assert desk.ends == [[["a of 2", "b of 2"]] * 3]


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), GeneratorExit(), greenlet.GreenletExit()]
)
def test_the_first_error_of_gathered_bodies_ends_the_others_and_is_raised(error: BaseException) -> None:
    desk = Desk()
    dropped: list[BaseException] = []

    def body(text: str) -> str:
        try:
            return say(text)
        except Dropped as err:
            dropped.append(err)
            raise

    def ending() -> list[str]:
        try:
            return gather([lambda: body("a"), lambda: body("b"), lambda: body("c")])
        finally:
            assert len(dropped) == 2, "what is left over ends first"

    desk.start(ending)
    desk.answer(text="b", error=error)
    assert desk.ends == [error]
    assert len(dropped) == 2
    assert desk.words() == []


def test_an_error_in_a_body_keeps_those_behind_it_from_beginning() -> None:
    desk = Desk()
    begun: list[str] = []

    def failing() -> None:
        raise ValueError("first")

    desk.start(lambda: gather([failing, lambda: begun.append("second")]))
    assert isinstance(desk.ends[0], ValueError)
    assert begun == []


def test_an_error_deep_down_ends_every_branch_up_to_where_it_is_caught() -> None:
    desk = Desk()
    ended: list[str] = []

    def leaf(name: str) -> str:
        try:
            return say(name)
        finally:
            ended.append(name)

    def guarded(name: str) -> Any:
        try:
            return gather([lambda: leaf(f"{name}1"), lambda: leaf(f"{name}2")])
        except ValueError as err:
            return f"caught {err}"

    desk.start(lambda: gather([lambda: guarded("a"), lambda: guarded("b")]))
    desk.answer(text="a2", error=ValueError("deep"))
    assert sorted(ended) == ["a1", "a2"]
    desk.answer(text="b1")
    desk.answer(text="b2")
    assert desk.ends == [["caught deep", ["b1 of 2", "b2 of 2"]]]


def test_stopping_a_strand_that_gathers_ends_its_branches_too() -> None:
    desk = Desk()
    ended: list[str] = []

    def body(name: str) -> str:
        try:
            return say(name)
        finally:
            ended.append(name)

    strand = desk.start(lambda: gather([lambda: body("a"), lambda: gather([lambda: body("b"), lambda: body("c")])]))
    desk.hub.stop(strand, ValueError("enough"))
    desk.hub.run()
    assert [str(end) for end in desk.ends] == ["enough"]
    assert sorted(ended) == ["a", "b", "c"]
    assert desk.words() == []


def test_a_branch_that_fails_while_its_strand_is_stopped_wakes_it_once() -> None:
    """A cancel is seen by a branch at its next step and by the strand itself, in the same round."""
    desk = Desk()

    def body() -> list[str]:
        try:
            return gather([lambda: say("a"), lambda: say("b")])
        except ValueError:
            return [say("cleaning up"), say("more of it")]

    strand = desk.start(body)
    branch, _ = desk.waiting[0]
    desk.hub.wake(branch, error=ValueError("seen by the branch"))
    desk.hub.stop(strand, ValueError("enough"))
    desk.hub.run()
    assert desk.words() == ["cleaning up"]
    desk.waiting = [(waiter, work) for waiter, work in desk.waiting if waiter.work is work]
    desk.answer()
    desk.answer()
    assert desk.ends == [["cleaning up of 2", "more of it of 2"]]


def test_a_strand_that_outlives_being_stopped_is_rid_of_its_branches() -> None:
    desk = Desk()

    def body() -> list[str]:
        try:
            return gather([lambda: say("a"), lambda: say("b")])
        except ValueError:
            return gather([lambda: say("c"), lambda: say("d")])

    strand = desk.start(body)
    desk.hub.stop(strand, ValueError("enough"))
    desk.hub.run()
    assert desk.words() == ["c", "d"]
    desk.answer(text="c")
    desk.answer(text="d")
    assert desk.ends == [["c of 2", "d of 2"]]
