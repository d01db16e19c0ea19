"""What `darkroom generate` says of a picture that is not there yet."""

from __future__ import annotations

from typing import Any

import pytest

from service.cli.follower import expected


def queued(position: int | None, finish_s: float | None) -> dict[str, Any]:
    return {
        "queue": {"position": position, "estimated_start_s": None, "estimated_finish_s": finish_s},
        "progress": None,
    }


@pytest.mark.parametrize(
    ("resource", "text"),
    [
        (queued(1, 4.4), "next in line, about 4 s"),
        (queued(12, 119.4), "place 12 in line, about 119 s"),
        (queued(300, 600.0), "place 300 in line, about 10 min"),
        (queued(2, None), "place 2 in line"),
        (queued(None, None), ""),
        ({"queue": None, "progress": {"step": 1, "estimated_finish_s": 2.6}}, "about 3 s"),
        ({"queue": None, "progress": {"step": 1, "estimated_finish_s": 0.4}}, ""),
        # A gateway of an earlier version.
        ({"progress": {"step": 1}}, ""),
        ({}, ""),
    ],
)
def test_place_and_time_are_told_where_they_are_known(resource: dict[str, Any], text: str) -> None:
    assert expected(resource) == text
