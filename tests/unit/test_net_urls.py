"""URLs are parsed once and strictly; what two parsers could read differently is refused."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from service.net.urls import UrlRefused, parse_url

PORTS = (80, 443)

REFUSED = [
    # Not a URL, or not one of ours.
    "", "x", "//example.com/", "example.com/a.png", "https:/example.com/", "https:example.com", "https:///a.png",
    "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "data:,x",
    "javascript:alert(1)", "https+unix://x/", "jar:https://example.com!/",
    # Where parsers disagree on the host.
    "https://127.0.0.1:6666\\@1.1.1.1/", "https://1.1.1.1\\@127.0.0.1/", "https://example.com\\.evil.test/",
    "https://good.test@127.0.0.1/", "https://user:pass@example.com/", "https://@example.com/", "https://:@example.com/",
    "https://good.test#@127.0.0.1/", "https://127.0.0.1#@good.test/", "https://good.test?@127.0.0.1#x",
    "https://good.test:443@127.0.0.1/", "https://1.1.1.1 &@127.0.0.1/", "https://good.test:80:443/",
    "https://good.test%2f@127.0.0.1/", "https://127.0.0.1%2f.good.test/", "https://good.test%00.evil.test/",
    "https://[::1]good.test/", "https://good[::1]/", "https://[::1]:443:80/", "https://[[::1]]/", "https://[]/",
    "https://[::1", "https://::1/", "https://[1.2.3.4]/", "https://[v1.x]/", "https://[::1%25eth0]/", "https://[::1%1]/",
    "https://[fe80::1%25lo]/", "https://[::g]/", "https://[1:2:3:4:5:6:7:8:9]/",
    # Characters that are taken away, or turned into others, somewhere.
    " https://example.com/", "https://example.com/ ", "https://exam\tple.com/", "https://example.com/\r\nHost: x",
    "https://example.com/a b.png", "https://example.com/\x00", "https://example.com/\x7f", "https://ex\u00ADample.com/",
    "https://bücher.example/", "https://ｅxample.com/", "https://127。0。0。1/", "https://①②⑦.0.0.1/",
    "https://example.com/ä.png", "https://example.com/\u202e", "https://example.com/%", "https://example.com/%zz",
    "https://example.com/%u0041", 'https://example.com/"', "https://example.com/<x>", "https://example.com/{x}",
    "https://example.com/|", "https://example.com/`", "https://example.com/^", "https://example.com/\u2028",
    # IPv4 in other forms than the one.
    "https://127.1/", "https://127.0.1/", "https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/",
    "https://0x7f.1/", "https://0177.0.0.1/", "https://017700000001/", "https://127.0.0.01/", "https://00127.0.0.1/",
    "https://127.0.0.0x1/", "https://127.0.0.1.5/", "https://256.0.0.1/", "https://0/", "https://0x/", "https://1.2.3/",
    "https://good.test.0x7f/", "https://4294967296/", "https://127.0.0.1./", "https://0X7F.1/",
    # Names that are none.
    "https://example.com./", "https://./", "https://.example.com/", "https://a..b/", "https://-a.example/",
    "https://a-.example/", f"https://{'a' * 64}.example/", f"https://{'a.' * 127}ab/", "https://a,b/", "https://*.a/",
    "https://a'b.test/", "https://(a).test/", "https://a$b.test/", "https://!/", "https://a;b/", "https://a&b/",
    # Ports.
    "https://example.com:/", "https://example.com:22/", "https://example.com:6379/", "https://example.com:0443/",
    "https://example.com:+443/", "https://example.com:443x/", "https://example.com:99999/", "https://example.com:-1/",
    "https://example.com:4_43/", "https://example.com:65979/", "https://example.com:0/", "https://[::1]:/",
    # Fragments, and too much.
    "https://example.com/#x", "https://example.com#", f"https://example.com/{'a' * 4096}",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED, ids=ascii)
def test_confusing_urls_are_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(UrlRefused) as caught:
        parse_url(url, http=False, ports=PORTS)
    assert caught.value.message.startswith("must ")
    assert "127" not in caught.value.message
    assert "good" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "host", "port", "target", "authority"),
    [
        ("https://example.com", "example.com", 443, "/", "example.com"),
        ("HTTPS://EXAMPLE.com/A.png", "example.com", 443, "/A.png", "example.com"),
        ("https://example.com?a=b", "example.com", 443, "/?a=b", "example.com"),
        ("https://example.com:443/x", "example.com", 443, "/x", "example.com"),
        ("https://example.com:80/x", "example.com", 80, "/x", "example.com:80"),
        ("https://xn--bcher-kva.example/%C3%A4", "xn--bcher-kva.example", 443, "/%C3%A4", "xn--bcher-kva.example"),
        ("https://a_b.c-d.example/", "a_b.c-d.example", 443, "/", "a_b.c-d.example"),
        ("https://1.1.1.1/", "1.1.1.1", 443, "/", "1.1.1.1"),
        ("https://[2606:4700:0::1111]/x", "2606:4700::1111", 443, "/x", "[2606:4700::1111]"),
        ("https://[::FFFF:127.0.0.1]:80/", "::ffff:7f00:1", 80, "/", "[::ffff:7f00:1]:80"),
        ("https://h/a?X-Amz-Signature=0f&b[]=c@d:e/f?g", "h", 443, "/a?X-Amz-Signature=0f&b[]=c@d:e/f?g", "h"),
        ("https://1e3.example/../x//y", "1e3.example", 443, "/../x//y", "1e3.example"),
    ],
)
def test_usual_urls_are_taken_apart(url: str, host: str, port: int, target: str, authority: str) -> None:
    destination = parse_url(url, http=False, ports=PORTS)
    assert (destination.host, destination.port, destination.target) == (host, port, target)
    assert destination.authority == authority


def test_an_address_is_known_as_one_and_a_name_is_not() -> None:
    assert parse_url("https://[::1]/", http=False, ports=PORTS).address == ip_address("::1")
    assert parse_url("https://127.0.0.1/", http=False, ports=PORTS).address == ip_address("127.0.0.1")
    assert parse_url("https://localhost/", http=False, ports=PORTS).address is None


def test_http_and_other_ports_are_for_the_operator_to_allow() -> None:
    assert parse_url("http://example.com/", http=True, ports=PORTS).port == 80
    assert parse_url("https://example.com:8443/", http=False, ports=(*PORTS, 8443)).authority == "example.com:8443"
    with pytest.raises(UrlRefused, match="80, 443, 8443"):
        parse_url("https://example.com:22/", http=False, ports=(*PORTS, 8443))
