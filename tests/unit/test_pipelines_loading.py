"""Models are read whole, in one number format, from safetensors alone; anything else fails with what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from service.contract.catalog import CatalogEntry
from tests.models import BOXED_MODEL, LIBRARY_WARNINGS, tiny_model
from worker.pipelines.capabilities import read_capabilities
from worker.pipelines.errors import UnusableModel
from worker.pipelines.fingerprint import fingerprint, model_files
from worker.pipelines.loading import load, resolve_device, resolve_dtype
from worker.pipelines.quiet import quiet_libraries

pytestmark = LIBRARY_WARNINGS


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model("sd15"), tmp_path / "model")


def entry(source: Path | str, **fields: Any) -> CatalogEntry:
    return CatalogEntry(id="tiny", source=str(source), **fields)


def sha256(folder: Path, variant: str | None = None) -> str:
    return fingerprint(folder, model_files(folder, read_capabilities(folder).components, variant))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("source", [BOXED_MODEL, tiny_model("sdxl")])
def test_every_module_is_of_the_asked_format_whatever_its_file_is(source: Path, dtype: Any) -> None:
    model = load(entry(source, dtype=dtype))
    modules = [m for m in model.pipeline.components.values() if isinstance(m, torch.nn.Module)]
    assert {module.dtype for module in modules} == {getattr(torch, dtype)}
    assert {module.training for module in modules} == {False}
    assert model.card.dtype == dtype


def test_a_safety_checker_that_the_folder_brings_is_kept() -> None:
    model = load(entry(tiny_model("sd15_checked")))
    assert model.card.safety_checker
    assert model.pipeline.safety_checker is not None


def test_no_watermark_is_drawn_into_pictures_of_sdxl() -> None:
    assert load(entry(tiny_model("sdxl"))).pipeline.watermark is None


def test_a_cpu_computes_in_float32_unless_told_otherwise() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) == "float32"
    assert resolve_dtype("bfloat16", torch.device("cpu")) == "bfloat16"
    assert resolve_dtype("auto", torch.device("mps")) == "float16"


@pytest.mark.parametrize("name", ["cuda:77", "toaster", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_may_be(name: str) -> None:
    with pytest.raises(UnusableModel, match="Allowed: auto, cpu"):
        resolve_device(name)


def test_the_checksum_depends_on_every_file_that_is_read_and_on_nothing_else(folder: Path) -> None:
    before = sha256(folder)
    assert len(before) == 64
    assert sha256(tiny_model("sd15")) == before
    (folder / "README.md").write_text("Nothing to see.")
    (folder / "unet" / "notes.md").write_text("Nor here.")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another variant")
    assert sha256(folder) == before
    for name in ("unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json", "model_index.json"):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole + b" ")
        assert sha256(folder) != before, name
        path.write_bytes(whole)
    assert sha256(folder) == before


def test_a_variant_is_read_where_it_is_there_and_plain_files_elsewhere(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    files = [path.relative_to(folder).as_posix() for path in model_files(folder, ["unet", "vae"], "fp16")]
    assert files == [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    weights.unlink()
    with pytest.raises(UnusableModel, match="without a variant; name one of them"):
        model_files(folder, ["unet"], None)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        pytest.param(lambda f: cut(f / "unet" / "diffusion_pytorch_model.safetensors"), "loaded", id="cut short"),
        pytest.param(
            lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").rename(
                f / "vae" / "diffusion_pytorch_model.bin"
            ),
            "Only safetensors are loaded",
            id="pickled",
        ),
        pytest.param(lambda f: (f / "text_encoder" / "model.safetensors").unlink(), "no weights", id="no weights"),
        pytest.param(
            lambda f: shutil.copy(tiny_model("sdxl") / "unet" / "config.json", f / "unet" / "config.json"),
            "loaded",
            id="weights of another shape",
        ),
        pytest.param(lambda f: shutil.rmtree(f / "tokenizer"), "no vocabulary", id="no tokenizer"),
    ],
)
def test_a_damaged_folder_fails_with_a_reason(folder: Path, change: Callable[[Path], Any], found: str) -> None:
    change(folder)
    with pytest.raises(UnusableModel, match=found):
        load(entry(folder))


@pytest.mark.parametrize("source", ["/no/such/folder", "no-such-folder", "a/b/c", ""])
def test_a_source_that_is_neither_a_folder_nor_a_hub_id_is_named(source: str) -> None:
    with pytest.raises(UnusableModel, match="There is no folder"):
        load(entry(source))
