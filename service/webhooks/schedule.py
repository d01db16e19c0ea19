"""When an event is sent again, and when its endpoint is left alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from service.jobs.outbox import Attempt, DueEvent, Verdict

#: s between an attempt and the next, the example schedule of Standard Webhooks 1.0.0: ten attempts in 75 hours.
DELAYS_S: Final = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
#: ms of nothing but failures after which an endpoint is switched off.
FAILING_OFF_MS: Final = 3 * 86_400_000

#: By which part a delay may be shorter or longer, so that what failed together does not come together again.
_JITTER: Final = 0.1
#: Statuses of a receiver that has too much to do, or of a proxy whose receiver does not answer.
_SLOW_DOWN: Final = frozenset({429, 502, 503, 504})
#: s for which such an endpoint is left alone where it does not say, and at most.
_HOLD_S, _HOLD_MAX_S = 30, 3600
#: s between two attempts at an endpoint that keeps failing, whatever its events' own times are.
_FAILING_PAUSE_S = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of sending an event."""

    #: Of the reply; None where none came.
    status: int | None = None
    #: In one word, where there was none.
    reason: str | None = None
    #: As the receiver asked by `Retry-After`.
    retry_after_s: int | None = None
    #: It was not sent, for a reason of our own.
    ours: bool = False


def judged(event: DueEvent, answer: Answer, *, at_ms: int, duration_ms: int, chance: float) -> Attempt:
    """Return the attempt as it is recorded; `chance` in [0, 1) draws the delay."""
    verdict = _verdict(answer)
    # Progress that came too late is no progress; what follows it tells more.
    again = verdict in {"failed", "unsent"} and event.type != "generation.progress"
    return Attempt(
        verdict,
        at_ms=at_ms,
        duration_ms=duration_ms,
        status=answer.status,
        reason=answer.reason,
        retry_ms=_retry_ms(event.attempts, answer, chance) if again else None,
        hold_ms=_hold_ms(event, answer) if verdict == "failed" else 0,
    )


def _verdict(answer: Answer) -> Verdict:
    if answer.ours:
        return "unsent"
    if answer.status is not None and 200 <= answer.status < 300:
        return "delivered"
    return "gone" if answer.status == 410 else "failed"


def _retry_ms(attempts: int, answer: Answer, chance: float) -> int | None:
    """Return ms until the next attempt; None where the last one was made."""
    if attempts >= len(DELAYS_S):
        return None
    delay_s = DELAYS_S[attempts] * (1 - _JITTER + 2 * _JITTER * chance)
    return round(1000 * max(delay_s, _asked_s(answer)))


def _hold_ms(event: DueEvent, answer: Answer) -> int:
    if answer.status in _SLOW_DOWN:
        return 1000 * (_HOLD_S if answer.retry_after_s is None else _asked_s(answer))
    return 1000 * _FAILING_PAUSE_S if event.failing else 0


def _asked_s(answer: Answer) -> int:
    return min(answer.retry_after_s or 0, _HOLD_MAX_S)
