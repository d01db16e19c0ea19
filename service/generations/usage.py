"""What a tenant used, day by day."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

from service.contract.errors import FieldError, InvalidRequest
from service.jobs.async_store import AsyncJobStore
from service.jobs.commands import DayUsage
from service.jobs.scripts import LIMITS

DAYS_DEFAULT = 30
#: Days that usage is kept for, the present one included.
DAYS_MAX = LIMITS["usage_ttl_s"] // 86_400

_1970 = date(1970, 1, 1)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True, slots=True)
class UsageSpan:
    """Days in UTC, both included."""

    first: date
    last: date

    @property
    def days(self) -> int:
        """How many days these are."""
        return (self.last - self.first).days + 1


def usage_span(parameters: Iterable[tuple[str, str]], *, today: date) -> UsageSpan:
    """Read query parameters; raises `InvalidRequest` with everything that is wrong.

    Days of which nothing can be known any more, or yet, are refused: they would read as days without use.
    """
    given: dict[str, date] = {}
    seen: set[str] = set()
    errors: list[FieldError] = []
    oldest = today - timedelta(days=DAYS_MAX - 1)
    for name, value in parameters:
        if name not in {"from", "to"}:
            errors.append(FieldError(name[:64], "is not a parameter here; there are from, to"))
            continue
        if name in seen:
            errors.append(FieldError(name, "is given twice"))
            continue
        seen.add(name)
        day = _day(value)
        if day is None or not oldest <= day <= today:
            errors.append(FieldError(name, f"must be a day in UTC (YYYY-MM-DD), {oldest} to {today}"))
        else:
            given[name] = day
    last = given.get("to", today)
    first = given.get("from", max(oldest, last - timedelta(days=DAYS_DEFAULT - 1)))
    if not errors and first > last:
        errors.append(FieldError("from", "must not be after to"))
    if errors:
        raise InvalidRequest(errors[:32])
    return UsageSpan(first, last)


def _day(text: str) -> date | None:
    if not _DAY.fullmatch(text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What a tenant used."""

    #: Every day that was asked for, oldest first, also those without use.
    days: list[tuple[date, DayUsage]]
    #: The present day, asked for or not.
    today: tuple[date, DayUsage]


class TellUsage:
    """The use case."""

    def __init__(self, store: AsyncJobStore) -> None:
        self._store = store

    async def by_day(self, tenant: str, parameters: Iterable[tuple[str, str]]) -> TenantUsage:
        """Return what a tenant used on the days asked for, and today; raises `InvalidRequest`, `Unavailable`."""
        today = _1970 + timedelta(days=await self._store.today())
        span = usage_span(parameters, today=today)
        days = await self._days(tenant, span.first, span.days)
        (present,) = days[-1:] if span.last == today else await self._days(tenant, today, 1)
        return TenantUsage(days, present)

    async def _days(self, tenant: str, first: date, count: int) -> list[tuple[date, DayUsage]]:
        used = await self._store.usage(tenant, (first - _1970).days, count)
        return [(first + timedelta(days=number), usage) for number, usage in enumerate(used)]
