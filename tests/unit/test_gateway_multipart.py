"""Forms with files: what is a part, what is refused, and how long a hostile one takes."""

from __future__ import annotations

import contextlib
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.multipart import MAX_HEAD_BYTES, MAX_PARTS, FormPart, boundary_of, parse_parts
from service.contract.errors import MalformedRequest, UnsupportedMedia

BOUNDARY = b"b0"
DISPOSITION = b'Content-Disposition: form-data; name="image"'


def form(*parts: bytes, end: bytes = b"--b0--\r\n") -> bytes:
    """Parts with their headers, between boundaries."""
    return b"".join(b"--b0\r\n" + part + b"\r\n" for part in parts) + end


def part(head: bytes = DISPOSITION, data: bytes = b"x") -> bytes:
    return head + b"\r\n\r\n" + data


def parsed(body: bytes) -> list[FormPart]:
    return parse_parts(body, BOUNDARY)


def test_parts_are_told_in_order_with_their_types() -> None:
    body = form(
        part(b'content-disposition: form-data; name="request"\r\nContent-Type: application/json; charset=utf-8', b"{}"),
        part(
            b'Content-Disposition: form-data; name=image; filename="a \\" b.png"\r\ncontent-type: image/PNG', b"\r\n--b"
        ),
        part(b"Content-Disposition: form-data; filename*=UTF-8''%e2%82%ac.png; name=\"mask\"; filename=x", b""),
    )
    assert parsed(body) == [
        FormPart("request", "application/json", b"{}"),
        FormPart("image", "image/png", b"\r\n--b"),
        FormPart("mask", None, b""),
    ]
    assert parsed(body.removesuffix(b"\r\n")) == parsed(body)


@given(st.lists(st.tuples(st.sampled_from(["request", "image", "mask"]), st.binary(max_size=300)), max_size=MAX_PARTS))
def test_what_httpx_sends_is_what_is_read(parts: list[tuple[str, bytes]]) -> None:
    sent = httpx.Request("POST", "http://x", files=[(name, ("a.bin", data)) for name, data in parts] or {"a": b""})
    read = parse_parts(sent.read(), boundary_of(sent.headers["content-type"]))
    assert [(each.name, each.data) for each in read] == (parts or [("a", b"")])


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=------------------------d74496d66958873e", b"-" * 24 + b"d74496d66958873e"),
        (
            "Multipart/Form-Data;boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
            b"----WebKitFormBoundary7MA4YWxkTrZu0gW",
        ),
        ('multipart/form-data; boundary="a b:c"', b"a b:c"),
    ],
)
def test_boundaries_of_usual_clients_are_taken(content_type: str, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        'multipart/form-data; boundary="a "',
        f"multipart/form-data; boundary={'a' * 71}",
        "multipart/form-data; boundary=a; boundary=b",
        "multipart/form-data; boundary=a; charset=utf-16",
        "multipart/form-data; boundary=a\u00e9",
        "multipart/form-data; boundary=a\r\nb",
        "multipart/mixed; boundary=a",
    ],
)
def test_other_content_types_are_refused(content_type: str) -> None:
    with pytest.raises(UnsupportedMedia):
        boundary_of(content_type)


HOSTILE = {
    "nothing": b"",
    "no boundary": b"hello",
    "another boundary": form(part()).replace(b"b0", b"b1"),
    "text before": b"preamble\r\n" + form(part()),
    "text after": form(part()) + b"more",
    "a second form after": form(part()) * 2,
    "no last boundary": form(part(), end=b""),
    "half of the last boundary": form(part(), end=b"--b0-"),
    "a boundary that goes on": form(part(), end=b"--b0x"),
    "a boundary with spaces": form(part(), end=b"--b0 \r\n" + part() + b"\r\n--b0--"),
    "bare line feeds": form(part()).replace(b"\r\n", b"\n"),
    "cut off in the headers": b"--b0\r\n" + DISPOSITION,
    "no headers": form(b"\r\nx"),
    "no disposition": form(part(b"Content-Type: text/plain")),
    "another disposition": form(part(b'Content-Disposition: attachment; name="image"')),
    "no name": form(part(b"Content-Disposition: form-data")),
    "two names": form(part(DISPOSITION + b'; name="mask"')),
    "a name without its end": form(part(b'Content-Disposition: form-data; name="image')),
    "text after the name": form(part(DISPOSITION + b" mask")),
    "two dispositions": form(part(DISPOSITION + b"\r\n" + DISPOSITION)),
    "two types": form(part(DISPOSITION + b"\r\nContent-Type: a/b\r\ncontent-type: c/d")),
    "a folded header": form(part(b"Content-Disposition: form-data;\r\n name=image")),
    "a header without a colon": form(part(DISPOSITION + b"\r\nhello")),
    "a header with a space before its colon": form(part(b"Content-Disposition : form-data; name=image")),
    "a header with a NUL": form(part(DISPOSITION + b"\r\nX-A: a\0b")),
    "a bare carriage return": form(part(DISPOSITION + b"\r\nX-A: a\rb")),
    "an encoded part": form(part(DISPOSITION + b"\r\nContent-Transfer-Encoding: base64")),
    "many headers": form(part(DISPOSITION + b"".join(b"\r\nX-%d: a" % n for n in range(8)))),
    "a huge header": form(part(DISPOSITION + b"\r\nX-A: " + b"a" * MAX_HEAD_BYTES)),
    "many parts": form(*[part()] * (MAX_PARTS + 1)),
    "10 000 parts": form(*[part()] * 10_000),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_forms_are_refused_without_being_quoted(body: bytes) -> None:
    with pytest.raises(MalformedRequest) as caught:
        parsed(body)
    assert len(caught.value.message) < 100
    assert "hello" not in caught.value.message


@pytest.mark.parametrize("unit", [b"\r\n--b", b"\r\n", b"-", b"\r\n\r\n", b"--b0", b'name="a'])
def test_a_large_form_takes_no_longer_than_its_length(unit: bytes) -> None:
    body = form(part(data=unit * (20_000_000 // len(unit))))
    started = time.process_time()
    assert len(parsed(body)) == 1
    assert time.process_time() - started < 1


@pytest.mark.parametrize("unit", [b'; a="', b"; a=b", b"\\", b'"', b'; a="\\\\', b" ", b"="])
def test_a_strange_disposition_takes_no_longer_than_its_length(unit: bytes) -> None:
    head = b"Content-Disposition: form-data; name=image" + unit * ((MAX_HEAD_BYTES - 50) // len(unit))
    started = time.process_time()
    with contextlib.suppress(MalformedRequest):
        parsed(form(part(head)))
    assert time.process_time() - started < 0.2
