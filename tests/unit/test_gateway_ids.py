"""Ids tell a genuine one from an invented one."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.generations.ids import GenerationIds, UploadIds

IDS = GenerationIds(b"k" * 32)
NOW_MS = 1_800_000_000_000


def test_an_id_is_genuine_for_its_tenant_and_secret_only() -> None:
    one = IDS.new("acme", NOW_MS)
    assert IDS.is_genuine(one, "acme")
    assert not IDS.is_genuine(one, "acm")
    assert not IDS.is_genuine(one, "other")
    assert not GenerationIds(b"j" * 32).is_genuine(one, "acme")


def test_ids_are_unique_and_sort_by_time() -> None:
    later = [IDS.new("acme", NOW_MS + n) for n in range(2000)]
    assert later == sorted(later)
    assert len({IDS.new("acme", NOW_MS) for _ in range(2000)}) == 2000


@given(st.integers(4, 43), st.sampled_from(string.digits + "abcdefghijklmnopqrstuv"))
def test_an_id_with_any_character_changed_is_not_genuine(position: int, character: str) -> None:
    one = IDS.new("acme", NOW_MS)
    changed = one[:position] + character + one[position + 1 :]
    assert IDS.is_genuine(changed, "acme") == (changed == one)


@pytest.mark.parametrize("invented", ["", "gen_", "gen_" + "0" * 39, "gen_" + "0" * 41, "gen_" + "w" * 40])
def test_other_forms_are_not_genuine(invented: str) -> None:
    assert not IDS.is_genuine(invented, "acme")


def test_an_id_in_capitals_or_with_a_line_break_is_not_genuine() -> None:
    one = IDS.new("acme", NOW_MS)
    assert not IDS.is_genuine(one.upper(), "acme")
    assert not IDS.is_genuine(one + "\n", "acme")


def test_an_id_of_an_upload_is_none_of_a_generation_nor_the_other_way_round() -> None:
    uploads = UploadIds(b"k" * 32)
    upload, generation = uploads.new("acme", NOW_MS), IDS.new("acme", NOW_MS)
    assert uploads.is_genuine(upload, "acme")
    assert not uploads.is_genuine(upload, "other")
    for one in (upload, generation):
        assert IDS.is_genuine("gen_" + one[4:], "acme") == (one == generation)
        assert uploads.is_genuine("upl_" + one[4:], "acme") == (one == upload)
