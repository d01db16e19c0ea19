"""JSON as this API takes it: one object, whose meaning no two parsers disagree about.

Refused, beyond what RFC 8259 refuses: a byte order mark, other encodings than UTF-8, names given twice, NaN and
Infinity, numbers beyond a double, integers of absurd length, unpaired surrogates, control characters other than tab and
line breaks, deep nesting, more values than any request has. No message repeats what was sent.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn, cast

from service.contract.errors import MalformedRequest

#: Levels of nesting; the deepest valid request, a batch, has 5.
MAX_DEPTH = 16
#: Digits of an integer: more than any field takes, and far below what makes Python's own conversion slow.
MAX_DIGITS = 40

#: Values and containers of one body: twice those of a batch of 100 requests with every field and 16 labels each. Each
#: costs microseconds, and without a bound a body of the largest size keeps all other calls waiting for half a minute.
MAX_VALUES = 12_000

#: A string, or what is left of a body from a quote on: possessive, so that no body takes longer than its length.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
#: Unpaired surrogates, and controls except \t \n \r.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_BOM = b"\xef\xbb\xbf"


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; raises `MalformedRequest` saying what is wrong, not where or what it was."""
    if not body.strip(b" \t\r\n"):
        raise MalformedRequest("The body is empty; send a JSON object.")
    if body.startswith(_BOM):
        raise MalformedRequest("The body begins with a byte order mark; send UTF-8 without one.")
    if _has_too_many_values(body):
        raise MalformedRequest(f"The body has more than {MAX_VALUES} values.")
    try:
        value = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise MalformedRequest("The body is not valid UTF-8.") from None
    except json.JSONDecodeError as err:
        raise MalformedRequest(f"The body is not valid JSON: line {err.lineno}, column {err.colno}.") from None
    except RecursionError:
        raise MalformedRequest(f"The body is nested deeper than {MAX_DEPTH} levels.") from None
    if not isinstance(value, dict):
        raise MalformedRequest("The body must be a JSON object.")
    # Without a backslash or DEL no string can hold what `_check_text` looks for: a raw control is no JSON.
    _check(value, 1, texts=b"\\" in body or b"\x7f" in body)
    return cast("dict[str, Any]", value)


def _has_too_many_values(body: bytes) -> bool:
    """Tell whether there are, without reading on behind the last one that may be. What is in strings does not count."""
    if _values(body, 0, len(body)) <= MAX_VALUES:
        return False
    values, at = 0, 0
    for strings, string in enumerate(_STRING.finditer(body)):
        values += _values(body, at, string.start())
        # Each value is a string at most, and has a name.
        if values > MAX_VALUES or strings > 2 * MAX_VALUES:
            return True
        at = string.end()
    return values + _values(body, at, len(body)) > MAX_VALUES


def _values(body: bytes, start: int, end: int) -> int:
    """Return at least how many commas and containers there are in a part of a body outside of strings."""
    return body.count(b",", start, end) + body.count(b"[", start, end) + body.count(b"{", start, end)


def _check(value: object, depth: int, *, texts: bool) -> None:
    """Refuse deep nesting, and (if `texts`) forbidden characters in names and texts."""
    if isinstance(value, str):
        if texts and _FORBIDDEN.search(value):
            raise MalformedRequest(
                "A text holds a control character other than tab and line breaks, or an unpaired surrogate."
            )
        return
    if not isinstance(value, dict | list):
        return
    if depth > MAX_DEPTH:
        raise MalformedRequest(f"The body is nested deeper than {MAX_DEPTH} levels.")
    if isinstance(value, dict):
        for name, member in cast("dict[str, object]", value).items():
            _check(name, depth + 1, texts=texts)
            _check(member, depth + 1, texts=texts)
        return
    for member in cast("list[object]", value):
        _check(member, depth + 1, texts=texts)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedRequest("An object has the same name twice.")
    return members


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise MalformedRequest(f"A number has more than {MAX_DIGITS} digits.")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise MalformedRequest("A number is too large for a double.")
    return number


def _no_constant(_name: str) -> NoReturn:
    raise MalformedRequest("NaN and Infinity are no JSON.")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=_no_constant
)
