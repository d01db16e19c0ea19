"""GPU seconds of a day: what has ended counts, beyond the limit nothing new is accepted until midnight in UTC."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import redis

from service.api.gateway import Gateway
from service.app import create_app
from service.contract.generation import Timings
from service.contract.job import Status
from service.jobs.commands import Outcome
from service.jobs.keys import key as redis_key
from service.jobs.store import JobStore
from service.settings.gateway import GatewaySettings
from service.tenants.records import TenantLimits, tenant_key
from service.tenants.store import TenantStore
from tests.clock import QueueClock
from tests.gateway import BASE_URL, SHAPES, make_key, picture, running, show_models
from tests.jobs import ROOM, make_job

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"
#: 2027-01-15 and the days around it begin at these.
DAY, DAY_MS = 20_833, 86_400_000


@pytest.fixture
def clock() -> QueueClock:
    """An hour before midnight."""
    return QueueClock((DAY + 1) * DAY_MS - 3_600_000)


@pytest.fixture
async def api(
    settings: GatewaySettings, clock: QueueClock, redis_client: redis.Redis
) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of a tenant that may use 2 GPU seconds a day; the queue goes by the test's clock."""
    show_models(redis_client, SHAPES)
    key = make_key(redis_client, limits=TenantLimits(max_gpu_s_per_day=2))
    app = create_app(settings)
    async with running(app):
        state: Gateway = app.state.gateway
        state.store._clock = clock
        headers = {"Authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers, timeout=30) as client:
            yield client


class Device:
    """Draws what waits, each for as long as the test says."""

    def __init__(self, client: redis.Redis, clock: QueueClock) -> None:
        self._store = JobStore(client, clock=clock)
        self._executions = 0

    def begin(self) -> str:
        self._executions += 1
        job = self._store.claim("default", f"exe{self._executions}", "agent-1")
        assert job is not None
        return job.id

    def end(self, job_id: str, execution: int, gpu_s: float) -> None:
        outcome = Outcome(Status.SUCCEEDED, timings=Timings(gpu_s=gpu_s))
        assert self._store.commit(job_id, f"exe{execution}", outcome) == "committed"

    def draw(self, gpu_s: float) -> None:
        self.end(self.begin(), self._executions, gpu_s)


@pytest.fixture
def device(redis_client: redis.Redis, clock: QueueClock) -> Device:
    return Device(redis_client, clock)


async def create(api: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await api.post(PATH, json={"prompt": "x"}, headers=headers)


async def today(api: httpx.AsyncClient) -> dict[str, Any]:
    return (await api.get("/v1/usage")).json()["today"]


async def test_what_has_ended_counts_until_midnight(api: httpx.AsyncClient, device: Device, clock: QueueClock) -> None:
    for _ in range(3):
        assert (await create(api)).status_code == 202
    device.draw(1.999)
    assert await today(api) == {"day": "2027-01-15", "gpu_s": 1.999, "remaining_gpu_s": 0.001}
    assert (await create(api)).status_code == 202
    device.draw(0.5)
    batch = await api.post(f"{PATH}/batch", json={"requests": [{"prompt": "x"}, {"prompt": "y"}]})
    for refused in (batch, await create(api)):
        assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
        assert refused.headers["retry-after"] == "3600"
    assert await today(api) == {"day": "2027-01-15", "gpu_s": 2.499, "remaining_gpu_s": 0.0}
    # What was accepted is drawn all the same.
    device.draw(0.5)
    clock.now_ms += 3_599_001
    refused = await create(api)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    clock.now_ms += 999
    assert (await create(api)).status_code == 202
    assert await today(api) == {"day": "2027-01-16", "gpu_s": 0.0, "remaining_gpu_s": 2.0}


async def test_what_is_drawn_over_midnight_counts_for_the_day_of_its_end(
    api: httpx.AsyncClient, device: Device, clock: QueueClock
) -> None:
    assert (await create(api)).status_code == 202
    job_id = device.begin()
    clock.now_ms += 3_600_000
    device.end(job_id, 1, 5.0)
    refused = await create(api)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "86400")


async def test_a_changed_limit_counts_from_the_next_call_on(
    api: httpx.AsyncClient, device: Device, redis_client: redis.Redis
) -> None:
    assert (await create(api)).status_code == 202
    device.draw(3)
    assert (await create(api)).status_code == 429
    tenants = TenantStore(redis_client)
    for limit, status in ((4, 202), (3, 429), (None, 202)):
        tenants.set_limits("acme", TenantLimits(max_gpu_s_per_day=limit))
        assert (await create(api)).status_code == status


async def test_an_accepted_call_is_answered_again_and_looking_stays_open(
    api: httpx.AsyncClient, device: Device
) -> None:
    mine = {"Idempotency-Key": "order-12"}
    first = await create(api, **mine)
    device.draw(2)
    again = await create(api, **mine)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert (await create(api, **{"Idempotency-Key": "order-13"})).status_code == 429
    assert (await api.get(first.json()["urls"]["self"])).status_code == 200
    assert (await api.delete(first.json()["urls"]["self"])).status_code == 204


async def test_no_input_picture_is_stored_for_a_refused_call(
    api: httpx.AsyncClient, device: Device, redis_client: redis.Redis
) -> None:
    body = {"prompt": "x", "task": "image-to-image", "image": {"base64": base64.b64encode(picture()).decode()}}
    mine = {"Idempotency-Key": "order-12"}
    first = await api.post(PATH, json=body, headers=mine)
    assert first.status_code == 202
    device.draw(2)
    staged = redis_client.zrange("dr:erasures", 0, -1)
    refused = await api.post(PATH, json=body)
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
    assert refused.headers["retry-after"] == "3600"
    again = await api.post(PATH, json=body, headers=mine)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert redis_client.zrange("dr:erasures", 0, -1) == staged


async def test_usage_tells_every_limit(api: httpx.AsyncClient, redis_client: redis.Redis) -> None:
    limits = (await api.get("/v1/usage")).json()["limits"]
    assert limits == {
        "max_requests_per_minute": None, "max_gpu_s_per_day": 2, "max_queued": None, "max_running": None,
        "top_priority": "high",
    }  # fmt: skip
    assert set(limits) == set(TenantLimits.model_fields) - {"weight"}
    earlier = (await api.get("/v1/usage?from=2027-01-10&to=2027-01-12")).json()
    assert [day["day"] for day in earlier["data"]] == ["2027-01-10", "2027-01-11", "2027-01-12"]
    assert earlier["today"]["day"] == "2027-01-15"


@pytest.mark.parametrize("limit", ["many", "nan", "-1", "inf", "0", ""])
def test_a_damaged_limit_stops_nothing_in_the_queue(redis_client: redis.Redis, limit: str) -> None:
    redis_client.hset(tenant_key("ada"), "max_gpu_s_per_day", limit)
    redis_client.hset(redis_key("usage", "ada", str(DAY)), "gpu_ms", "9" * 300)
    _submit_one(redis_client)


@pytest.mark.parametrize("used", ["nan", "-5", "x", ""])
def test_damaged_counts_use_up_nothing(redis_client: redis.Redis, used: str) -> None:
    redis_client.hset(tenant_key("ada"), "max_gpu_s_per_day", "1")
    redis_client.hset(redis_key("usage", "ada", str(DAY)), "gpu_ms", used)
    _submit_one(redis_client)


def _submit_one(client: redis.Redis) -> None:
    store = JobStore(client, clock=lambda: DAY * DAY_MS)
    assert store.submit(make_job("gen_1"), limits=ROOM).outcome == "created"
