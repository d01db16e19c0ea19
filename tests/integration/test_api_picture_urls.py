"""Input pictures by URL over HTTP: fetched once, when the request is, and no way to look around inside."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
import redis
from structlog.testing import capture_logs

from service.contract.errors import Overloaded
from service.generations.pictures import PictureLimits, PictureRefused
from service.generations.remote import FetchRules, RemotePictures
from service.net.egress import Egress, EgressRules
from service.settings.egress import EgressSettings, FetchSettings
from service.settings.gateway import GatewaySettings
from service.storage.s3 import ObjectStorage
from service.tenants.records import TenantLimits
from tests.gateway import SHAPES, Hand, gateway_settings, make_key, picture, serving, show_models
from tests.sites import INSIDE, PUBLIC, Exchange, Site, site

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"


@pytest.fixture
async def public() -> AsyncIterator[Site]:
    async with site() as place:
        place.plays["/a.png?token=hidden"] = place.plays["/a.png"] = lambda exchange: exchange.answer(200, picture())
        yield place


@asynccontextmanager
async def gateway(
    settings: GatewaySettings, client: redis.Redis, *sites: Site, key: str | None = None, **fetch: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that may call these sites, and a caller of the tenant `acme`."""
    egress = EgressSettings(http=True, networks=(ip_network(f"{PUBLIC}/32"),), ports=tuple(each.port for each in sites))
    changed = gateway_settings(settings.redis, settings.storage, egress=egress, fetch=FetchSettings(**fetch))
    show_models(client, SHAPES)
    async with serving(changed, key=key or make_key(client)) as api:
        yield api


