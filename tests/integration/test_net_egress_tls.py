"""Calls over TLS: the certificate has to be of the name in the URL, also though only the checked address is called."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import ssl
from ipaddress import ip_network
from pathlib import Path

import pytest

from service.net.egress import Egress, EgressFailed, EgressRules, Reply
from tests.certificates import Authority
from tests.sites import INSIDE, PUBLIC, Exchange, Names, Site, rules_for, site

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def believing(authority: Authority, *sites: Site, http: bool = False) -> EgressRules:
    return dataclasses.replace(rules_for(*sites, http=http), ca_file=authority.file)


async def fetched(client: Egress, url: str) -> bytes:
    try:
        return await client.fetch(url, max_bytes=1000, deadline_s=10)
    finally:
        await client.aclose()


async def reason(client: Egress, url: str) -> str:
    with pytest.raises(EgressFailed) as caught:
        await fetched(client, url)
    return caught.value.reason


async def test_the_name_of_the_url_is_asked_for_and_checked(authority: Authority) -> None:
    asked: list[str | None] = []
    context = authority.server("good.test", PUBLIC)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with site(tls=context) as place:
        rules, names = believing(authority, place), Names(good_test=[[PUBLIC]])
        assert await fetched(Egress(rules, resolve=names.resolve), f"https://good.test:{place.port}/") == b"here"
        assert await fetched(Egress(rules), f"https://{PUBLIC}:{place.port}/") == b"here"
        client = Egress(rules, resolve=Names(good_test=[[PUBLIC]]).resolve)
        assert await client.post(f"https://good.test:{place.port}/", b"x", {}, deadline_s=5) == Reply(200, None)
        await client.aclose()
    assert asked == ["good.test", None, "good.test"]
    assert [each.headers["host"].partition(":")[0] for each in place.exchanges] == ["good.test", PUBLIC, "good.test"]


async def test_a_certificate_of_another_name_is_refused(authority: Authority) -> None:
    async with site(tls=authority.server("other.test")) as place:
        client = Egress(believing(authority, place), resolve=Names(good_test=[[PUBLIC]]).resolve)
        assert await reason(client, f"https://good.test:{place.port}/") == "tls"
        assert await reason(Egress(believing(authority, place)), f"https://{PUBLIC}:{place.port}/") == "tls"
    assert place.exchanges == []


async def test_a_certificate_of_nobody_we_know_is_refused(authority: Authority) -> None:
    async with site(tls=authority.server("good.test")) as place:
        client = Egress(rules_for(place, http=False), resolve=Names(good_test=[[PUBLIC]]).resolve)
        assert await reason(client, f"https://good.test:{place.port}/") == "tls"
    assert place.exchanges == []


async def test_a_server_without_tls_is_refused(authority: Authority) -> None:
    async with site(greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n") as place:
        client = Egress(believing(authority, place), resolve=Names(good_test=[[PUBLIC]]).resolve)
        assert await reason(client, f"https://good.test:{place.port}/") == "tls"
    assert (place.hits, place.exchanges) == (1, [])


async def test_a_handshake_that_hangs_leaves_no_connection_behind(authority: Authority) -> None:
    ended = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # to the end
        ended.set()
        writer.close()

    gc.disable()  # which would close it sooner or later
    try:
        server = await asyncio.start_server(listen, PUBLIC)
        port = server.sockets[0].getsockname()[1]
        client = Egress(EgressRules(networks=(ip_network(f"{PUBLIC}/32"),), ports=(port,)))
        with pytest.raises(EgressFailed, match="timeout"):
            await client.fetch(f"https://{PUBLIC}:{port}/", max_bytes=10, deadline_s=0.3)
        await asyncio.wait_for(ended.wait(), 5)
        server.close()
        await client.aclose()
    finally:
        gc.enable()


async def test_a_redirect_never_leads_out_of_tls(authority: Authority) -> None:
    async with (
        site() as plain,
        site(tls=authority.server("good.test")) as place,
        site(INSIDE, port=plain.port) as inside,
    ):

        async def down(exchange: Exchange) -> None:
            await exchange.answer(302, location=f"http://plain.test:{plain.port}/")

        async def up(exchange: Exchange) -> None:
            await exchange.answer(302, location=f"https://good.test:{place.port}/")

        place.plays["/down"] = down
        plain.plays["/up"] = up
        names = Names(good_test=[[PUBLIC]], plain_test=[[PUBLIC]])
        rules = believing(authority, place, plain, http=True)
        assert await reason(Egress(rules, resolve=names.resolve), f"https://good.test:{place.port}/down") == "redirect"
        assert plain.hits == 0
        assert await fetched(Egress(rules, resolve=names.resolve), f"http://plain.test:{plain.port}/up") == b"here"
    assert inside.hits == 0


async def test_the_environment_changes_nothing(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(tls=authority.server("good.test")) as place, site(INSIDE) as inside:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://{INSIDE}:{inside.port}")
        client = Egress(believing(authority, place), resolve=Names(good_test=[[PUBLIC]]).resolve)
        assert await fetched(client, f"https://good.test:{place.port}/") == b"here"
    assert inside.hits == 0


def test_a_file_that_holds_no_certificates_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "none.pem"
    file.write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        Egress(EgressRules(ca_file=file))
