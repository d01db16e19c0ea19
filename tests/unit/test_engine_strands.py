"""Strands: ordinary code that stops in the middle, meets others, is stopped, and leaves nothing behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import greenlet
import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend

from tests.strands import Desk, Word, say
from worker.engine.strands import Dropped, Strand, gather, pause, share


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_outside_of_any_strand_a_work_is_done_at_once_and_alone() -> None:
    assert share(Word("a")) == "a alone"
    assert gather([lambda: share(Word("a")), lambda: share(Word("b"))]) == ["a alone", "b alone"]
    with pytest.raises(ZeroDivisionError):
        gather([lambda: 1 / 0, lambda: 1.0])


def test_a_strand_waits_in_the_middle_of_a_call_and_goes_on_with_its_result() -> None:
    desk = Desk()
    desk.start(lambda: say("a", "b"))
    desk.start(lambda: say("c"))
    assert desk.words() == ["a", "c"]
    desk.answer()
    assert desk.words() == ["c", "b"]
    desk.answer()
    desk.answer()
    assert desk.ends == ["c of 2", "b of 2"]


def test_a_strand_begins_at_the_next_run_and_not_before() -> None:
    desk = Desk()
    strand = desk.hub.start(lambda: desk.ends.append("begun"))
    assert desk.hub.has_ready
    assert not strand
    assert desk.ends == []
    desk.hub.run()
    assert desk.ends == ["begun"]
    assert strand.dead
    assert not desk.hub.has_ready


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), GeneratorExit(), greenlet.GreenletExit(), Dropped()]
)
def test_a_works_error_of_any_kind_is_raised_where_the_strand_waits(error: BaseException) -> None:
    desk = Desk()
    desk.start(lambda: say("a"))
    desk.answer(error=error)
    assert desk.ends == [error]


def test_a_strand_may_catch_the_error_and_go_on() -> None:
    desk = Desk()

    def twice() -> str:
        try:
            return say("a")
        except ValueError:
            return say("again")

    desk.start(twice)
    desk.answer(error=ValueError("no"))
    desk.answer()
    assert desk.ends == ["again of 2"]


def test_a_parked_strand_is_stopped_with_the_error_given_and_its_work_forgotten() -> None:
    desk = Desk()
    strand = desk.start(lambda: say("a"))
    desk.hub.stop(strand, ValueError("enough"))
    assert desk.words() == []
    desk.hub.run()
    assert [str(end) for end in desk.ends] == ["enough"]
    assert strand.dead


def test_a_strand_whose_result_is_at_hand_is_stopped_all_the_same() -> None:
    desk = Desk()
    strand = desk.start(lambda: say("a", "b"))
    desk.hub.wake(strand, "result")
    desk.hub.stop(strand, ValueError("enough"))
    desk.hub.run()
    assert [str(end) for end in desk.ends] == ["enough"]


def test_a_strand_that_has_not_begun_never_does_when_stopped() -> None:
    desk = Desk()
    strand = desk.hub.start(lambda: desk.ends.append("begun"))
    desk.hub.stop(strand, ValueError("enough"))
    desk.hub.run()
    assert desk.ends == []
    assert strand.dead


def test_stopping_a_strand_that_has_ended_does_nothing() -> None:
    desk = Desk()
    strand = desk.start(lambda: "end")
    desk.hub.stop(strand, ValueError("late"))
    assert not desk.hub.has_ready
    assert desk.ends == ["end"]


def test_stopping_the_running_strand_does_nothing() -> None:
    desk = Desk()

    def body() -> str:
        running = greenlet.getcurrent()
        assert isinstance(running, Strand)
        desk.hub.stop(running, ValueError("myself"))
        return say("a")

    desk.start(body)
    desk.answer()
    assert desk.ends == ["a of 2"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_what_nobody_waits_for_leaves_run_and_the_other_strands_go_on(error: BaseException) -> None:
    desk = Desk()

    def failing() -> None:
        say("a")
        raise error

    desk.hub.start(failing)
    desk.start(lambda: say("b"))
    with pytest.raises(type(error)) as raised:
        desk.answer(text="a")
    assert raised.value is error
    desk.answer(text="b")
    assert desk.ends == ["b of 2"]


SETTINGS = [
    pytest.param(torch.enable_grad, id="gradients"),
    pytest.param(torch.inference_mode, id="inference mode"),
    pytest.param(lambda: torch.autocast("cpu"), id="autocast"),
    pytest.param(lambda: attention_backend("_native_math"), id="attention"),
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_strand_may_not_wait_inside_of_a_setting_that_others_would_inherit(setting: Callable[[], Any]) -> None:
    desk = Desk()

    def body() -> str:
        with setting():
            return say("a")

    desk.start(body)
    assert isinstance(desk.ends[0], RuntimeError)
    assert desk.words() == []
    assert not torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_strand_may_not_gather_inside_of_such_a_setting_either(setting: Callable[[], Any]) -> None:
    desk = Desk()
    begun: list[str] = []

    def body() -> list[None]:
        with setting():
            return gather([lambda: begun.append("a"), lambda: begun.append("b")])

    desk.start(body)
    assert isinstance(desk.ends[0], RuntimeError)
    assert begun == []


def test_settings_between_two_waits_are_a_strands_own_business() -> None:
    desk = Desk()

    def body() -> str:
        with torch.enable_grad(), torch.autocast("cpu"):
            torch.ones(2, requires_grad=True).sum().backward()
        return say("a")

    desk.start(body)
    desk.answer()
    assert desk.ends == ["a of 2"]


class Weight:
    """Something that a body holds, to see it go."""


def test_what_an_ended_strand_held_is_gone_without_a_garbage_collection() -> None:
    desk = Desk()
    gone: list[weakref.ref[Weight]] = []

    def holding(texts: Sequence[str]) -> str:
        weight = Weight()
        gone.append(weakref.ref(weight))
        return say(*texts)

    gc.disable()
    try:
        desk.start(lambda: holding(["a", "b"]))
        desk.start(lambda: gather([lambda: holding(["c"]), lambda: holding(["d"])]))
        assert [ref() is None for ref in gone] == [False] * 3
        while desk.waiting:
            desk.answer()
        desk.ends.clear()
        assert [ref() is None for ref in gone] == [True] * 3
    finally:
        gc.enable()


def test_what_a_failed_or_stopped_strand_held_is_gone_without_a_garbage_collection() -> None:
    """Its latents and the tensors of its calls would else stay in the device's memory until one happens."""
    desk = Desk()
    gone: list[weakref.ref[Weight]] = []

    def holding(text: str) -> str:
        weight = Weight()
        gone.append(weakref.ref(weight))
        return say(text)

    gc.disable()
    try:
        stopped = desk.start(lambda: holding("a"))
        desk.start(lambda: holding("b"))
        desk.start(lambda: gather([lambda: holding("c"), lambda: holding("d")]))
        desk.hub.stop(stopped, ValueError("enough"))
        desk.waiting = [entry for entry in desk.waiting if entry[0] is not stopped]
        del stopped
        desk.answer(text="b", error=ValueError("no"))
        desk.answer(text="c", error=ValueError("no"))
        desk.waiting.clear()
        assert len(desk.ends) == 3
        desk.ends.clear()
        assert [ref() is None for ref in gone] == [True] * 4
    finally:
        gc.enable()


