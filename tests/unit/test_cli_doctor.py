from __future__ import annotations

from pathlib import Path

import pytest
import redis

from service.cli.doctor import examine, read_catalogue
from service.jobs.soundness import Finding, is_patched, judge_redis


def verdicts(info: dict[str, object]) -> list[str]:
    return [finding.verdict for finding in judge_redis(info)]


HEALTHY = {"redis_version": "8.2.2", "aof_enabled": 1, "maxmemory_policy": "noeviction"}


def test_healthy_redis_has_nothing_to_mend() -> None:
    assert verdicts(HEALTHY) == ["ok", "ok", "ok"]


def test_redis_that_evicts_fails_and_one_without_a_file_warns() -> None:
    assert verdicts({**HEALTHY, "aof_enabled": 0, "maxmemory_policy": "allkeys-lru"}) == ["ok", "warn", "fail"]


def test_redis_older_than_6_2_fails() -> None:
    assert verdicts({**HEALTHY, "redis_version": "6.0.16"})[0] == "fail"


@pytest.mark.parametrize(
    ("product", "version", "patched"),
    [
        ("Redis", (6, 2, 19), False),
        ("Redis", (6, 2, 20), True),
        ("Redis", (7, 0, 15), False),
        ("Redis", (7, 2, 11), True),
        ("Redis", (8, 0, 3), False),
        ("Redis", (8, 2, 2), True),
        ("Redis", (8, 4, 0), True),
        ("Valkey", (7, 2, 10), False),
        ("Valkey", (8, 1, 4), True),
        ("Valkey", (9, 1, 2), True),
    ],
)
def test_patch_against_cve_2025_49844_is_told_by_version(product: str, version: tuple[int, ...], patched: bool) -> None:
    assert is_patched(product, version) is patched


def test_valkey_is_judged_by_its_own_version(redis_client: redis.Redis) -> None:
    finding = judge_redis(redis_client.info())[0]  # type: ignore[arg-type]  # redis-py's type includes an awaitable
    assert finding.found.startswith("Valkey 9.")
    assert finding.verdict == "ok"


def test_packaged_catalogue_is_readable() -> None:
    finding = read_catalogue(None)
    assert finding.verdict == "ok"
    assert "tiny-emoji" in finding.found


@pytest.mark.parametrize("text", ["models: [", "models: []", "models: [{id: a, source: b, colour: red}]", "x"])
def test_wrong_catalogue_is_one_line_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    finding = read_catalogue(path)
    assert finding.verdict == "fail"
    assert str(path) in finding.found
    assert "\n" not in finding.found


def test_examination_covers_machine_servers_models_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("DARKROOM_S3_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("DARKROOM_S3_ACCESS_KEY", "nobody")
    monkeypatch.setenv("DARKROOM_S3_SECRET_KEY", "nothing")
    findings: dict[str, Finding] = {finding.check: finding for finding in examine()}
    assert {"Python", "Platform", "Disk", "Memory", "models.yaml", "torch"} <= findings.keys()
    assert (findings["Redis"].verdict, findings["S3"].verdict) == ("fail", "fail")
    assert all(finding.advice for finding in findings.values() if finding.verdict != "ok")


def test_storage_is_probed_by_an_object(storage_settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_S3_ENDPOINT", storage_settings.endpoint)
    monkeypatch.setenv("DARKROOM_S3_BUCKET", storage_settings.bucket)
    monkeypatch.setenv("DARKROOM_S3_ACCESS_KEY", storage_settings.access_key.get_secret_value())
    monkeypatch.setenv("DARKROOM_S3_SECRET_KEY", storage_settings.secret_key.get_secret_value())
    finding = next(finding for finding in examine() if finding.check == "S3")
    assert finding.verdict == "ok"
