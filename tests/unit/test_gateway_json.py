"""JSON as the gateway takes it."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.strict_json import MAX_DEPTH, MAX_VALUES, parse_object
from service.contract.errors import MalformedRequest

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\t\n\r"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_what_any_client_writes_is_read_as_meant(document: dict[str, object]) -> None:
    assert parse_object(json.dumps(document).encode()) == document
    assert parse_object(json.dumps(document, ensure_ascii=False).encode()) == document


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_malformed_request(body: bytes) -> None:
    message = ""
    try:
        assert isinstance(parse_object(body), dict)
    except MalformedRequest as err:
        message = err.message
    assert message.isascii()
    assert len(message) < 150


@pytest.mark.parametrize("escape", [f"\\u{code:04x}" for code in (*range(0x20), 0x7F, 0xD800, 0xDBFF, 0xDC00, 0xDFFF)])
def test_escaped_controls_and_lone_surrogates_are_refused_except_tab_and_line_breaks(escape: str) -> None:
    body = b'{"prompt": "a%sb"}' % escape.encode()
    if escape in {"\\u0009", "\\u000a", "\\u000d"}:
        assert parse_object(body)
    else:
        with pytest.raises(MalformedRequest, match="control character"):
            parse_object(body)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert parse_object(b'{"prompt": "\\ud83d\\ude00"}') == {"prompt": "\U0001f600"}


def test_nesting_is_taken_up_to_its_limit() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' * depth + b"1" + b"}" * depth

    assert parse_object(nested(MAX_DEPTH))
    with pytest.raises(MalformedRequest, match="nested deeper"):
        parse_object(nested(MAX_DEPTH + 1))


def test_integers_of_40_digits_are_read_exactly_and_longer_ones_refused() -> None:
    assert parse_object(b'{"a": %s}' % (b"9" * 40)) == {"a": 10**40 - 1}
    with pytest.raises(MalformedRequest, match="40 digits"):
        parse_object(b'{"a": %s}' % (b"9" * 41))


def test_as_many_values_are_taken_as_there_are_in_no_request() -> None:
    def listed(values: int, value: bytes = b'"a,[{\\",b"') -> bytes:
        # The object and the list count too.
        return b'{"a":[' + b",".join([value] * (values - 1)) + b"]}"

    assert parse_object(listed(MAX_VALUES))
    with pytest.raises(MalformedRequest, match=f"more than {MAX_VALUES} values"):
        parse_object(listed(MAX_VALUES + 1))
    # What is in a text is none.
    assert parse_object(b'{"prompt":"%s"}' % (b"a, " * 2 * MAX_VALUES))


@pytest.mark.parametrize(
    "body",
    [
        b'{"requests":[' + b"[]," * 8_000_000 + b"[]]}",
        b'{"requests":[' + b"1," * 8_000_000 + b"1]}",
        b'{"prompt":"a",' + b'"b":1,' * 3_000_000 + b'"c":1}',
        b"," * 2 * MAX_VALUES + b'"' + b'\\"' * 8_000_000,
        b'"' + b"," * 2 * MAX_VALUES + b'"' + b'""' * 8_000_000,
    ],
    ids=["lists", "numbers", "names", "quotes in a text without an end", "texts"],
)
def test_a_body_of_the_largest_size_keeps_nobody_waiting_for_long(body: bytes) -> None:
    began_s = time.process_time()
    with pytest.raises(MalformedRequest, match="values"):
        parse_object(body)
    # A tenth of this as a rule; half a minute if each value were looked at.
    assert time.process_time() - began_s < 2