def test_one_that_pauses_goes_on_when_the_next_turn_begins() -> None:
    desk = Desk()
    told: list[str] = []

    def long() -> None:
        for word in ("one", "two"):
            told.append(word)
            pause()

    strand = desk.start(long)
    desk.start(lambda: told.append("other"))
    assert told == ["one", "other"]
    assert desk.hub.has_ready
    desk.hub.run()
    assert told == ["one", "other"]
    desk.hub.end_pauses()
    desk.hub.run()
    assert told == ["one", "other", "two"]
    desk.hub.stop(strand, ValueError("enough"))
    desk.hub.end_pauses()
    desk.hub.run()
    assert isinstance(desk.ends[-1], ValueError)
    assert not desk.hub.has_ready


def test_outside_of_any_strand_a_pause_is_none() -> None:
    pause()


def test_one_that_was_suspended_waits_until_it_is_woken() -> None:
    desk = Desk()

    def wait() -> None:
        strand = greenlet.getcurrent()
        assert isinstance(strand, Strand)
        strand.suspend()

    strand = desk.start(wait)
    desk.hub.end_pauses()
    desk.hub.run()
    assert not desk.hub.has_ready
    assert desk.ends == []
    desk.hub.wake(strand)
    desk.hub.run()
    assert desk.ends == [None]