@pytest.fixture
async def api(settings: GatewaySettings, redis_client: redis.Redis, public: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway(settings, redis_client, public) as client:
        yield client


def body(url: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": "x", "task": "image-to-image", "image": {"url": url}, **fields}


async def refusal(api: httpx.AsyncClient, url: str) -> str:
    response = await api.post(PATH, json=body(url))
    assert response.status_code == 422, response.text
    assert [error["pointer"] for error in response.json()["errors"]] == ["/image/url"]
    assert url not in response.text or not url
    return response.json()["errors"][0]["detail"]


async def test_a_picture_is_fetched_once_and_kept_as_it_was(
    api: httpx.AsyncClient, public: Site, hand: Hand, storage: ObjectStorage
) -> None:
    url = f"http://{PUBLIC}:{public.port}/a.png?token=hidden"
    with capture_logs() as logs:
        response = await api.post(PATH, json=body(url))
    assert response.status_code == 202, response.text
    image = (await asyncio.to_thread(hand.claim)).spec.image
    assert image is not None
    assert image.sha256 == hashlib.sha256(picture()).hexdigest()
    assert storage.get(image.key, max_bytes=10_000) == picture()
    assert public.hits == 1
    assert "hidden" not in response.text + str(logs)


async def test_mask_and_picture_may_each_be_at_a_url(api: httpx.AsyncClient, public: Site, hand: Hand) -> None:
    url = f"http://{PUBLIC}:{public.port}/a.png"
    response = await api.post(PATH, json=body(url, task="inpaint", mask={"url": url}))
    assert response.status_code == 202, response.text
    spec = (await asyncio.to_thread(hand.claim)).spec
    assert spec.image is not None
    assert spec.mask is not None
    assert public.hits == 2


async def test_nothing_of_a_url_stays_in_redis(api: httpx.AsyncClient, public: Site, redis_client: redis.Redis) -> None:
    await api.post(PATH, json=body(f"http://{PUBLIC}:{public.port}/a.png?token=hidden"))
    for name in redis_client.scan_iter():
        assert b"hidden" not in (redis_client.dump(name) or b""), name


async def test_inside_unknown_and_silent_hosts_read_the_same(
    settings: GatewaySettings, redis_client: redis.Redis, public: Site
) -> None:
    async def redirects(exchange: Exchange) -> None:
        await exchange.answer(302, location=f"http://{INSIDE}:{public.port}/")

    async def hangs(exchange: Exchange) -> None:
        await asyncio.sleep(30)

    async def hangs_up(exchange: Exchange) -> None:
        pass

    public.plays |= {"/redirects": redirects, "/hangs": hangs, "/hangs_up": hangs_up}
    async with site(INSIDE, port=public.port) as inside, site() as closed:
        pass_on = gateway(settings, redis_client, public, closed, timeout_s=0.5)
        port = public.port
        urls = [
            f"http://{INSIDE}:{port}/", f"http://localhost:{port}/", f"http://[::1]:{port}/", "http://169.254.169.254/",
            f"http://[::ffff:127.0.0.1]:{port}/", f"http://[64:ff9b::7f00:1]:{port}/", "http://unknown.invalid/",
            f"http://{PUBLIC}:{port}/redirects", f"http://{PUBLIC}:{port}/hangs", f"http://{PUBLIC}:{port}/hangs_up",
            f"https://{PUBLIC}:{port}/",
        ]  # fmt: skip
        async with pass_on as api:
            told = {url: await refusal(api, url) for url in urls}
    assert len(set(told.values())) == 1, told
    assert inside.hits == 0


async def test_urls_that_are_not_called_say_what_is(api: httpx.AsyncClient) -> None:
    for url, said in {
        "": "text",
        "ftp://example.com/a.png": "must begin with https:// or http://",
        "http://user:secret@example.com/a.png": "no user name",
        "http://127.1/a.png": "IPv4 address in its usual form",
        "http://127.0.0.1:6666\\@1.1.1.1/": "RFC 3986",
        "http://example.com:22/": "one of the ports 80, 443",
        "http://example.com/#part": "fragment",
    }.items():
        assert said in await refusal(api, url), url


async def test_what_is_no_picture_for_us_is_told(api: httpx.AsyncClient, public: Site) -> None:
    async def missing(exchange: Exchange) -> None:
        await exchange.answer(404, b"secret words")

    async def large(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n")

    public.plays |= {
        "/missing": missing,
        "/large": large,
        "/gif": lambda exchange: exchange.answer(200, picture(image_format="gif")),
        "/html": lambda exchange: exchange.answer(200, b"<html>secret words</html>", content_type="image/png"),
    }
    told = {
        name: await refusal(api, f"http://{PUBLIC}:{public.port}/{name}")
        for name in ("missing", "large", "gif", "html")
    }
    assert "it must answer 200" in told["missing"]
    assert told["large"] == "must lead to a picture of at most 16777216 bytes"
    assert told["gif"] == "must be a PNG, JPEG or WebP file; this is a GIF"
    assert told["html"] == "must be a PNG, JPEG or WebP file"


async def test_a_request_that_is_wrong_elsewhere_fetches_nothing(api: httpx.AsyncClient, public: Site) -> None:
    response = await api.post(PATH, json=body(f"http://{PUBLIC}:{public.port}/a.png", steps=0))
    assert response.status_code == 422
    both = {"url": f"http://{PUBLIC}:{public.port}/a.png", "base64": "AAAA"}
    assert (await api.post(PATH, json=body("x", image=both))).status_code == 422
    assert public.hits == 0


async def test_a_repeated_call_fetches_nothing_again(api: httpx.AsyncClient, public: Site) -> None:
    sent, key = body(f"http://{PUBLIC}:{public.port}/a.png"), {"Idempotency-Key": "order-12"}
    first = await api.post(PATH, json=sent, headers=key)
    public.plays.clear()  # what is there now is no picture
    again = await api.post(PATH, json=sent, headers=key)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert again.headers["idempotency-replayed"] == "true"
    assert public.hits == 1
    public.plays["/b.png"] = lambda exchange: exchange.answer(200, picture())
    other = await api.post(PATH, json=body(f"http://{PUBLIC}:{public.port}/b.png"), headers=key)
    assert other.json()["code"] == "idempotency_key_reused"


async def test_a_batch_that_is_refused_anyway_fetches_no_more(api: httpx.AsyncClient, public: Site) -> None:
    public.plays["/none.png"] = lambda exchange: exchange.answer(404)
    url = f"http://{PUBLIC}:{public.port}/none.png"
    response = await api.post(f"{PATH}/batch", json={"requests": [body(url) for _ in range(100)]})
    assert response.status_code == 422
    pointers = [error["pointer"] for error in response.json()["errors"]]
    assert pointers[:8] == [f"/requests/{at}/image/url" for at in range(8)]
    # Those that were on their way end too.
    assert 8 <= public.hits <= 12


async def test_beyond_the_rate_nothing_is_fetched(
    settings: GatewaySettings, redis_client: redis.Redis, public: Site
) -> None:
    key = make_key(redis_client, limits=TenantLimits(max_requests_per_minute=1))
    async with gateway(settings, redis_client, public, key=key) as api:
        sent = body(f"http://{PUBLIC}:{public.port}/a.png")
        statuses = [(await api.post(PATH, json=sent)).status_code for _ in range(3)]
    assert statuses == [202, 429, 429]
    assert public.hits == 1


async def test_slow_servers_of_one_tenant_hold_up_no_other(
    settings: GatewaySettings, redis_client: redis.Redis, public: Site
) -> None:
    answering = asyncio.Event()

    async def hangs(exchange: Exchange) -> None:
        await answering.wait()
        await exchange.answer(200, picture())

    public.plays["/hangs"] = hangs
    other = {"Authorization": f"Bearer {make_key(redis_client, 'other')}"}
    async with gateway(settings, redis_client, public, timeout_s=60, limit=3, tenant_limit=2) as api:
        slow = [
            asyncio.create_task(api.post(PATH, json=body(f"http://{PUBLIC}:{public.port}/hangs"))) for _ in range(5)
        ]
        await public.met(2)
        reply = await api.post(PATH, json=body(f"http://{PUBLIC}:{public.port}/a.png"), headers=other)
        assert reply.status_code == 202
        assert public.hits == 3  # two of the five, and the other's
        answering.set()
        assert {response.status_code for response in await asyncio.gather(*slow)} == {202}


async def test_who_waits_too_long_for_a_turn_is_told_so(
    settings: GatewaySettings, redis_client: redis.Redis, public: Site
) -> None:
    async def hangs(exchange: Exchange) -> None:
        await asyncio.sleep(30)

    public.plays["/hangs"] = hangs
    async with gateway(settings, redis_client, public, timeout_s=0.4, tenant_limit=1) as api:
        sent = body(f"http://{PUBLIC}:{public.port}/hangs")
        replies = await asyncio.gather(*(api.post(PATH, json=sent) for _ in range(4)))
    assert {reply.status_code for reply in replies} == {422, 429}
    (code,) = {reply.json()["code"] for reply in replies if reply.status_code == 429}
    assert code == "limit_reached"


async def test_a_server_that_fetches_as_much_as_it_may_says_so(
    settings: GatewaySettings, redis_client: redis.Redis, public: Site
) -> None:
    answering = asyncio.Event()

    async def hangs(exchange: Exchange) -> None:
        await answering.wait()
        await exchange.answer(200, picture())

    public.plays["/hangs"] = hangs
    url = f"http://{PUBLIC}:{public.port}"
    # One picture of the largest size fits.
    async with gateway(settings, redis_client, public, timeout_s=60, budget_bytes=20 << 20) as api:
        slow = asyncio.create_task(api.post(PATH, json=body(f"{url}/hangs")))
        await public.met(1)
        full = await api.post(PATH, json=body(f"{url}/a.png"))
        assert (full.status_code, full.headers["retry-after"]) == (503, "2")
        answering.set()
        assert (await slow).status_code == 202
        assert (await api.post(PATH, json=body(f"{url}/a.png"))).status_code == 202


async def test_a_fetched_picture_takes_up_room_until_it_is_let_go(public: Site) -> None:
    size, rules = len(picture()), EgressRules(http=True, networks=(ip_network(PUBLIC),), ports=(public.port,))
    limits = PictureLimits(max_bytes=1000, max_side_px=64, max_pixels=4096)
    held = FetchRules(timeout_s=5, at_once=2, tenant_at_once=2, held_bytes=1000 + size - 1)
    egress, url = Egress(rules), f"http://{PUBLIC}:{public.port}/a.png"
    with ThreadPoolExecutor(1) as threads:
        pictures = RemotePictures(egress=egress, rules=held, limits=limits, threads=threads)
        fetched = await pictures.read("acme", url)
        with pytest.raises(Overloaded):
            await pictures.read("acme", url)
        del fetched
        # The thread that looked at it may take a moment to forget it.
        async with asyncio.timeout(10):
            while pictures.held_bytes:  # noqa: ASYNC110 - it says no word
                await asyncio.sleep(0.01)
        with pytest.raises(PictureRefused):
            await pictures.read("acme", f"http://{PUBLIC}:{public.port}/")  # no picture
        assert pictures.held_bytes == 0
    await egress.aclose()
