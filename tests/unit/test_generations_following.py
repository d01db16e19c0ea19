"""What a stream tells of the states that it sees."""

from __future__ import annotations

from typing import Any

from service.contract.job import Status
from service.generations.following import Teller
from tests.jobs import make_job


def names(teller: Teller, *states: tuple[Status, int, int]) -> list[str | None]:
    """Return the event for each (status, revision, attempt), None where nothing is told."""
    told: list[str | None] = []
    for status, revision, attempt in states:
        fields: dict[str, Any] = {"status": status, "revision": revision, "attempt": attempt}
        event = teller.event(make_job("gen_1", **fields))
        told.append(event and event.name)
    return told


def test_a_life_is_told_in_order_and_each_state_once() -> None:
    life = [
        (Status.QUEUED, 1, 0), (Status.QUEUED, 1, 0), (Status.RUNNING, 2, 1), (Status.RUNNING, 3, 1),
        (Status.RUNNING, 3, 1), (Status.SUCCEEDED, 4, 1),
    ]  # fmt: skip
    assert names(Teller(None), *life) == ["queued", None, "started", "progress", None, "completed"]


def test_every_end_is_completed() -> None:
    for status in (Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.EXPIRED):
        event = Teller(None).event(make_job("gen_1", status=status, revision=2))
        assert event is not None
        assert (event.name, event.last) == ("completed", True)


def test_an_attempt_after_a_lost_worker_starts_and_one_after_a_drain_goes_on() -> None:
    lost = [(Status.RUNNING, 2, 1), (Status.QUEUED, 3, 1), (Status.RUNNING, 4, 2)]
    assert names(Teller(None), *lost) == ["started", "queued", "started"]
    drained = [(Status.RUNNING, 2, 1), (Status.QUEUED, 3, 0), (Status.RUNNING, 4, 1)]
    assert names(Teller(None), *drained) == ["started", "queued", "progress"]


def test_who_comes_back_is_told_what_is_new_alone() -> None:
    assert names(Teller(7), (Status.RUNNING, 7, 1), (Status.RUNNING, 8, 1)) == [None, "progress"]
    assert names(Teller(7), (Status.RUNNING, 9, 1)) == ["started"]


def test_a_revision_that_was_lost_with_its_redis_is_corrected() -> None:
    assert names(Teller(9), (Status.RUNNING, 8, 1), (Status.RUNNING, 9, 1)) == ["started", "progress"]
