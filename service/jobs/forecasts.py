"""The forecast's place in Redis: who makes it, what it is made from, and the text that all gateways read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from service.jobs.keys import key
from service.jobs.outages import as_unavailable
from service.jobs.scripts import LIMITS, ScriptName, script_text
from service.jobs.survey import BRIEF_FIELDS, Brief, Survey, afterwards_s, brief, read_survey

#: ms; after that another process takes over from one that fell silent, and an old forecast is none.
LEASE_MS = 3000
GOOD_MS = 5000


@dataclass(frozen=True, slots=True)
class Turn:
    """Whether a process leads, and if it does not, what the one that does has published."""

    #: By the clock of Redis.
    now_ms: int
    leads: bool
    #: Empty where there is nothing.
    published: str = ""


class ForecastStore:
    """A client of the scripts around the forecast. Raises `Unavailable` where Redis does not answer in time."""

    def __init__(self, redis: Redis, *, clock: Callable[[], int] | None = None) -> None:
        self._redis = redis
        self._clock = clock
        names: tuple[ScriptName, ...] = ("forecaster", "publish", "survey")
        self._scripts = {name: redis.register_script(script_text(name)) for name in names}

    async def _run(self, name: ScriptName, *arguments: str | int) -> Any:
        now = "" if self._clock is None else self._clock()
        with as_unavailable():
            return await self._scripts[name](args=[now, *arguments])

    async def turn(self, holder: str) -> Turn:
        """Take or keep the lead."""
        now_ms, answer, *published = cast("list[Any]", await self._run("forecaster", holder, LEASE_MS, "0"))
        if answer == "leads":
            return Turn(int(now_ms), leads=True)
        text = str(published[0])
        return Turn(int(now_ms), leads=False, published=text if len(text) <= LIMITS["forecast_bytes"] else "")

    async def withdraw(self, holder: str) -> None:
        """Let another process lead at once."""
        await self._run("forecaster", holder, LEASE_MS, "1")

    async def survey(self) -> Survey:
        """Return what waits and what runs."""
        return read_survey(await self._run("survey"))

    async def briefs(self, job_ids: Sequence[str]) -> list[Brief]:
        """Return what each of these jobs asks for."""
        if not job_ids:
            return []
        with as_unavailable():
            pipe = self._redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipe.hmget(key("job", job_id), list(BRIEF_FIELDS))
            # A value of another type is that one job's damage.
            found = await pipe.execute(raise_on_error=False)
        return [brief(cast("list[str | None]", each)) if isinstance(each, list) else Brief(None) for each in found]

    async def afterwards_s(self, job_ids: Sequence[str]) -> list[float]:
        """Return how long these jobs took from their last picture to their end, of those that have ended with one."""
        if not job_ids:
            return []
        with as_unavailable():
            pipe = self._redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipe.hget(key("job", job_id), "timings")
            found = await pipe.execute(raise_on_error=False)
        return [seconds for each in found if isinstance(each, str) and (seconds := afterwards_s(each)) is not None]

    async def publish(self, holder: str, forecast: str) -> bool:
        """Publish what lies ahead; False where another process leads by now."""
        return await self._run("publish", holder, GOOD_MS, forecast) == 1
