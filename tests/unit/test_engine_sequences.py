"""Whatever joins, leaves, is canceled and fails, in whatever order: every request ends, each with what is its own."""

from __future__ import annotations

import functools
import gc
import random
import tracemalloc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import greenlet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sums import Addition, Device, Table, batch_of, engine_thread
from worker.engine.strands import Strand, gather, share


@pytest.fixture(autouse=True)
def _engine_thread() -> Iterator[None]:
    with engine_thread():
        yield


class Canceled(Exception):
    """The request was not wanted any more."""


@dataclass(frozen=True)
class Plan:
    """One request, and what is to become of it."""

    joins_at_tick: int
    key: str
    rows: int = 1
    steps: int = 3
    images: int = 1
    #: The step at which its image of that number fails, in whatever company.
    fails_at_step: int | None = None
    failing_image: int = 0
    #: Canceled so many ticks after it joined.
    canceled_after: int | None = None
    #: Works with gradients between its steps, and puts them off before it waits; careless, it forgets to.
    differentiates: bool = False
    careless: bool = False


@dataclass(frozen=True)
class World:
    """A device and its requests."""

    plans: tuple[Plan, ...]
    fits_rows: int = 1000
    glitches: frozenset[int] = frozenset()
    squeezes: frozenset[int] = frozenset()
    cautious: bool = False

    @property
    def most_ticks(self) -> int:
        """As many as are needed when every step is a tick and everything that can be in vain is."""
        works = sum(plan.steps * plan.images for plan in self.plans)
        in_vain = 7 * len({plan.key for plan in self.plans}) + len(self.squeezes)
        queued = sum(plan.images for plan in self.plans)
        return max((plan.joins_at_tick for plan in self.plans), default=0) + works + in_vain + queued + 2


class Play:
    """Lets a world happen."""

    def __init__(self, world: World, table: Table | None = None) -> None:
        self.world = world
        self.device = Device(fits_rows=world.fits_rows, glitches=world.glitches, squeezes=world.squeezes)
        self.table = table or Table(self.device, batch_of(cautious=world.cautious))
        self.strands: dict[int, Strand] = {}
        #: Requests whose cancel came in time.
        self.canceled: set[int] = set()

    def run(self) -> None:
        for tick in range(self.world.most_ticks):
            for number, plan in enumerate(self.world.plans):
                if plan.joins_at_tick == tick:
                    self.strands[number] = self.table.join(str(number), functools.partial(self._body, number, plan))
                if plan.canceled_after is not None and plan.joins_at_tick + plan.canceled_after == tick:
                    self._cancel(number)
            self.table.batch.tick()
        assert not self.table.batch.busy

    def _cancel(self, number: int) -> None:
        """As the engine's loop does it: one that has not begun sees it by itself."""
        if str(number) not in self.table.ends:
            self.canceled.add(number)
            if self.strands[number]:
                self.table.batch.hub.stop(self.strands[number], Canceled(str(number)))

    def _body(self, number: int, plan: Plan) -> list[int]:
        return gather([functools.partial(self._image, number, plan, image) for image in range(plan.images)])

    def _image(self, number: int, plan: Plan, image: int) -> int:
        value = first_value(number, image)
        for step in range(plan.steps):
            if number in self.canceled:
                raise Canceled(str(number))
            fails = step == plan.fails_at_step and image == plan.failing_image
            work = Addition(self.device, str(number), value, plan.key, plan.rows, fails)
            with torch.set_grad_enabled(plan.differentiates):
                if plan.careless:
                    value = share(work)
            if not plan.careless:
                value = share(work)
        return value

    def check(self) -> None:
        """Every request ended once, with its own numbers or its own error."""
        assert set(self.table.ends) == {str(number) for number in range(len(self.world.plans))}
        assert all(strand.dead for strand in self.strands.values())
        for number, plan in enumerate(self.world.plans):
            end = self.table.ends[str(number)]
            if number in self.canceled:
                assert isinstance(end, Canceled)
                assert str(end) == str(number)
            elif plan.careless and plan.differentiates:
                assert isinstance(end, RuntimeError)
                assert "may not wait" in str(end)
            elif plan.rows > self.world.fits_rows:
                assert isinstance(end, MemoryError)
            elif plan.fails_at_step is not None and plan.fails_at_step < plan.steps:
                assert isinstance(end, ValueError)
                assert str(end) == str(number)
            else:
                assert end == [first_value(number, image) + plan.steps for image in range(plan.images)]


def first_value(number: int, image: int) -> int:
    return 10_000 * number + 100 * image


PLANS = st.builds(
    Plan,
    joins_at_tick=st.integers(0, 12),
    key=st.sampled_from("xyz"),
    rows=st.integers(1, 2),
    steps=st.integers(1, 5),
    images=st.integers(1, 3),
    fails_at_step=st.none() | st.integers(0, 5),
    canceled_after=st.none() | st.integers(0, 12),
    differentiates=st.booleans(),
    careless=st.sampled_from([False, False, False, True]),
)
WORLDS = st.builds(
    World,
    plans=st.lists(PLANS, min_size=1, max_size=8).map(tuple),
    fits_rows=st.sampled_from([1, 2, 3, 4, 7, 1000]),
    glitches=st.frozensets(st.integers(0, 20), max_size=4),
    squeezes=st.frozensets(st.integers(0, 20), max_size=4),
    cautious=st.booleans(),
)


def thread_state() -> tuple[object, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.random.get_rng_state().sum().item(),
        greenlet.getcurrent(),
    )


@settings(max_examples=1000, deadline=None)
@given(world=WORLDS)
def test_every_request_ends_with_its_own_result_or_its_own_error(world: World) -> None:
    before = thread_state()
    play = Play(world)
    play.run()
    play.check()
    assert thread_state() == before
    assert len(play.table.batch._rounds) == 0
    assert play.table.batch._rounds._queues == {}


def worlds(seed: int, count: int) -> Iterator[World]:
    """Yield worlds of random plans; every sixth request fails, every fourth is canceled, many share no memory."""
    draw = random.Random(seed)
    for _ in range(count):
        plans = tuple(
            Plan(
                joins_at_tick=draw.randrange(8),
                key=draw.choice("xy"),
                rows=draw.choice((1, 2)),
                steps=draw.randrange(1, 5),
                images=draw.choice((1, 1, 2)),
                fails_at_step=draw.randrange(4) if draw.random() < 1 / 6 else None,
                canceled_after=draw.randrange(8) if draw.random() < 1 / 4 else None,
            )
            for _ in range(6)
        )
        yield World(plans, fits_rows=draw.choice((2, 5, 1000)), glitches=frozenset({draw.randrange(9)}))


def test_nothing_of_a_thousand_requests_is_left_in_a_batch_that_goes_on() -> None:
    """One batch for all, as in an engine that runs for months."""
    table = Table()
    left: weakref.WeakSet[Strand] = weakref.WeakSet()
    sizes: list[int] = []
    tracemalloc.start()
    try:
        for part in range(4):
            for world in worlds(part, 45):
                play = Play(world, table)
                play.run()
                play.check()
                left.update(play.strands.values())
                table.ends.clear()
            del play
            gc.collect()
            assert len(left) == 0
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # The first part fills what is kept: costs and limits of the keys, compiled patterns of the log.
    assert max(sizes[2:]) - sizes[1] < 20_000
