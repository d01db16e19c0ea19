"""Calls to URLs of callers, over real sockets: nothing inside is ever reached, and nobody holds us up."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.net.egress import Egress, EgressFailed, EgressRules, Reply
from service.net.urls import UrlRefused
from tests.sites import INSIDE, PUBLIC, Exchange, Names, Site, rules_for, site

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def egress(rules: EgressRules, names: Names | None = None, now_s: float = 0.0) -> AsyncIterator[Egress]:
    client = Egress(rules, resolve=(names or Names()).resolve, now_s=lambda: now_s)
    try:
        yield client
    finally:
        await client.aclose()


async def fetched(client: Egress, url: str, *, max_bytes: int = 1000, deadline_s: float = 10) -> bytes:
    return await client.fetch(url, max_bytes=max_bytes, deadline_s=deadline_s)


async def reason(client: Egress, url: str, *, max_bytes: int = 1000, deadline_s: float = 10) -> str:
    with pytest.raises(EgressFailed) as caught:
        await fetched(client, url, max_bytes=max_bytes, deadline_s=deadline_s)
    return caught.value.reason


@pytest.fixture
async def public() -> AsyncIterator[Site]:
    async with site() as place:
        yield place


@pytest.fixture
async def inside(public: Site) -> AsyncIterator[Site]:
    """A server on loopback, at the port that the rules allow."""
    async with site(INSIDE, port=public.port) as place:
        yield place


#: By literal or by name, and in every form that some library takes for an address of this machine.
INNER_HOSTS = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "0", "0.0.0.0",
    "127.0.0.1.", "localhost", "localhost.", "LOCALHOST", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[::ffff:0:127.0.0.1]",
    "[::1%25lo]", "１２７.0.0.1", "127。0。0。1", "good.test@127.0.0.1", "good.test:80\\@127.0.0.1",
    "127.0.0.1\\@good.test", "127.0.0.1#@good.test", "inner.test", "both.test", "mixed.test", "good.test%40127.0.0.1",
]  # fmt: skip


def inner_names() -> Names:
    return Names(
        localhost=[[INSIDE, "::1"]],
        LOCALHOST=[[INSIDE]],
        inner_test=[[INSIDE]],
        both_test=[["::1", INSIDE]],
        mixed_test=[[PUBLIC, INSIDE]],
        good_test=[[PUBLIC]],
    )


@pytest.mark.parametrize("host", INNER_HOSTS, ids=ascii)
async def test_nothing_inside_is_reached(public: Site, inside: Site, host: str) -> None:
    async with egress(rules_for(public), inner_names()) as client:
        for url in (f"http://{host}:{public.port}/", f"http://{host}/"):
            with pytest.raises((EgressFailed, UrlRefused)):
                await fetched(client, url)
            with pytest.raises((EgressFailed, UrlRefused)):
                await client.post(url, b"{}", {}, deadline_s=5)
    assert inside.hits == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "inner.test", "mixed.test"])
async def test_what_is_inside_would_have_answered(public: Site, inside: Site, host: str) -> None:
    rules = rules_for(public, networks=("127.0.0.0/8", "::1/128"))
    async with egress(rules, Names(**{**inner_names().answers, "mixed_test": [[INSIDE, PUBLIC]]})) as client:
        assert await fetched(client, f"http://{host}:{public.port}/") == b"here"
    assert inside.hits == 1


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "100.100.100.200", "168.63.129.16", "169.254.169.254", "172.16.0.1", "192.0.0.192", "192.88.99.1",
     "192.168.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "fd00:ec2::254", "fe80::1", "fe80::1%eth0",
     "fec0::1", "ff02::1", "3fff::1", "5f00::1", "2001:db8::1", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::",
     "::ffff:169.254.169.254"],
)  # fmt: skip
async def test_a_name_with_one_special_address_is_not_called_at_all(public: Site, address: str) -> None:
    names = Names(first_test=[[address, PUBLIC]], last_test=[[PUBLIC, address]])
    async with egress(rules_for(public), names) as client:
        assert await reason(client, f"http://first.test:{public.port}/") == "address"
        assert await reason(client, f"http://last.test:{public.port}/") == "address"
    assert public.hits == 0


async def test_a_name_is_looked_up_once_and_called_where_it_led_then(public: Site, inside: Site) -> None:
    names = Names(rebinding_test=[[PUBLIC], [INSIDE]])
    async with egress(rules_for(public), names) as client:
        assert await fetched(client, f"http://rebinding.test:{public.port}/") == b"here"
        assert names.asked == ["rebinding.test"]
        assert public.exchanges[0].headers["host"] == f"rebinding.test:{public.port}"
        assert await reason(client, f"http://rebinding.test:{public.port}/") == "address"
    assert (public.hits, inside.hits) == (1, 0)


async def test_a_redirect_is_looked_up_and_checked_anew(public: Site, inside: Site) -> None:
    names = Names(good_test=[[PUBLIC], [INSIDE]])

    async def again(exchange: Exchange) -> None:
        await exchange.answer(302, location="/picture.png")

    public.plays["/"] = again
    async with egress(rules_for(public), names) as client:
        assert await reason(client, f"http://good.test:{public.port}/") == "address"
    assert (public.hits, inside.hits, names.asked) == (1, 0, ["good.test", "good.test"])


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://127.0.0.1:{port}/", "address"),
        ("//127.0.0.1:{port}/", "address"),
        ("http://[::1]:{port}/", "address"),
        ("http://127.1:{port}/", "redirect"),
        ("http://inner.test:{port}/", "address"),
        ("http://good.test:{port}@127.0.0.1:{port}/", "redirect"),
        ("http://127.0.0.1:{port}\\@good.test/", "redirect"),
        ("http://good.test:22/", "redirect"),
        ("file:///etc/passwd", "redirect"),
        ("gopher://127.0.0.1:{port}/", "redirect"),
        ("https:///x", "redirect"),
        ("http://[::1", "redirect"),
        ("\u00e4", "redirect"),
        ("", "redirect"),
        ("/loop", "redirect"),
    ],
)
async def test_redirects_lead_nowhere_inside(public: Site, inside: Site, location: str, expected: str) -> None:
    async def go(exchange: Exchange) -> None:
        await exchange.answer(302, location=location.format(port=public.port))

    public.plays |= {"/": go, "/loop": go}
    async with egress(rules_for(public), inner_names()) as client:
        assert await reason(client, f"http://good.test:{public.port}/") == expected
    assert inside.hits == 0
    assert public.hits <= 4


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_three_redirects_are_followed_and_a_fourth_is_not(public: Site, status: int) -> None:
    def to(path: str):
        async def go(exchange: Exchange) -> None:
            await exchange.answer(status, location=path)

        return go

    public.plays |= {"/4": to("/3"), "/3": to("2#part"), "/2": to(f"http://{PUBLIC}:{public.port}/1"), "/1": to("/")}
    async with egress(rules_for(public)) as client:
        assert await fetched(client, f"http://{PUBLIC}:{public.port}/3") == b"here"
        assert await reason(client, f"http://{PUBLIC}:{public.port}/4") == "redirect"
    assert public.hits == 8


async def test_a_post_is_sent_whole_and_its_redirect_is_no_success(public: Site, inside: Site) -> None:
    async def go(exchange: Exchange) -> None:
        await exchange.answer(307, location=f"http://{INSIDE}:{public.port}/")

    public.plays["/hook?a=b"] = go
    async with egress(rules_for(public), Names(good_test=[[PUBLIC]])) as client:
        url = f"http://good.test:{public.port}/hook?a=b"
        reply = await client.post(url, b'{"a": 1}', {"webhook-id": "evt_1", "Content-Type": "x/y"}, deadline_s=5)
    exchange = public.exchanges[0]
    assert reply == Reply(307, None)
    assert (exchange.line, exchange.body) == ("POST /hook?a=b HTTP/1.1", b'{"a": 1}')
    sent = {
        name: exchange.headers.get(name) for name in ("host", "webhook-id", "content-type", "accept-encoding", "cookie")
    }
    assert sent == {
        "host": f"good.test:{public.port}",
        "webhook-id": "evt_1",
        "content-type": "x/y",
        "accept-encoding": "identity",
        "cookie": None,
    }
    assert inside.hits == 0


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [("120", 120), (" 7 ", 7), ("Thu, 01 Jan 1970 00:02:00 GMT", 20), ("Thu, 01 Jan 1970 00:00:01 GMT", 0),
     ("99999999999999999999999", 604_800), ("soon", None), ("-5", None), ("", None), ("1.5", None), ("٣", None),
     ("Thu, 99 Jan 1970 00:02:00 GMT", None)],
)  # fmt: skip
async def test_retry_after_is_read_in_both_forms(public: Site, retry_after: str, seconds: int | None) -> None:
    async def wait(exchange: Exchange) -> None:
        await exchange.answer(503, retry_after=retry_after)

    public.plays["/"] = wait
    async with egress(rules_for(public), now_s=100.0) as client:
        reply = await client.post(f"http://{PUBLIC}:{public.port}/", b"", {}, deadline_s=5)
    assert reply == Reply(503, seconds)


async def endless(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await exchange.send(b"x" * 65536)


async def trickle_head(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.send(b"x: y\r\n")
        await asyncio.sleep(0.01)


async def trickle_body(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n")
    while True:
        await exchange.send(b"x")
        await asyncio.sleep(0.05)


async def informs(exchange: Exchange) -> None:
    while True:
        await exchange.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await asyncio.sleep(0.01)


async def informs_fast(exchange: Exchange) -> None:
    while True:
        await exchange.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000)


async def crumbs(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await exchange.send(b"1\r\nx\r\n" * 1000)


async def switches(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n" + b"x" * 1000)


async def silence(exchange: Exchange) -> None:
    await asyncio.sleep(60)


async def heads(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.send(b"x: " + b"y" * 65536)


async def bomb(exchange: Exchange) -> None:
    await exchange.answer(200, gzip.compress(bytes(10_000_000)), content_encoding="gzip")


async def announces(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999999999\r\n\r\n")
    await asyncio.sleep(60)


async def cut_off(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nxxx")


async def hangs_up(exchange: Exchange) -> None:
    pass


async def talks_other(exchange: Exchange) -> None:
    await exchange.send(b"220 mail.example ESMTP\r\n")


async def not_found(exchange: Exchange) -> None:
    await exchange.answer(404, b"secret words of a server inside")


@pytest.mark.parametrize(
    ("play", "expected"),
    [
        (endless, "too_large"),
        (announces, "too_large"),
        (trickle_head, "timeout"),
        (trickle_body, "timeout"),
        (informs, "timeout"),
        (informs_fast, "protocol"),
        (crumbs, "protocol"),
        (switches, "protocol"),
        (silence, "timeout"),
        (heads, "protocol"),
        (bomb, "protocol"),
        (cut_off, "protocol"),
        (hangs_up, "protocol"),
        (talks_other, "protocol"),
        (not_found, "status"),
    ],
)
async def test_bad_servers_are_let_go_in_time(public: Site, play, expected: str) -> None:
    public.plays["/"] = play
    async with egress(rules_for(public)) as client:
        begun_s = time.monotonic()
        assert await reason(client, f"http://{PUBLIC}:{public.port}/", max_bytes=200_000, deadline_s=0.6) == expected
        assert time.monotonic() - begun_s < 3


async def test_a_body_of_just_the_limit_is_taken(public: Site) -> None:
    async def chunks(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n")

    public.plays["/"] = chunks
    async with egress(rules_for(public)) as client:
        assert await fetched(client, f"http://{PUBLIC}:{public.port}/", max_bytes=6) == b"abcdef"
        assert await reason(client, f"http://{PUBLIC}:{public.port}/", max_bytes=5) == "too_large"


@pytest.mark.parametrize("play", [endless, trickle_body, cut_off, crumbs])
async def test_a_receiver_that_talks_on_is_not_listened_to(public: Site, play) -> None:
    public.plays["/"] = play
    async with egress(rules_for(public)) as client:
        begun_s = time.monotonic()
        assert await client.post(f"http://{PUBLIC}:{public.port}/", b"", {}, deadline_s=20) == Reply(200, None)
        assert time.monotonic() - begun_s < 8


async def test_failures_tell_nothing_of_the_url_and_of_the_answer(public: Site) -> None:
    public.plays["/?token=hidden"] = not_found
    async with egress(rules_for(public)) as client:
        with pytest.raises(EgressFailed) as caught:
            await fetched(client, f"http://{PUBLIC}:{public.port}/?token=hidden")
    assert caught.value.status == 404
    assert str(caught.value) == "The call to outside failed: status."
    assert caught.value.__cause__ is None


async def test_names_without_addresses_and_closed_ports_fail(public: Site) -> None:
    names = Names(nothing_test=[[]], odd_test=[["not an address"]], gone_test=[["127.0.0.3", "127.0.0.3"]])
    rules = rules_for(public, networks=("127.0.0.2/31",))
    async with egress(rules, names) as client:
        for host, expected in (("unknown", "dns"), ("nothing", "dns"), ("odd", "dns"), ("gone", "connect")):
            assert await reason(client, f"http://{host}.test:{public.port}/") == expected, host


async def test_the_next_address_is_tried_where_one_does_not_answer(public: Site) -> None:
    names = Names(two_test=[["127.0.0.3", PUBLIC]])
    async with egress(rules_for(public, networks=("127.0.0.2/31",)), names) as client:
        assert await fetched(client, f"http://two.test:{public.port}/") == b"here"


async def test_a_resolver_that_hangs_is_not_waited_for(public: Site) -> None:
    async def never(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    client = Egress(rules_for(public), resolve=never)
    assert await reason(client, "http://slow.test/", deadline_s=0.2) == "timeout"
    await client.aclose()


async def test_the_systems_resolver_leads_to_what_it_knows(public: Site, inside: Site) -> None:
    client = Egress(rules_for(public))
    assert await reason(client, f"http://localhost:{public.port}/") == "address"
    assert inside.hits == 0
    await client.aclose()
    client = Egress(rules_for(public, networks=("127.0.0.0/8", "::1/128")))
    assert await fetched(client, f"http://localhost:{public.port}/") == b"here"
    await client.aclose()


async def test_check_knows_literal_addresses_and_forms_without_asking(public: Site) -> None:
    names = inner_names()
    async with egress(rules_for(public, http=False), names) as client:
        client.check("https://inner.test/hook")
        client.check(f"https://{PUBLIC}/hook")
        for url in ("https://127.0.0.1/", "https://[::1]/", "https://127.1/", "http://good.test/", "https://a@b.test/"):
            with pytest.raises(UrlRefused):
                client.check(url)
    assert names.asked == []
