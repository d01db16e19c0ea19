"""`Prefer` and `Accept` as RFC 7240 and RFC 9110 mean them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.loopback import is_json
from service.api.negotiation import accepted_formats
from service.api.preferences import Preferences, preferences
from service.api.problems import NotAcceptable


@pytest.mark.parametrize(
    ("headers", "wait_s", "respond_async"),
    [
        ([], None, False),
        (["wait=10"], 10, False),
        (["respond-async, wait=10"], 10, True),
        (["respond-async", "wait=10"], 10, True),
        (["WAIT = 10"], 10, False),
        (['wait="10"'], 10, False),
        (["wait=10; foo=bar, respond-async"], 10, True),
        (['foo="a, wait=3", wait=10'], 10, False),
        (["wait=5, wait=10"], 5, False),
        (["wait=0"], 0, False),
        (["wait"], None, False),
        (["wait=-1"], None, False),
        (["wait=1.5"], None, False),
        (["wait=soon"], None, False),
        (["wait=9999999999"], None, False),
        (["wait=١٠"], None, False),
        (["return=minimal, handling=lenient"], None, False),
        ([",,;=,"], None, False),
    ],
)
def test_preferences_are_read_and_nonsense_is_ignored(
    headers: list[str], wait_s: int | None, respond_async: bool
) -> None:
    assert preferences(headers) == Preferences(wait_s, respond_async)


@given(st.lists(st.text(max_size=60), max_size=3))
def test_any_prefer_header_can_be_read(headers: list[str]) -> None:
    found = preferences(headers)
    assert found.wait_s is None or found.wait_s >= 0


def test_a_wait_is_capped_and_said_so() -> None:
    prefer = Preferences(wait_s=600)
    assert prefer.waits(60) == 60
    assert prefer.applied(60, finished=True) == "wait=60"
    assert Preferences().waits(60, default_s=60) == 60
    assert Preferences(respond_async=True).waits(60, default_s=60) == 0
    assert Preferences(respond_async=True).applied(0, finished=False) == "respond-async"
    assert Preferences().applied(0, finished=False) is None


@pytest.mark.parametrize(
    ("accept", "formats"),
    [
        ([], ()),
        (["*/*"], ()),
        (["application/json"], ()),
        (["application/*"], ()),
        (["application/json, image/png"], ()),
        (["text/html, */*;q=0.1"], ()),
        (["image/png"], ("png",)),
        (["IMAGE/PNG"], ("png",)),
        (["image/*"], ("png", "jpeg", "webp")),
        (["image/webp, image/*;q=0.5"], ("webp", "png", "jpeg")),
        (["image/png;q=0.5", "image/jpeg"], ("jpeg", "png")),
        (["image/avif,image/webp,*/*"], ("webp",)),
        (["image/png, application/json;q=0.5"], ("png",)),
        (["image/png;q=0.4, application/json;q=0.5"], ()),
        (["image/*, image/png;q=0"], ("jpeg", "webp")),
        (["image/png;q=7"], ("png",)),
    ],
)
def test_accept_chooses_between_the_resource_and_the_picture(accept: list[str], formats: tuple[str, ...]) -> None:
    assert accepted_formats(accept) == formats


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "application/json;q=0", "nonsense", "*/*;q=0"])
def test_what_cannot_be_given_is_not_acceptable(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="application/json or image/png"):
        accepted_formats([accept])


@pytest.mark.parametrize(
    ("content_type", "taken"),
    [
        ("application/json", True),
        ("Application/JSON; charset=UTF-8", True),
        ('application/json; charset="utf-8"', True),
        ("application/json;charset=latin-1", False),
        ("application/json; charset=utf-16", False),
        ("application/problem+json", False),
        ("text/json", False),
        ("", False),
    ],
)
def test_only_json_in_utf_8_is_json(content_type: str, taken: bool) -> None:
    assert is_json(content_type) is taken
