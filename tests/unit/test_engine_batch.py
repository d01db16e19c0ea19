"""The continuous batch: who shares which call, and that what happens to one request happens to no other."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch

from tests.sums import Addition, Device, DeviceLost, Table, batch_of, count, engine_thread
from worker.engine.batch import batch_for
from worker.engine.meter import Reading
from worker.engine.strands import gather, share


@pytest.fixture(autouse=True)
def _engine_thread() -> Iterator[None]:
    with engine_thread():
        yield


def test_requests_join_and_leave_at_any_tick() -> None:
    table = Table()
    table.join("a", steps=6)
    table.batch.tick()
    table.batch.tick()
    table.join("b", steps=2, start=100)
    table.batch.tick()
    table.join("c", steps=3, start=200)
    table.finish()
    assert ["".join(call) for call in table.device.calls] == ["a", "a", "ab", "abc", "ac", "ac"]
    assert table.ends == {"a": [6], "b": [102], "c": [203]}


def test_images_of_a_request_share_calls_as_requests_do() -> None:
    table = Table()
    table.join("a", steps=3, images=3)
    table.join("b", steps=3)
    table.finish()
    assert [sorted(call) for call in table.device.calls] == [["a", "a", "a", "b"]] * 3
    assert table.ends == {"a": [3, 4, 5], "b": [3]}


def test_different_keys_never_share_a_call_and_all_get_on() -> None:
    table = Table()
    for n in range(6):
        table.join(f"{n}", steps=4, start=10 * n, key="even" if n % 2 == 0 else "odd")
    table.finish()
    assert {len({int(name) % 2 for name in call}) for call in table.device.calls} == {1}
    assert len(table.device.calls) == 8
    assert table.ends == {f"{n}": [10 * n + 4] for n in range(6)}


def test_calls_and_their_rows_are_counted() -> None:
    table = Table()
    table.join("a", steps=2, rows=2)
    table.join("b", steps=3)
    table.finish()
    assert (table.batch.calls, table.batch.rows) == (3, 7)


def test_nothing_is_done_when_nothing_is_to_do() -> None:
    table = Table()
    assert not table.batch.busy
    table.batch.tick()
    table.join("a", steps=1)
    assert table.batch.busy
    table.finish()
    assert not table.batch.busy
    assert len(table.device.calls) == 1


def test_who_fails_alone_too_fails_by_itself() -> None:
    table = Table()
    for name in "abc":
        table.join(name, steps=3, fails_at=1 if name == "b" else None)
    table.finish()
    assert table.device.calls == [("a", "b", "c"), ("a", "b", "c"), ("a",), ("b",), ("c",), ("a", "c")]
    assert isinstance(table.ends["b"], ValueError)
    assert str(table.ends["b"]) == "b"
    assert table.ends["a"] == table.ends["c"] == [3]


def test_several_at_fault_each_get_their_own_error() -> None:
    table = Table()
    for name in "abcd":
        table.join(name, steps=3, fails_at=1 if name in "bd" else None)
    table.finish()
    assert [str(table.ends[name]) for name in "bd"] == ["b", "d"]
    assert table.ends["a"] == table.ends["c"] == [3]


def test_an_image_at_fault_ends_its_request_and_no_other() -> None:
    table = Table()
    steps = (None, 2, None)
    table.join("a", lambda: gather([lambda at=at: count(table.device, "a", steps=4, fails_at=at) for at in steps]))
    table.join("b", steps=5)
    table.finish()
    assert str(table.ends["a"]) == "a"
    assert table.ends["b"] == [5]
    assert table.device.calls[-2:] == [("b",), ("b",)]


def test_a_call_that_fails_though_nobody_is_at_fault_fails_nobody() -> None:
    table = Table(Device(glitches=frozenset({0, 5})))
    for name in "abc":
        table.join(name, steps=4)
    table.finish()
    assert table.ends == {name: [4] for name in "abc"}


def test_a_call_that_does_not_fit_is_made_in_narrower_parts_and_all_end_well() -> None:
    table = Table(Device(fits_rows=4))
    for n in range(8):
        table.join(f"{n}", steps=3, start=10 * n)
    table.finish()
    assert table.ends == {f"{n}": [10 * n + 3] for n in range(8)}
    assert table.device.widths == [8, *[4] * 6]


@pytest.mark.parametrize("fits_rows", [2, 3, 4, 5, 7])
def test_rows_of_different_widths_find_what_fits(fits_rows: int) -> None:
    table = Table(Device(fits_rows=fits_rows))
    for n in range(9):
        table.join(f"{n}", steps=3, start=10 * n, rows=1 + n % 2)
    table.finish()
    assert table.ends == {f"{n}": [10 * n + 3] for n in range(9)}
    too_wide = [width for width in table.device.widths if width > fits_rows]
    assert len(too_wide) <= 3
    assert too_wide == sorted(too_wide, reverse=True)


def test_a_width_that_did_not_fit_one_kind_of_call_says_nothing_of_another() -> None:
    table = Table(Device(squeezes=frozenset({0})))
    for n in range(8):
        table.join(f"{n}", steps=1, key=n % 2)
    table.finish()
    assert table.device.widths == [4, 4, 2, 2]


def test_who_does_not_fit_even_alone_ends_by_itself() -> None:
    table = Table(Device(fits_rows=3))
    table.join("wide", rows=4)
    for n in range(5):
        table.join(f"{n}", steps=3)
    table.finish()
    assert isinstance(table.ends.pop("wide"), MemoryError)
    assert table.ends == {f"{n}": [3] for n in range(5)}


def test_who_ran_out_of_memory_may_try_again() -> None:
    """As a drawing does, once what can be freed was freed."""
    device = Device(fits_rows=0)
    table = Table(device)

    def twice() -> int:
        try:
            return count(device, "a")
        except MemoryError:
            device.fits_rows = 10
            return count(device, "a")

    table.join("a", twice)
    table.join("b", lambda: count(device, "b"))
    table.finish()
    assert table.ends["a"] == 3


def test_a_cautious_batch_begins_with_one_request_and_widens() -> None:
    table = Table(batch=batch_of(cautious=True))
    for n in range(12):
        table.join(f"{n}", steps=4)
    table.finish()
    assert table.device.widths[:4] == [1, 2, 4, 8]
    assert table.ends == {f"{n}": [4] for n in range(12)}


def test_a_fault_of_the_device_ends_all_before_anything_else_is_tried() -> None:
    fault = RuntimeError("CUDA error: an illegal memory access was encountered")
    table = Table(Device(broken=fault))
    table.join("a")
    table.join("b")
    with pytest.raises(DeviceLost) as lost:
        table.batch.tick()
    assert lost.value.__cause__ is fault
    assert table.device.calls == [("a", "b")]
    assert table.ends == {}


def test_who_is_stopped_while_waiting_is_in_no_call() -> None:
    table = Table()
    strands = {name: table.join(name, steps=2) for name in "abc"}
    table.batch.hub.run()
    table.batch.hub.stop(strands["b"], ValueError("enough"))
    table.finish()
    assert table.device.calls == [("a", "c")] * 2
    assert str(table.ends["b"]) == "enough"
    assert table.ends["a"] == table.ends["c"] == [2]


def test_a_stopped_request_takes_its_images_out_of_the_queue() -> None:
    table = Table()
    strand = table.join("a", images=4)
    table.join("b")
    table.batch.tick()
    table.batch.hub.stop(strand, ValueError("enough"))
    table.finish()
    assert [sorted(call) for call in table.device.calls] == [["a"] * 4 + ["b"], ["b"], ["b"]]
    assert str(table.ends["a"]) == "enough"


def test_no_call_is_made_when_all_who_wait_were_stopped() -> None:
    table = Table()
    strands = [table.join(name) for name in "abc"]
    table.batch.hub.run()
    for strand in strands:
        table.batch.hub.stop(strand, ValueError("enough"))
    table.finish()
    assert table.device.calls == []
    assert not table.batch.busy
    assert {str(end) for end in table.ends.values()} == {"enough"}


def test_who_goes_on_with_something_else_when_stopped_has_its_old_work_forgotten() -> None:
    device = Device()
    table = Table(device)

    def tidying() -> int:
        try:
            return share(Addition(device, "a", 0))
        except ValueError:
            return share(Addition(device, "tidying", 7))

    strand = table.join("a", tidying)
    table.batch.hub.run()
    table.batch.hub.stop(strand, ValueError("enough"))
    table.finish()
    assert table.device.calls == [("tidying",)]
    assert table.ends == {"a": 8}


def test_a_request_may_be_stopped_by_what_another_does_in_the_same_tick() -> None:
    table = Table()
    strand = table.join("a", steps=9)

    def stopping() -> None:
        count(table.device, "b", steps=2)
        table.batch.hub.stop(strand, ValueError("enough"))

    table.join("b", stopping)
    table.finish()
    assert table.device.calls == [("a", "b"), ("a", "b")]
    assert str(table.ends["a"]) == "enough"


@dataclass
class Stopwatch:
    """A meter whose calls all take two seconds, known so many questions later."""

    questions: int = 0
    asked: list[int] = field(default_factory=list)
    waited: int = 0

    def begin(self) -> None:
        pass

    def end(self) -> Reading:
        self.asked.append(0)
        return _Later(self, len(self.asked) - 1)


@dataclass
class _Later:
    watch: Stopwatch
    number: int

    def seconds(self) -> float | None:
        self.watch.asked[self.number] += 1
        return 2.0 if self.watch.asked[self.number] > self.watch.questions else None

    def wait_s(self) -> float:
        self.watch.waited += 1
        return 2.0


@pytest.mark.parametrize("questions", [0, 1, 100])
def test_a_calls_time_is_charged_to_its_requests_by_their_rows(questions: int) -> None:
    """Also where the engine falls idle before the device has said how long it took."""
    stopwatch = Stopwatch(questions)
    table = Table(batch=batch_of(meter=stopwatch))
    a, b = table.join("a", steps=3, rows=3), table.join("b", steps=2, rows=1)
    table.finish()
    assert (a.spent_s, b.spent_s) == (1.5 + 1.5 + 2.0, 0.5 + 0.5)
    assert stopwatch.waited == {0: 0, 1: 1, 100: 3}[questions]


def test_a_device_that_is_busy_is_not_waited_for() -> None:
    stopwatch = Stopwatch(questions=100)
    table = Table(batch=batch_of(meter=stopwatch))
    table.join("a", steps=3)
    table.batch.tick()
    table.batch.tick()
    assert (len(stopwatch.asked), stopwatch.waited) == (2, 0)


def test_a_call_under_way_keeps_none_of_its_works() -> None:
    """They hold the tensors of their call."""
    table = Table(batch=batch_of(meter=Stopwatch(questions=100)))
    works: list[weakref.ref[Addition]] = []

    def working() -> None:
        work = Addition(table.device, "a", 0)
        works.append(weakref.ref(work))
        share(work)
        del work
        count(table.device, "a", steps=2)

    table.join("a", working)
    table.batch.tick()
    table.batch.tick()
    gc.collect()
    assert [work() for work in works] == [None]


def test_the_time_of_its_images_is_charged_to_the_request() -> None:
    batch = batch_of(meter=Stopwatch())
    table = Table(batch=batch)
    a, b = table.join("a", steps=2, images=3), table.join("b", steps=2)
    table.finish()
    assert (a.spent_s, b.spent_s) == (3.0, 1.0)


def test_the_batch_of_a_cpu_takes_all_who_wait_at_once() -> None:
    table = Table(batch=batch_for(torch.device("cpu"), lost=lambda _: None))
    for n in range(9):
        table.join(f"{n}", steps=2, rows=2)
    table.finish()
    assert table.device.widths == [18, 18]
