"""Looks ahead once a second: in one process for all gateways, the others read what it published."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict

import structlog
from pydantic import ValidationError

from service.contract.errors import Overloaded, Unavailable
from service.contract.forecast import Forecast, PoolAhead
from service.contract.job import Priority
from service.generations.models import ModelDirectory
from service.generations.outlook.costs import CostBook
from service.generations.outlook.making import Knowledge, look_ahead, pools_of
from service.generations.outlook.overtaking import OrderLook, OvertakingMeter, Standing
from service.generations.outlook.pace import CallPaces
from service.generations.outlook.reading import Outlooks
from service.generations.outlook.speed import SpeedMeter, look_at
from service.jobs.forecasts import ForecastStore
from service.jobs.survey import Brief, PoolSurvey, Survey

log = structlog.get_logger(__name__)

#: s between two looks, and at most where one takes long; how much longer the pause is than the look.
_EVERY_S, _SELDOM_S, _SHARE = 1.0, 2.0, 10
#: Jobs of which it is remembered what they ask for; and how many are read at once.
_REMEMBERED, _READ_AT_ONCE = 16_384, 1024
#: Weight of the last job in the running mean of what follows a job's last picture; s, until one was seen.
_LEARNING, _AFTER_S = 0.2, 0.02
#: Ended jobs that are looked at, of each round.
_ENDED_AT_ONCE = 8


class Forecaster:
    """A background task. Whoever leads makes the forecast; a leader that falls silent is followed by another."""

    _rounds: asyncio.Task[None] | None = None

    def __init__(
        self, *, store: ForecastStore, models: ModelDirectory, costs: CostBook, outlooks: Outlooks, holder: str = ""
    ) -> None:
        self._store = store
        self._models = models
        self._costs = costs
        self._outlooks = outlooks
        self._holder = holder or secrets.token_hex(8)
        self._briefs: OrderedDict[str, Brief] = OrderedDict()
        self._meters: dict[str, SpeedMeter] = {}
        self._overtaking: dict[str, OvertakingMeter] = {}
        self._paces: dict[str, tuple[object, CallPaces]] = {}
        self._ran: frozenset[str] = frozenset()
        self._after_s = _AFTER_S

    def start(self) -> None:
        """Begin to do one round after the other. An outage of Redis only skips rounds."""
        self._rounds = asyncio.create_task(self._run(), name="forecaster")

    async def stop(self) -> None:
        """End, and let another process lead."""
        # Once is not enough: a connection that is just being made may swallow a cancellation (seen 1 in 50).
        while self._rounds and not self._rounds.done():
            self._rounds.cancel()
            await asyncio.wait({self._rounds}, timeout=0.1)
        try:
            await self._store.withdraw(self._holder)
        except (Unavailable, Overloaded):
            # Its lease runs out.
            log.info("forecaster_withdraw_failed")

    async def _run(self) -> None:
        while True:
            began_s = time.monotonic()
            try:
                await self.round()
            except (Unavailable, Overloaded) as err:
                log.info("forecast_skipped", reason=err.code)
            except Exception:
                # Nothing depends on a forecast, and none of its defects may take the rest of the process with it.
                log.exception("forecast_failed")
            # However long the queues and slow the machine, looking ahead takes a small part of it.
            await asyncio.sleep(min(_SELDOM_S, max(_EVERY_S, _SHARE * (time.monotonic() - began_s))))

    async def round(self) -> None:
        """Look ahead where this process leads; read what another one saw where it does not."""
        turn = await self._store.turn(self._holder)
        if not turn.leads:
            self._outlooks.show(_read(turn.published), now_ms=turn.now_ms)
            return
        seen = await self._store.survey()
        forecast = await self._look_ahead(seen)
        if await self._store.publish(self._holder, forecast.model_dump_json()):
            self._outlooks.show(forecast, now_ms=seen.now_ms)

    async def _look_ahead(self, seen: Survey) -> Forecast:
        await self._read_briefs(seen)
        await self._learn_ends(seen)
        cards = {card.id: card for card in await self._models.cards()}
        paces: dict[str, CallPaces] = {}
        for pool in pools_of(seen):
            devices = [worker.device_name for worker in seen.workers if worker.pool == pool.name]
            costs = await self._costs.of(devices)
            known, pace = self._paces.get(pool.name, (None, None))
            if pace is None or known != (costs, cards):
                pace = CallPaces(costs, cards)
            self._paces[pool.name] = (costs, cards), pace
            paces[pool.name] = pace
        knowledge = Knowledge(dict(self._briefs), cards, paces, {}, self._after_s)
        # Some ms with long queues: calls are answered meanwhile.
        return await asyncio.to_thread(self._make, seen, knowledge)

    def _make(self, seen: Survey, known: Knowledge) -> Forecast:
        earlier = self._outlooks.forecast
        speeds: dict[str, float | None] = {}
        for pool in pools_of(seen):
            if pool.name not in self._meters:
                told = earlier.pools.get(pool.name) if earlier else None
                self._meters[pool.name] = SpeedMeter(told.speed if told else None)
            meter, pace = self._meters[pool.name], known.paces[pool.name]
            meter.observe(look_at(seen, pool, known))
            drawn = {m for w in seen.workers if w.pool == pool.name for m in (*w.warm, *w.loading, *w.cold)}
            speeds[pool.name] = meter.speed(measured=any(pace.knows(model) for model in drawn))
        forecast = look_ahead(seen, Knowledge(known.briefs, known.cards, known.paces, speeds, known.after_s))
        return forecast.model_copy(
            update={"pools": {name: self._with_arrivals(seen, name, pool) for name, pool in forecast.pools.items()}}
        )

    def _with_arrivals(self, seen: Survey, name: str, pool: PoolAhead) -> PoolAhead:
        """Return it with what is expected of jobs that are still to come."""
        meter = self._overtaking.setdefault(name, OvertakingMeter())
        for surveyed in seen.pools:
            if surveyed.name == name:
                meter.observe(_order_look(seen.now_ms, surveyed, pool))
        return pool.model_copy(update={"overtaking": meter.rates()})

    async def _read_briefs(self, seen: Survey) -> None:
        """Read what jobs ask for that were not seen before; of too many, some now and the others next time."""
        asked = [job.job_id for job in seen.running]
        for pool in seen.pools:
            for each in pool.classes.values():
                asked += [mark.job_id for line in each.lines for mark in line.marks]
        unknown = [job_id for job_id in asked if job_id not in self._briefs][:_READ_AT_ONCE]
        for job_id, brief in zip(unknown, await self._store.briefs(unknown), strict=True):
            self._briefs[job_id] = brief
        for job_id in asked:
            if job_id in self._briefs:
                self._briefs.move_to_end(job_id)
        while len(self._briefs) > _REMEMBERED:
            self._briefs.popitem(last=False)

    async def _learn_ends(self, seen: Survey) -> None:
        """Learn how long it takes from a job's last picture to its end: compressing, storing."""
        running = frozenset(job.job_id for job in seen.running)
        ended, self._ran = sorted(self._ran - running)[:_ENDED_AT_ONCE], running
        for seconds in await self._store.afterwards_s(ended):
            self._after_s += _LEARNING * (seconds - self._after_s)


def _order_look(now_ms: int, surveyed: PoolSurvey, ahead: PoolAhead) -> OrderLook:
    marks: dict[str, tuple[Priority, int]] = {
        mark.job_id: (priority, mark.sequence)
        for priority, each in surveyed.classes.items()
        for line in each.lines
        for mark in line.marks
    }
    jobs = {
        job_id: Standing(job_id, *marks[job_id], place - 1)
        for job_id, (place, _, _) in ahead.next.items()
        if job_id in marks
    }
    return OrderLook(now_ms, surveyed.sequence, jobs)


def _read(text: str) -> Forecast | None:
    """Return the forecast of a leader; None where there is none, or what is there is none of ours."""
    try:
        return Forecast.model_validate_json(text) if text else None
    except ValidationError:
        log.warning("forecast_damaged")
        return None
