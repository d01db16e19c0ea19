"""The agent's pure parts: its catalogue, its patience, what it writes into pictures."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import NoReturn

import pytest

from service.contract.generation import GenerationSpec, Receipt
from service.contract.schedulers import OWN_SCHEDULER
from service.jobs.reaper import Patience
from service.jobs.store import LEASE_MS
from service.settings.worker import engine_environment
from worker.agent.catalog import CatalogError, packaged_catalog, read_catalog
from worker.agent.infotext import infotext
from worker.agent.watch import PhaseClock


def written(folder: Path, text: str) -> Path:
    path = folder / "models.yaml"
    path.write_text(text, "utf-8")
    return path


def test_the_packaged_catalogue_reads_and_its_folder_is_there() -> None:
    (entry,) = read_catalog(packaged_catalog())
    assert entry.default
    assert (Path(entry.source) / "model_index.json").is_file()


def test_a_folder_is_found_beside_the_file_and_a_hub_id_stays_one(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    path = written(
        tmp_path, "models:\n  - {id: a, source: mine, default: true}\n  - {id: b, source: owner/name, revision: abc}\n"
    )
    first, second = read_catalog(path)
    assert first.source == str((tmp_path / "mine").resolve())
    assert second.source == "owner/name"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [", "is not YAML"),
        ("models: []", "names no model"),
        ("models:\n  - {id: a, source: x}\n", "exactly one model must have"),
        ("models:\n  - {id: a, source: x, default: true}\n  - {id: a, source: y}\n", "'a' is used twice"),
        ("models:\n  - {id: A!, source: x, default: true}\n", "models.0.id"),
        ("models:\n  - {id: a, source: x, default: true, colour: red}\n", "models.0.colour"),
        ("- 1", "the file"),
    ],
)
def test_a_wrong_catalogue_is_one_line_that_names_the_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CatalogError) as caught:
        read_catalog(written(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="No such file"):
        read_catalog(tmp_path / "none.yaml")


def test_an_unmeasured_phase_gets_the_operators_patience_and_a_measured_one_twenty_times_its_measure() -> None:
    clock = PhaseClock(patience_s=600, load_s=3600)
    assert clock.limit_s("m", "denoise", 4096) == 600
    clock.measured("m", "denoise", 4096, 4.0)
    assert clock.limit_s("m", "denoise", 4096) == pytest.approx(80)
    assert clock.limit_s("m", "decode", 4096) == 600
    clock.measured("m", "decode", 4096, 0.01)
    assert clock.limit_s("m", "decode", 4096) == 30


def test_signs_that_come_in_one_go_do_not_shorten_the_patience_for_the_next_and_a_slow_first_one_is_forgotten() -> None:
    clock = PhaseClock(patience_s=600, load_s=3600)
    for _ in range(20):
        for seconds in (40.0, *[0.0] * 15):  # sixteen images share every call
            clock.measured("m", "denoise", 4096, seconds)
    assert 300 < clock.limit_s("m", "denoise", 4096) < 800
    for _ in range(400):
        clock.measured("m", "denoise", 4096, 0.1)
    assert clock.limit_s("m", "denoise", 4096) < 40


LEASE_S = LEASE_MS // 1000


def looks(patience: Patience, first_s: int, last_s: int, *, uptime_s: float) -> int | None:
    """Look once a second; return when leases may be taken back. `uptime_s` is Redis' at second 0."""
    for now_s in range(first_s, last_s + 1):
        if patience.may_take_back(now_s=now_s, uptime_s=uptime_s + now_s):
            return now_s
    return None


def test_leases_are_not_taken_back_before_redis_was_up_and_seen_for_one_lease() -> None:
    assert looks(Patience(), 0, LEASE_S + 5, uptime_s=1e6) == LEASE_S
    assert looks(Patience(), 0, LEASE_S + 5, uptime_s=-3) == LEASE_S + 4


@pytest.mark.parametrize(
    ("pause_s", "leap_s"), [(20, 0), (0, 20), (0, -20)], ids=["paused", "Redis' clock leaps ahead", "or back"]
)
def test_after_a_pause_or_a_leap_of_the_clock_leases_get_their_time_again(pause_s: int, leap_s: int) -> None:
    patience = Patience()
    assert looks(patience, 0, LEASE_S, uptime_s=1e6) == LEASE_S
    again_s = LEASE_S + 1 + pause_s
    assert looks(patience, again_s, again_s + LEASE_S, uptime_s=1e6 + leap_s) == again_s + LEASE_S
    patience.lost()
    assert not patience.may_take_back(now_s=again_s + LEASE_S + 1, uptime_s=1e6)


def test_the_engine_sees_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DARKROOM_REDIS_URL", "DARKROOM_S3_SECRET_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "ANY_PASSWORD"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    seen = engine_environment()
    assert "secret" not in seen.values()
    assert seen["CUDA_VISIBLE_DEVICES"] == "1"


def test_an_engine_starts_for_a_user_who_has_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> NoReturn:
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert "TORCHINDUCTOR_CACHE_DIR" not in engine_environment()
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert engine_environment()["TORCHINDUCTOR_CACHE_DIR"] == "/caches/darkroom/compiled"


def test_infotext_is_what_image_tools_read() -> None:
    spec = GenerationSpec(
        task="text-to-image",
        model="tiny",
        prompt="a cat",
        negative_prompt="a dog",
        width=64,
        height=128,
        steps=20,
        guidance_scale=7.5,
        scheduler="dpmpp_2m",
        sigmas="karras",
        seed=1,
    )
    receipt = Receipt(model_sha256="0123456789abcdef", scheduler_config_sha256="", device="cpu", dtype="float32")
    assert infotext(spec, 2, receipt).splitlines() == [
        "a cat",
        "Negative prompt: a dog",
        (
            "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 2, Size: 64x128, "
            "Model hash: 0123456789, Model: tiny, Version: Darkroom"
        ),
    ]
    own = infotext(spec.model_copy(update={"scheduler": OWN_SCHEDULER}), 2, receipt)
    assert "Sampler" not in own
    assert "Steps: " in own
