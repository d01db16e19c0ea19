"""Options that a machine cannot have are refused when the model is loaded, with the reason and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from service.contract.catalog import CatalogEntry, EngineOptions
from service.settings.worker import engine_environment
from tests.models import LIBRARY_WARNINGS, tiny_model
from worker.pipelines.errors import UnusableModel
from worker.pipelines.loading import load
from worker.pipelines.options import check_options, private_cache

pytestmark = LIBRARY_WARNINGS

CPU, MPS, CUDA = (torch.device(name) for name in ("cpu", "mps", "cuda"))


@pytest.mark.parametrize(
    ("device", "options", "reason"),
    [
        (CPU, {"graphs": True}, "options.graphs records CUDA graphs; on cpu leave it false"),
        (MPS, {"graphs": True}, "on mps leave it false"),
        (MPS, {"compile": True}, "options.compile works on cuda and cpu; on mps leave it false"),
    ],
)
def test_options_of_another_device_are_refused(device: torch.device, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableModel, match=reason):
        check_options(EngineOptions(**options), device)


def test_options_of_every_device_are_taken() -> None:
    for device in (CPU, MPS, CUDA):
        check_options(EngineOptions(channels_last=True, vae_batch=2, embedding_cache=0), device)
    check_options(EngineOptions(graphs=True), CUDA)


def test_a_cpu_without_a_compiler_is_refused_to_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnusableModel, match=r"needs g\+\+ or clang\+\+ on a CPU"):
        check_options(EngineOptions(compile=True), CPU)


def test_a_model_is_not_loaded_with_options_that_its_device_cannot_have() -> None:
    with pytest.raises(UnusableModel, match=r"options\.graphs"):
        load(CatalogEntry(id="tiny", source=str(tiny_model("sd15")), options=EngineOptions(graphs=True), device="cpu"))


@pytest.mark.parametrize("options", [{"vae_batch": 0}, {"embedding_cache": -1}, {"graph": True}, {"compile": "maybe"}])
def test_options_that_are_none_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CatalogEntry.model_validate({"id": "m", "source": "x", "options": options})


def test_channels_last_arranges_the_convolutions_of_denoiser_and_autoencoder() -> None:
    entry = CatalogEntry(id="tiny", source=str(tiny_model("sd15")), options=EngineOptions(channels_last=True))
    pipeline = load(entry).pipeline
    for module in (pipeline.unet.conv_in, pipeline.vae.decoder.conv_in, pipeline.vae.encoder.conv_in):
        assert module.weight.is_contiguous(memory_format=torch.channels_last)
        assert not module.weight.is_contiguous()


def test_compiled_code_is_kept_in_a_folder_that_only_we_can_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    assert private_cache() == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    private_cache()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_compiled_code_is_not_taken_from_a_folder_that_may_be_anothers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "link"))
    with pytest.raises(UnusableModel, match="another user's folder"):
        private_cache()


def test_an_engine_keeps_compiled_code_with_the_users_caches_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert engine_environment()["TORCHINDUCTOR_CACHE_DIR"] == "/caches/darkroom/compiled"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/us")
    assert engine_environment()["TORCHINDUCTOR_CACHE_DIR"] == "/us/.cache/darkroom/compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    assert engine_environment()["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
