"""Requests that mean harm, or that a broken client sends: what each is, and what must not happen.

Every case plants `MARKER` in what it sends; no reply may hold it.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from tests.gateway import picture

MARKER = "XYZZYmarker"
#: Bytes that the gateway of these tests takes as a body.
BODY_LIMIT = 256 * 1024

PATH = "/v1/generations"
GENUINE = "{genuine}"
KEY = "{key}"


@dataclass(frozen=True)
class Case:
    """One request. `{genuine}` and `{key}` in its bytes become a generation's id and a valid key."""

    kind: str
    name: str
    body: bytes = b""
    method: str = "POST"
    path: str = PATH
    headers: dict[str, str] = field(default_factory=dict)
    #: The whole request as it goes over the socket, in place of all the rest.
    raw: bytes | None = None
    #: The server may answer with a plain 400 of its HTTP parser.
    parser: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"

    def wire(self) -> bytes:
        """Return the bytes to send."""
        if self.raw is not None:
            return self.raw
        headers = {
            "Host": "gateway",
            "Authorization": f"Bearer {KEY}",
            "Content-Type": "application/json",
            "Content-Length": str(len(self.body)),
            "Connection": "close",
            **self.headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
        return f"{self.method} {self.path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + self.body


def fields(**values: Any) -> bytes:
    return json.dumps({"prompt": f"a {MARKER}", **values}).encode()


def inline(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


def image_to_image(asset: Any) -> bytes:
    return fields(task="image-to-image", image=asset)


def wide_png(width_px: int, height_px: int) -> bytes:
    """Return a PNG whose header claims a size."""
    data = bytearray(picture())
    data[16:24] = width_px.to_bytes(4, "big") + height_px.to_bytes(4, "big")
    return bytes(data)


def bodies(kind: str, **named: bytes) -> list[Case]:
    return [Case(kind, name.replace("_", " "), body) for name, body in named.items()]


def values(kind: str, **named: Any) -> list[Case]:
    """Return cases of a valid request with one field replaced; names are `field__what`."""
    return [Case(kind, name, fields(**{name.partition("__")[0]: value})) for name, value in named.items()]


def raw(kind: str, name: str, text: str, *, parser: bool = True) -> Case:
    return Case(kind, name, raw=text.encode("latin-1"), parser=parser)


def head(*lines: str, first: str = f"POST {PATH} HTTP/1.1") -> str:
    usual = ("Host: gateway", f"Authorization: Bearer {KEY}", "Content-Type: application/json", "Connection: close")
    return "\r\n".join([first, *usual, *lines, "", ""])


_P = MARKER.encode()

CASES: list[Case] = [
    *bodies(
        "malformed JSON",
        cut_off=b'{"prompt": "%s' % _P,
        trailing_comma=b'{"prompt": "%s",}' % _P,
        single_quotes=b"{'prompt': '%s'}" % _P,
        comment=b'{"prompt": "%s" /* x */}' % _P,
        two_documents=b'{"prompt": "%s"}{"prompt": "x"}' % _P,
        raw_newline_in_text=b'{"prompt": "%s\n"}' % _P,
        bad_escape=b'{"prompt": "\\x%s"}' % _P,
        leading_zero=b'{"prompt": "%s", "steps": 012}' % _P,
        hexadecimal=b'{"prompt": "%s", "steps": 0x12}' % _P,
        plus_sign=b'{"prompt": "%s", "steps": +12}' % _P,
        form=b"prompt=%s&steps=4" % _P,
    ),
    *bodies("empty", nothing=b"", spaces=b" \r\n\t ", null_bytes=b"\0\0\0\0"),
    *bodies(
        "not an object",
        array=b'[{"prompt": "%s"}]' % _P,
        text=b'"%s"' % _P,
        number=b"12",
        null=b"null",
        true=b"true",
    ),
    *bodies(
        "names given twice",
        top=b'{"prompt": "%s", "prompt": "b"}' % _P,
        escaped=b'{"prompt": "%s", "\\u0070rompt": "b"}' % _P,
        nested=b'{"prompt": "%s", "labels": {"a": "1", "a": "2"}}' % _P,
    ),
    *bodies(
        "no numbers",
        nan=b'{"prompt": "%s", "eta": NaN}' % _P,
        infinity=b'{"prompt": "%s", "guidance_scale": Infinity}' % _P,
        minus_infinity=b'{"prompt": "%s", "guidance_scale": -Infinity}' % _P,
    ),
    *bodies(
        "numbers beyond a double",
        plus=b'{"prompt": "%s", "guidance_scale": 1e999}' % _P,
        minus=b'{"prompt": "%s", "guidance_scale": -1e999}' % _P,
        unknown_field=b'{"prompt": "%s", "x": 1e400}' % _P,
    ),
    *bodies(
        "huge integers",
        seed_of_27_digits=b'{"prompt": "%s", "seed": %s}' % (_P, b"9" * 27),
        seed_of_5000_digits=b'{"prompt": "%s", "seed": %s}' % (_P, b"9" * 5000),
        exponent=b'{"prompt": "%s", "seed": 1e300}' % _P,
    ),
    *bodies(
        "unpaired surrogates",
        high=b'{"prompt": "%s \\ud800"}' % _P,
        low=b'{"prompt": "%s \\udc00 x"}' % _P,
        in_a_name=b'{"prompt": "%s", "\\ud800": 1}' % _P,
        in_a_label=b'{"prompt": "%s", "labels": {"a": "\\udfff"}}' % _P,
    ),
    *bodies(
        "control characters",
        nul=b'{"prompt": "%s\\u0000"}' % _P,
        escape=b'{"prompt": "%s\\u001b[31m"}' % _P,
        backspace=b'{"prompt": "%s\\b"}' % _P,
        delete=b'{"prompt": "%s\x7f"}' % _P,
        newline_in_label=b'{"prompt": "%s", "labels": {"a": "x\\ny"}}' % _P,
        nul_in_model=b'{"prompt": "%s", "model": "shapes\\u0000"}' % _P,
    ),
    *bodies(
        "deep nesting",
        arrays=b'{"prompt": "%s", "x": %s}' % (_P, b"[" * 100_000 + b"]" * 100_000),
        objects=b'{"prompt": "%s", "x": %s1%s}' % (_P, b'{"a":' * 5000, b"}" * 5000),
        just_too_deep=b'{"prompt": "%s", "x": %s}' % (_P, b"[" * 16 + b"]" * 16),
        unclosed=b"[" * 200_000,
    ),
    *bodies(
        "encodings",
        byte_order_mark=b'\xef\xbb\xbf{"prompt": "%s"}' % _P,
        utf_16=f'{{"prompt": "{MARKER}"}}'.encode("utf-16"),
        latin_1=b'{"prompt": "%s \xe9"}' % _P,
        overlong=b'{"prompt": "%s \xc0\xaf"}' % _P,
        surrogate_in_utf_8=b'{"prompt": "%s \xed\xa0\x80"}' % _P,
    ),
    *[
        Case("content types", name, fields(), headers={"Content-Type": value})
        for name, value in {
            "none": "",
            "text": "text/plain",
            "form": "application/x-www-form-urlencoded",
            "multipart": f"multipart/form-data; boundary={MARKER}",
            "xml": "application/xml",
            "other charset": "application/json; charset=utf-16",
            "json lines": "application/jsonl",
        }.items()
    ],
    *values(
        "wrong types",
        steps__true=True,
        steps__text="12",
        steps__fraction=4.5,
        steps__whole_float=4.0,
        steps__array=[MARKER],
        width__object={MARKER: 1},
        guidance_scale__text="7.5",
        guidance_scale__false=False,
        prompt__number=5,
        prompt__array=[MARKER],
        prompt__null=None,
        seed__text=MARKER,
        labels__array=[MARKER],
        labels__number_value={"a": 1},
        output__text=MARKER,
        image__text=MARKER,
        num_images__true=True,
    ),
    *values(
        "out of range",
        steps__zero=0,
        steps__minus=-1,
        steps__too_many=1001,
        width__zero=0,
        width__odd=65,
        width__minus=-64,
        height__huge=10**9,
        num_images__many=1000,
        seed__minus=-1,
        seed__too_large=2**53,
        guidance_scale__huge=1e9,
        guidance_scale__minus=-1,
        eta__two=2,
        retain_s__short=1,
        retain_s__long=10**12,
        start_within_s__zero=0,
        prompt__long=MARKER * 1000,
    ),
    *values(
        "unknown names",
        model__unknown=MARKER,
        model__path="../../etc/passwd",
        model__hub_id=f"runwayml/{MARKER}",
        scheduler__unknown=MARKER,
        scheduler__class="DDIMScheduler",
        task__unknown=MARKER,
        sigmas__unknown=MARKER,
        priority__unknown=MARKER,
        unknown_field=MARKER,
        __proto__={"a": MARKER},
        callback_url=f"http://169.254.169.254/{MARKER}",
        output__format={"format": MARKER},
    ),
    Case("unknown names", "a thousand unknown fields", fields(**{f"f{n}": MARKER for n in range(1000)})),
    Case("unknown names", "a field of 100 kB", fields(**{"n" * 100_000: MARKER})),
    *values(
        "fields that contradict each other",
        strength__without_a_picture=0.5,
        sigmas__of_ddim="karras",
        output__quality_of_png={"quality": 90, "format": "png"},
        image__in_text_to_image=inline(picture()),
        mask__alone=inline(picture()),
    ),
    Case("fields that contradict each other", "no step is left", image_to_image(inline(picture()))[:-1]
         + b', "steps": 4, "strength": 0.1}'),
    Case("fields that contradict each other", "seed + num_images", fields(seed=2**53 - 1, num_images=2)),
    *[
        Case("pictures", name, image_to_image(asset))
        for name, asset in {
            "url": {"url": f"http://169.254.169.254/{MARKER}"},
            "file url": {"url": f"file:///etc/{MARKER}"},
            "url inside": {"url": f"https://127.0.0.1/{MARKER}"},
            "url of a name that leads inside": {"url": f"https://localhost/{MARKER}"},
            "url inside, in hexadecimal": {"url": f"https://0x7f.1/{MARKER}"},
            "url inside, by NAT64": {"url": f"https://[64:ff9b::7f00:1]/{MARKER}"},
            "url with a login": {"url": f"https://{MARKER}:x@example.com/"},
            "url of two hosts": {"url": f"https://127.0.0.1\\@1.1.1.1/{MARKER}"},
            "url with a line break": {"url": f"https://example.com/\r\nX: {MARKER}"},
            "url of an unknown host": {"url": f"https://unknown.invalid/{MARKER}"},
            "url without end": {"url": f"https://example.com/{MARKER * 5000}"},
            "upload": {"upload_id": MARKER},
            "nothing": {},
            "both": {"base64": "AAAA", "url": MARKER},
            "no base64": {"base64": f"!{MARKER}!"},
            "url-safe base64": {"base64": "_-_-" + MARKER},
            "line breaks": {"base64": "AAAA\nAAAA"},
            "no padding": {"base64": "AAAAA"},
            "data url": {"base64": f"data:image/png;base64,{MARKER}"},
            "not ascii": {"base64": f"é{MARKER}"},
            "text": inline(MARKER.encode()),
            "gif": inline(picture(image_format="gif")),
            "svg": inline(f"<svg>{MARKER}</svg>".encode()),
            "html": inline(f"<html>{MARKER}</html>".encode()),
            "cut off": inline(picture()[:20]),
            "bomb of 60000 × 60000": inline(wide_png(60_000, 60_000)),
            "9000 wide": inline(wide_png(9000, 10)),
            "17 times as long": inline(wide_png(17 * 64, 64)),
            "no width": inline(wide_png(0, 64)),
        }.items()
    ],
    *values(
        "labels",
        labels__too_many={str(n): MARKER for n in range(17)},
        labels__long_value={"a": MARKER * 50},
        labels__long_name={"a" * 64: MARKER},
        labels__empty_name={"": MARKER},
        labels__name_with_spaces={"a b": MARKER},
    ),
    Case("sizes", "a body over the limit", fields(negative_prompt="x" * BODY_LIMIT)),
    Case("sizes", "a declared length over the limit", b"{}", headers={"Content-Length": str(10**12)}),
    Case("sizes", "a declared length of 30 digits", b"{}", headers={"Content-Length": "9" * 30}, parser=True),
    Case(
        "sizes",
        "a chunked body over the limit",
        raw=head("Transfer-Encoding: chunked").encode() + b"ffff\r\n%s\r\n" % (b"x" * 0xFFFF) * 6 + b"0\r\n\r\n",
    ),
    Case("bodies that do not come", "less than declared", b'{"prompt": "x"}', headers={"Content-Length": "1000"}),
    Case("bodies that do not come", "an endless chunk", raw=head("Transfer-Encoding: chunked").encode() + b"ff\r\nxx"),
    *[
        Case("credentials", name, fields(), headers={"Authorization": value})
        for name, value in {
            "none": "",
            "basic": f"Basic {MARKER}",
            "no key": "Bearer",
            "another form": f"Bearer sk-{MARKER}",
            "unknown key": f"Bearer dk_{'a' * 12}_{'b' * 32}",
            "wrong secret": f"Bearer {KEY[:-1]}",
            "two keys": f"Bearer {KEY}, Bearer {KEY}",
            "huge": f"Bearer {MARKER * 1000}",
            "not ascii": f"Bearer é{MARKER}",
        }.items()
    ],
    *[
        Case("idempotency keys", name, fields(), headers={"Idempotency-Key": value})
        for name, value in {"long": MARKER * 50, "not ascii": f"é{MARKER}", "blank": " \t"}.items()
    ],
    Case("idempotency keys", "two", raw=head("Content-Length: 2", "Idempotency-Key: a", f"Idempotency-Key: {MARKER}")
         .encode() + b"{}"),
    *[
        Case("media types", accept, fields(), headers={"Accept": accept})
        for accept in ("text/html", "image/gif", f"application/{MARKER}", "application/json;q=0",
                       "image/png;q=0, */*;q=0")
    ],
    Case("media types", "several pictures as one", fields(num_images=2), headers={"Accept": "image/png"}),
    Case("media types", "another format", fields(output={"format": "jpeg"}), headers={"Accept": "image/png"}),
    *[
        Case("paths", path, method=method, path=path)
        for method, path in [
            ("GET", f"/{MARKER}"),
            ("GET", f"/v1/generations/{MARKER}"),
            ("GET", f"/v1/generations/gen_{'0' * 40}"),
            ("GET", "/v1/generations/%00"),
            ("GET", "/v1/generations/..%2f..%2fetc%2fpasswd"),
            ("GET", f"/v1/generations/{GENUINE}%0a"),
            ("GET", "/v1/generations//"),
            ("GET", "/v1/generations/"),
            ("GET", f"/v1/generations/{GENUINE}/images/-1"),
            ("GET", f"/v1/generations/{GENUINE}/images/99999999999999999999"),
            ("GET", f"/v1/generations/{GENUINE}/images/{MARKER}"),
            ("GET", f"/v1/models/{MARKER}"),
            ("GET", "/v1/models/..%2fshapes"),
            ("GET", "/v1/models/%ff%fe"),
            ("POST", f"/v1/generations/{MARKER}/cancel"),
            ("DELETE", f"/v1/generations/{'g' * 5000}"),
        ]
    ],
    *[
        Case("queries", query, method="GET", path=f"{PATH}?{query}")
        for query in (
            f"limit={MARKER}", "limit=0", "limit=1e3", "limit=-1", "limit=99999999999999999999", "limit=1&limit=2",
            f"status={MARKER}", f"cursor={MARKER}", "cursor=-1", "cursor=1e5-x", f"cursor=9999999999999999-{MARKER}",
            f"state={MARKER}", "label.a=1&label.a=2", "limit=%EF%BC%91", "cursor=" + "1" * 1000,
        )
    ],
    Case("queries", "inline", method="GET", path=f"{PATH}/{GENUINE}/images/0?inline={MARKER}"),
    *[
        Case("methods", f"{method} {path}", method=method, path=path)
        for method, path in [
            ("PUT", PATH), ("PATCH", f"{PATH}/{GENUINE}"), ("DELETE", PATH), ("TRACE", PATH), ("OPTIONS", PATH),
            ("POST", f"{PATH}/{GENUINE}"), ("GET", f"{PATH}/{GENUINE}/cancel"), ("POST", "/healthz"),
        ]
    ],
    Case("bodies where none belongs", "fields for cancel", b'{"why": "%s"}' % _P, path=f"{PATH}/{GENUINE}/cancel"),
    Case("bodies where none belongs", "text for cancel", _P, path=f"{PATH}/{GENUINE}/cancel"),
    raw("HTTP itself", "two lengths", head("Content-Length: 2", "Content-Length: 3") + "{}"),
    raw("HTTP itself", "a length that is no number", head(f"Content-Length: {MARKER}") + "{}"),
    raw("HTTP itself", "a negative length", head("Content-Length: -5") + "{}"),
    raw("HTTP itself", "length and chunks", head("Content-Length: 2", "Transfer-Encoding: chunked") + "0\r\n\r\n"),
    raw("HTTP itself", "a chunk size that is no number", head("Transfer-Encoding: chunked") + f"{MARKER}\r\n"),
    raw("HTTP itself", "a huge chunk size", head("Transfer-Encoding: chunked") + "f" * 20 + "\r\n"),
    raw("HTTP itself", "an unknown transfer encoding", head(f"Transfer-Encoding: {MARKER}") + "{}"),
    raw("HTTP itself", "a header without a colon", head(MARKER)),
    raw("HTTP itself", "a space before the colon", head("Content-Length : 2") + "{}"),
    raw("HTTP itself", "NUL in a header", head(f"X-A: \0{MARKER}")),
    raw("HTTP itself", "a folded header", head(f"X-A: b\r\n {MARKER}", "Content-Length: 2") + "{}"),
    raw("HTTP itself", "a header of a megabyte", head(f"X-A: {MARKER * 95_000}")),
    raw("HTTP itself", "ten thousand headers", head(*[f"X-{n}: {MARKER}" for n in range(40_000)])),
    raw("HTTP itself", "a path of a megabyte", head(first=f"GET /{'x' * 1_000_000} HTTP/1.1")),
    raw("HTTP itself", "another protocol", f"\x16\x03\x01\x02\x00\x01{MARKER}\r\n\r\n"),
    raw("HTTP itself", "an unknown method", head(first=f"{MARKER} / HTTP/1.1")),
    raw("HTTP itself", "an unknown version", head(first=f"GET /{MARKER} HTTP/9.9")),
]  # fmt: skip
