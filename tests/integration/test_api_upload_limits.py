"""How many uploads a tenant may have without a use, over HTTP."""

from __future__ import annotations

import pytest
import redis

from service.settings.gateway import GatewaySettings
from tests.gateway import EMOJI, SHAPES, gateway_settings, make_key, serving, show_models
from tests.uploads import PATH, declared, drawn_from, made, uploaded

pytestmark = pytest.mark.anyio


async def test_too_many_unused_uploads_are_429(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    few = gateway_settings(settings.redis, settings.storage, uploads={"limit": 1})
    async with serving(few, key=make_key(redis_client)) as api:
        first = await made(api)
        response = await api.post(PATH, json=declared())
        assert (response.status_code, response.json()["code"]) == (429, "limit_reached")
        assert 86_000 < int(response.headers["retry-after"]) <= 86_400
        # What is deleted counts for as long as its form is taken: a round of both would store, and note, without end.
        assert (await api.delete(f"{PATH}/{first['id']}")).status_code == 204
        response = await api.post(PATH, json=declared())
        assert response.status_code == 429
        assert 3500 < int(response.headers["retry-after"]) <= 3600


async def test_an_upload_counts_as_unused_until_a_generation_with_it_is_accepted(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    small = gateway_settings(settings.redis, settings.storage, admission={"queue_limit": 1}, uploads={"limit": 2})
    async with serving(small, key=make_key(redis_client)) as api:
        first, second = await uploaded(api), await uploaded(api)
        assert (await api.post(PATH, json=declared())).status_code == 429
        accepted = await drawn_from(api, first)
        assert accepted.status_code == 202
        assert (await api.post(PATH, json=declared())).status_code == 201
        assert (await drawn_from(api, second)).status_code == 503
        assert (await api.post(PATH, json=declared())).status_code == 429
        assert (await api.post(accepted.json()["urls"]["cancel"])).status_code == 200
        assert (await drawn_from(api, second)).status_code == 202
        assert (await api.post(PATH, json=declared())).status_code == 201
