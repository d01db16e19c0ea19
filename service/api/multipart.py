"""`multipart/form-data` (RFC 7578) as this API takes it: a few whole parts, which no two parsers cut differently.

Of python-multipart and its like nothing is used: they stream, and let pass what this refuses: text before the first
boundary or after the last, a boundary that goes on, no last one, repeated and folded headers. Each is looked for
with `bytes.find`, a bounded number of times, so that no body takes longer than its length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from service.contract.errors import MalformedRequest, UnsupportedMedia

#: A request has three; the rest is there to be told of.
MAX_PARTS = 8
#: Bytes of a part's headers. File names, which count for nothing here, may be long.
MAX_HEAD_BYTES = 2048
_MAX_HEADERS = 8

#: RFC 2046 §5.1.1; no other parameter.
_CONTENT_TYPE = re.compile(
    r"multipart/form-data[ \t]*;[ \t]*boundary=(?:\"(?P<quoted>[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-])\""
    r"|(?P<token>[0-9A-Za-z'+_.-]{1,70}))[ \t]*",
    re.IGNORECASE,
)
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_PARAMETER = re.compile(r";[ \t]*([A-Za-z]+\*?)=(?:\"((?:[^\"\\]|\\.)*)\"|([^\s;\"]+))[ \t]*")


@dataclass(frozen=True, slots=True)
class FormPart:
    """One part. Its file name is not kept: it says nothing that is true of the file."""

    name: str
    #: Lower case, without parameters; None where the part does not say.
    media_type: str | None
    data: bytes


def is_multipart(content_type: str) -> bool:
    """Tell whether a Content-Type is that of a form with files, whatever its boundary."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a Content-Type names; raises `UnsupportedMedia` where that is not its one parameter."""
    found = _CONTENT_TYPE.fullmatch(content_type.strip())
    if found is None:
        raise UnsupportedMedia("multipart/form-data needs the parameter boundary, of 1 to 70 characters, and no other.")
    return (found["quoted"] or found["token"]).encode("ascii")


def parse_parts(body: bytes, boundary: bytes) -> list[FormPart]:
    """Return the parts of a body in order; raises `MalformedRequest` saying what is wrong, not where or what it was."""
    delimiter = b"--" + boundary
    if not body.startswith(delimiter):
        raise MalformedRequest("The body does not begin with the boundary that Content-Type names.")
    parts: list[FormPart] = []
    at = len(delimiter)
    while body[at : at + 2] == b"\r\n":
        if len(parts) == MAX_PARTS:
            raise MalformedRequest(f"The body has more than {MAX_PARTS} parts.")
        head_end = body.find(b"\r\n\r\n", at, at + MAX_HEAD_BYTES + 4)
        if head_end < 0:
            raise MalformedRequest(f"A part has no end of its headers within {MAX_HEAD_BYTES} bytes.")
        end = body.find(b"\r\n" + delimiter, head_end + 4)
        if end < 0:
            raise MalformedRequest("The body does not end with its boundary: it is cut off.")
        parts.append(_part(body[at + 2 : head_end], body[head_end + 4 : end]))
        at = end + 2 + len(delimiter)
    if body[at:] not in {b"--", b"--\r\n"}:
        raise MalformedRequest("A boundary is neither followed by a part nor the end of the body.")
    return parts


def _part(head: bytes, data: bytes) -> FormPart:
    headers: dict[str, str] = {}
    lines = head.split(b"\r\n")
    if len(lines) > _MAX_HEADERS:
        raise MalformedRequest(f"A part has more than {_MAX_HEADERS} headers.")
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise MalformedRequest("A part has a header that is none, or that goes over several lines.")
        name = found[1].decode("ascii").lower()
        if name in headers:
            raise MalformedRequest("A part has a header twice.")
        headers[name] = found[2].decode("latin-1").strip()
    if headers.get("content-transfer-encoding", "binary").lower() not in {"7bit", "8bit", "binary"}:
        raise MalformedRequest("A part is encoded; send its bytes as they are.")
    content_type = headers.get("content-type")
    media_type = None if content_type is None else content_type.partition(";")[0].strip().lower()
    return FormPart(_name(headers.get("content-disposition", "")), media_type, data)


def _name(disposition: str) -> str:
    """Return the name of a part by its Content-Disposition."""
    kind, _, _ = disposition.partition(";")
    at = len(kind)
    found: dict[str, str] = {}
    while at < len(disposition):
        parameter = _PARAMETER.match(disposition, at)
        if parameter is None or parameter[1].lower() in found:
            break
        found[parameter[1].lower()] = parameter[2] if parameter[2] is not None else parameter[3]
        at = parameter.end()
    if kind.strip().lower() != "form-data" or at < len(disposition) or "name" not in found:
        raise MalformedRequest('A part has no Content-Disposition such as form-data; name="image".')
    return found["name"]
