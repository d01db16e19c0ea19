"""When events are sent again."""

from __future__ import annotations

from typing import Any

import pytest

from service.jobs.outbox import Attempt, DueEvent
from service.webhooks.schedule import DELAYS_S, Answer, judged


def attempt(answer: Answer, *, attempts: int = 0, kind: str = "generation.succeeded", **more: Any) -> Attempt:
    event = DueEvent("evt_1", "ep_1", kind, 0, attempts, "1", failing=more.pop("failing", False), job=None)
    return judged(event, answer, at_ms=5, duration_ms=7, chance=more.get("chance", 0.5))


def test_ten_attempts_in_three_days_and_some_hours() -> None:
    delays = [attempt(Answer(status=500), attempts=made).retry_ms for made in range(10)]
    hour = 3_600_000
    assert delays == [5000, 300_000, hour // 2, 2 * hour, 5 * hour, 10 * hour, 14 * hour, 20 * hour, 24 * hour, None]
    assert sum(DELAYS_S) / 3600 == pytest.approx(75.6, abs=0.02)


def test_chance_moves_a_delay_by_a_tenth_at_most() -> None:
    answer = Answer(reason="timeout")
    assert attempt(answer, attempts=1, chance=0.0).retry_ms == 270_000
    assert attempt(answer, attempts=1, chance=1.0).retry_ms == 330_000


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(200, "delivered"), (204, "delivered"), (299, "delivered"), (199, "failed"), (301, "failed"), (307, "failed"),
     (400, "failed"), (404, "failed"), (410, "gone"), (500, "failed")],
)  # fmt: skip
def test_only_2xx_is_success_and_410_is_the_end(status: int, verdict: str) -> None:
    done = attempt(Answer(status=status))
    assert done.verdict == verdict
    assert (done.retry_ms is not None) == (verdict == "failed")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_endpoint_that_has_too_much_to_do_is_left_alone(status: int) -> None:
    assert attempt(Answer(status=status)).hold_ms == 30_000
    asked = attempt(Answer(status=status, retry_after_s=120))
    assert (asked.hold_ms, asked.retry_ms) == (120_000, 120_000)
    assert attempt(Answer(status=status, retry_after_s=0)).hold_ms == 0
    # No receiver puts its events off for longer than an hour, nor nearer than the schedule.
    assert attempt(Answer(status=status, retry_after_s=10**6)).hold_ms == 3_600_000
    assert attempt(Answer(status=status, retry_after_s=10**6)).retry_ms == 3_600_000
    assert attempt(Answer(status=status, retry_after_s=1), attempts=4).retry_ms == 18_000_000


def test_endpoint_that_keeps_failing_is_tried_once_a_second() -> None:
    assert attempt(Answer(status=500)).hold_ms == 0
    assert attempt(Answer(reason="connect"), failing=True).hold_ms == 1000


def test_progress_is_never_sent_again() -> None:
    assert attempt(Answer(status=500), kind="generation.progress").retry_ms is None


def test_what_is_our_own_fault_is_tried_again_and_not_held_against_the_endpoint() -> None:
    ours = attempt(Answer(reason="secret", ours=True), failing=True)
    assert (ours.verdict, ours.retry_ms, ours.hold_ms) == ("unsent", 5000, 0)
