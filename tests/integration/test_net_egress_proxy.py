"""An egress proxy makes the connections: names are its to look up, forms and literal addresses stay ours to refuse."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.net.egress import Egress, EgressFailed, EgressRules
from service.net.urls import UrlRefused
from tests.certificates import Authority
from tests.sites import INSIDE, PUBLIC, Exchange, Names, Site, rules_for, site

pytestmark = pytest.mark.anyio


@pytest.fixture
async def proxy() -> AsyncIterator[Site]:
    async with site(INSIDE) as place:
        yield place


def by_proxy(rules: EgressRules, proxy: Site) -> Egress:
    url = f"http://egress:p%40ss@{INSIDE}:{proxy.port}"
    return Egress(dataclasses.replace(rules, proxy=url), resolve=Names().resolve)


async def test_what_is_not_encrypted_is_asked_of_the_proxy_in_whole(proxy: Site) -> None:
    proxy.plays["http://good.test:80/a.png?b"] = lambda exchange: exchange.answer(200, b"by proxy")
    client = by_proxy(EgressRules(http=True), proxy)
    got = await client.fetch("http://good.test/a.png?b", max_bytes=100, deadline_s=5)
    assert (proxy.exchanges[0].line, got) == ("GET http://good.test:80/a.png?b HTTP/1.1", b"by proxy")
    credentials = base64.b64encode(b"egress:p@ss").decode()
    assert proxy.exchanges[0].headers["proxy-authorization"] == f"Basic {credentials}"
    assert proxy.exchanges[0].headers["host"] == "good.test"
    await client.aclose()


async def test_what_is_encrypted_goes_through_a_tunnel(proxy: Site, tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async def tunnel(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")
        reader, writer = await asyncio.open_connection(PUBLIC, place.port)
        await asyncio.gather(pump(exchange._reader, writer), pump(reader, exchange._writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)
        writer.close()

    async with site(tls=authority.server("good.test")) as place:
        proxy.plays["good.test:443"] = tunnel
        client = by_proxy(dataclasses.replace(rules_for(place), ca_file=authority.file), proxy)
        assert await client.fetch("https://good.test/", max_bytes=100, deadline_s=5) == b"here"
        await client.aclose()
    assert proxy.exchanges[0].line == "CONNECT good.test:443 HTTP/1.1"
    assert "proxy-authorization" not in place.exchanges[0].headers


async def test_a_proxy_that_refuses_is_a_failed_connection(proxy: Site) -> None:
    proxy.plays["good.test:443"] = lambda exchange: exchange.answer(403)
    client = by_proxy(EgressRules(), proxy)
    with pytest.raises(EgressFailed) as caught:
        await client.fetch("https://good.test/", max_bytes=100, deadline_s=5)
    assert caught.value.reason == "connect"
    await client.aclose()


async def test_the_proxy_is_not_asked_for_addresses_inside_and_confusing_urls(proxy: Site) -> None:
    client = by_proxy(EgressRules(http=True), proxy)
    for host in ("127.0.0.1", "[::1]", "169.254.169.254", "[64:ff9b::7f00:1]", "127.1", "a@b.test", "x.test:22"):
        with pytest.raises((EgressFailed, UrlRefused)):
            await client.fetch(f"http://{host}/", max_bytes=100, deadline_s=5)
    assert proxy.hits == 0
    await client.aclose()
