"""The layout of the bucket."""

from __future__ import annotations

import pytest

from service.storage.keys import execution_prefix, image_key, input_key, is_within_a_job, job_prefix

NEW_YEAR_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z


def test_everything_of_a_job_is_under_its_prefix() -> None:
    prefix = job_prefix("acme", NEW_YEAR_MS, "g_123")
    assert prefix == "acme/2026/01/g_123/"
    assert job_prefix("acme", NEW_YEAR_MS - 1, "g_123") == "acme/2025/12/g_123/"
    assert input_key(prefix, 1, "jpeg") == "acme/2026/01/g_123/inputs/1.jpg"
    assert image_key(prefix, "x7", 2, "webp") == "acme/2026/01/g_123/x7/2.webp"
    assert is_within_a_job(prefix)
    assert is_within_a_job(execution_prefix(prefix, "x7"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\n", "ä", "x" * 129, ".hidden"])
def test_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    for make in (
        lambda: job_prefix(name, 0, "job"),
        lambda: job_prefix("tenant", 0, name),
        lambda: image_key("t/2026/01/j/", name, 0, "png"),
    ):
        with pytest.raises(ValueError, match="a name in a storage key"):
            make()


@pytest.mark.parametrize("prefix", ["", "t/2026/01/", "t/2026/01/j", "t/2026/01/j/e", "/2026/01/j/", "t/26/1/j/"])
def test_half_a_prefix_makes_no_key(prefix: str) -> None:
    assert not is_within_a_job(prefix)
    with pytest.raises(ValueError, match="not the prefix of a job"):
        input_key(prefix, 0, "png")
