"""The job store for gateways: a thin asynchronous client over the scripts."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import cast

import structlog
from redis.asyncio import Redis
from redis.client import NEVER_DECODE

from service.contract.costs import CallCost
from service.contract.errors import QuotaExceeded
from service.contract.job import Job
from service.contract.previews import PREVIEW_BYTES
from service.contract.rate import RequestRate
from service.jobs import commands, documents
from service.jobs.census import MOST_POOLS, MOST_TENANTS, PoolCensus, read_census
from service.jobs.commands import Argument
from service.jobs.costs import OVERGROWN, device_key, read_entries
from service.jobs.keys import key
from service.jobs.outages import as_unavailable
from service.jobs.scripts import SCRIPT_NAMES, ScriptName, script_text

log = structlog.get_logger(__name__)

#: ms; inputs that no submit followed are erased after that.
_STAGING_MS = 3_600_000


class AsyncJobStore:
    """Everything a gateway does to jobs.

    `clock` as in `JobStore`. Raises `Unavailable` where Redis does not answer in time. Every method may be repeated.
    """

    def __init__(self, redis: Redis, *, clock: Callable[[], int] | None = None) -> None:
        self._redis = redis
        self._clock = clock
        #: Hears of each job that was accepted.
        self.on_accepted: Callable[[Job], None] | None = None
        self._scripts = {name: redis.register_script(script_text(name)) for name in SCRIPT_NAMES}

    async def _run(self, name: ScriptName, arguments: Sequence[Argument]) -> object:
        now = "" if self._clock is None else self._clock()
        with as_unavailable():
            return await self._scripts[name](args=[now, *arguments])

    async def submit(
        self,
        *jobs: Job,
        idempotency: commands.Idempotency | None,
        limits: commands.SubmitLimits,
        staged: Collection[str] = (),
    ) -> commands.Submission:
        """Accept jobs of one tenant, all or none, or say why not: one round trip, safe to repeat with the same ids.

        `staged` are the prefixes of `stage_inputs` that these jobs keep from then on.
        """
        arguments = commands.submit_arguments(jobs, idempotency=idempotency, limits=limits, staged=staged)
        submission = commands.submission(cast("list[str]", await self._run("submit", arguments)))
        if self.on_accepted is not None and submission.outcome == "created":
            for job in jobs:
                self.on_accepted(job)
        return submission

    async def rehearse(self, job: Job, *, pool_queued: int) -> commands.Submission:
        """Return what `submit` would make of a job now: `created` where it has room. Nothing is stored or used."""
        arguments = [job.tenant, job.pool, job.priority, pool_queued]
        return commands.submission(cast("list[str]", await self._run("rehearse", arguments)))

    async def recall(self, tenant: str, idempotency: commands.Idempotency) -> list[Job]:
        """Return the jobs that this key created with this body; empty where there are none, or one is gone."""
        with as_unavailable():
            record = await cast(
                "Awaitable[dict[str, str]]", self._redis.hgetall(key("idempotency", tenant, idempotency.record))
            )
        if record.get("body") != idempotency.body_sha256:
            return []
        return await self.get_all(tenant, record["job"].split()) or []

    async def stage_inputs(self, tenant: str, prefixes: Collection[str], *, jobs: int = 1) -> RequestRate | None:
        """Note that inputs are about to be stored under these: erased in an hour unless a submit of `jobs` names them.

        Returns None when that is done; the tenant's rate where too little is left of it, and nothing was noted.
        Raises `QuotaExceeded` where its day's GPU seconds are used up, and nothing was noted either.
        """
        arguments: list[Argument] = [tenant, jobs, _STAGING_MS, *prefixes]
        told = cast("list[int]", await self._run("stage", arguments))
        if len(told) == 1:
            raise QuotaExceeded(retry_after_s=told[0])
        return commands.told_rate(told)

    async def unstage_inputs(self, prefixes: Collection[str], *, unused: Collection[str] = ()) -> None:
        """Have staged inputs erased now: their submit was refused. Below `unused` nothing was stored."""
        with as_unavailable():
            pipe = self._redis.pipeline(transaction=False)
            if prefixes:
                pipe.zadd(key("erasures"), dict.fromkeys(prefixes, 0), xx=True)
            if unused:
                pipe.zrem(key("erasures"), *unused)
            await pipe.execute()

    async def cancel(self, tenant: str, job_id: str) -> Job | None:
        """Cancel; return the job as it is then, None where this tenant has none such."""
        return await self.get(tenant, job_id) if await self._run("cancel", [tenant, job_id]) == 1 else None

    async def erase(self, tenant: str, job_id: str) -> bool:
        """Mark a job to be erased and scrub what it asked for; False where this tenant has none such."""
        return await self._run("erase", [tenant, job_id]) == 1

    async def reap(self, *, take_back: bool, limit: int = 100) -> commands.Reaped:
        """As `JobStore.reap`; gateways reap too, so that deadlines pass while every worker is down."""
        reply = await self._run("reap", commands.reap_arguments(take_back=take_back, limit=limit))
        return commands.Reaped(*cast("list[int]", reply))

    async def get(self, tenant: str, job_id: str) -> Job | None:
        """Return a job; None where it is unknown, another tenant's, or being erased."""
        with as_unavailable():
            fields = await cast("Awaitable[dict[str, str]]", self._redis.hgetall(key("job", job_id)))
        return documents.decode(fields) if documents.is_here(fields, tenant) else None

    async def get_all(self, tenant: str, job_ids: Sequence[str]) -> list[Job] | None:
        """Return these jobs, in one round trip; None where `get` would return None for one of them."""
        with as_unavailable():
            pipe = self._redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipe.hgetall(key("job", job_id))
            found = cast("list[dict[str, str]]", await pipe.execute())
        is_whole = all(documents.is_here(each, tenant) for each in found)
        return [documents.decode(each) for each in found] if is_whole else None

    async def ended_lately(self, kind: commands.Queued, name: str) -> commands.Ended:
        """Return how many jobs ended in the last minutes, of a pool or of a tenant."""
        now_ms, *by_slot = cast("list[int]", await self._run("drained", [kind, name]))
        return commands.Ended(now_ms, tuple(by_slot))

    async def census(self) -> tuple[PoolCensus, ...]:
        """Return how many jobs wait and run in each pool."""
        return read_census(cast("list[list[str | int]]", await self._run("census", [MOST_POOLS, MOST_TENANTS])))

    async def today(self) -> int:
        """Return the day by the clock of Redis, which usage is counted by: days since 1970, UTC."""
        if self._clock is not None:
            return self._clock() // 86_400_000
        with as_unavailable():
            seconds, _ = await self._redis.time()
        return seconds // 86_400

    async def usage(self, tenant: str, first_day: int, days: int) -> list[commands.DayUsage]:
        """Return what a tenant used on each of `days` days from `first_day` on; nothing stored is nothing used."""
        counts = cast("list[int]", await self._run("usage", [tenant, first_day, days]))
        return [commands.DayUsage(*counts[at : at + 3]) for at in range(0, 3 * days, 3)]

    async def preview(self, job_id: str) -> bytes | None:
        """Return what is kept as a job's preview, whatever it is, cut off behind the limit; None where nothing is."""
        with as_unavailable():
            # One byte more than is allowed: enough to see that it is too much.
            found = await self._redis.execute_command(
                "GETRANGE", key("preview", job_id), 0, PREVIEW_BYTES, **{NEVER_DECODE: True}
            )
        return cast("bytes", found) or None

    async def models(self) -> list[commands.RegisteredModel]:
        """Return every model a worker has shown, the default first."""
        with as_unavailable():
            cards = await cast("Awaitable[dict[str, str]]", self._redis.hgetall(key("models")))
            agents = cast("list[str]", await self._redis.zrange(key("agents"), 0, -1))
            records: list[str | None] = []
            if agents:
                records = cast("list[str | None]", await self._redis.mget([key("agent", a) for a in agents]))
        return commands.registered_models(cards, records)

    async def costs(self, device_name: str) -> tuple[CallCost, ...]:
        """Return what calls are known to cost on such a device; agents see to it that it is little."""
        name = key("costs", device_key(device_name))
        with as_unavailable():
            if await self._redis.hlen(name) > OVERGROWN:
                return ()
            stored = await cast("Awaitable[dict[str, str]]", self._redis.hgetall(name))
        return (await asyncio.to_thread(read_entries, stored, now_s=int(time.time()))).costs

    async def secret(self) -> bytes:
        """Return the 32 bytes that key the MAC in ids: made once, the same for every gateway."""
        with as_unavailable():
            await self._redis.set(key("secret"), secrets.token_hex(32), nx=True)
            stored = cast("str", await self._redis.get(key("secret")))
        return bytes.fromhex(stored)

    async def ping(self) -> None:
        """Return if Redis answers."""
        with as_unavailable():
            await self._redis.ping()

    async def server(self) -> commands.ServerState:
        """Return what Redis says of itself (plain INFO: Redis 6.2 takes no list of sections)."""
        with as_unavailable():
            return commands.server_state(await self._redis.info())
