"""A model whose modules are offloaded draws the same pictures, one request at a time, and leaves nothing behind.

The hooks are accelerate's own, with the CPU for a device: what `model` moves stays where it is, what `sequential` takes
away is on `meta` until a layer computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from service.contract.catalog import CatalogEntry, EngineOptions, Offload
from service.contract.engine import ImageDrawn, StepDone
from service.contract.errors import FailureCode
from tests.company import Company
from tests.exotic_models import exotic_model
from tests.models import LIBRARY_WARNINGS, tiny_model
from worker.engine.memory import size_bytes
from worker.engine.shelf import Shelf
from worker.engine.wholecall import LoneDrawing, WholeDrawing, drawing_class
from worker.pipelines.loading import LoadedModel, Prepared, load
from worker.pipelines.offload import attach, taken_bytes

pytestmark = LIBRARY_WARNINGS

HOWS: tuple[Offload, ...] = ("model", "sequential")


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def plain(name: str, **fields: Any) -> LoadedModel:
    folder = exotic_model(name) if name == "pixart" else tiny_model(name)
    return load(CatalogEntry(id=name, source=str(folder), **fields))


def hook(model: LoadedModel, how: Offload) -> LoadedModel:
    """Give a model the hooks that it would have on a GPU."""
    if how == "model":
        attach(model.pipeline, how, torch.device("cpu"))
    else:
        # As diffusers does, which calls its device cpu:0: a name that no tensor on a CPU answers to.
        for module in modules(model):
            cpu_offload(module, torch.device("cpu"), offload_buffers=len(module._parameters) > 0)
    entry = model.entry.model_copy(update={"options": EngineOptions(offload=how)})
    return dataclasses.replace(model, entry=entry, card=model.card.model_copy(update={"execution": "whole"}))


def offloaded(name: str, how: Offload, **fields: Any) -> LoadedModel:
    return hook(plain(name, **fields), how)


def modules(model: LoadedModel) -> list[torch.nn.Module]:
    return [part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module)]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "pixart"])
def test_pictures_are_those_of_the_model_on_its_device(name: str, how: Offload) -> None:
    expected = Company().draw(plain(name), num_images=2, deterministic=True)
    model = offloaded(name, how)
    for _ in range(2):
        drawn = Company().draw(model, num_images=2)
        assert drawn.error is None
        for index in range(2):
            differences = np.abs(drawn.pixels[index].astype(int) - expected.pixels[index])
            # Weights that were copied lie elsewhere in memory, and a CPU sums them in other pieces.
            assert differences.max() <= (how == "model")
            assert (differences > 0).mean() < 1e-3


def test_a_checker_is_asked_and_an_overflow_is_decoded_in_float32_all_the_same() -> None:
    model = offloaded("sd15_checked", "model")
    flagged = Company().draw(model)
    assert [m.flagged for m in flagged.messages if isinstance(m, ImageDrawn)] == [True]
    for how in HOWS:
        half = plain("sdxl", dtype="float16")
        half.pipeline.vae.register_to_config(force_upcast=False)
        half.pipeline.vae.decoder.conv_in.weight.data.mul_(200_000.0)
        model = hook(half, how)
        drawn = Company().draw(model)
        assert drawn.finished is not None
        assert drawn.finished.receipt.degraded == ("vae-float32",)
        assert model.pipeline.vae.dtype == torch.float16


@pytest.mark.parametrize("how", HOWS)
def test_requests_are_drawn_one_at_a_time_image_by_image_while_another_model_goes_on(how: Offload) -> None:
    company, model, other = Company(), offloaded("sd15", how), plain("sdxl")
    first = company.join(model, "first", scheduler="ddim", num_images=2, steps=4)
    company.join(model, "second", scheduler="ddim", num_images=2, steps=4)
    company.join(other, "other", steps=12)
    company.finish()
    own = [who for who, _ in company.told if who != "other"]
    assert own == sorted(own)  # first … first, second … second
    whole_request = [who for who, _ in company.told][: company.told.index(("first", "ended"))]
    assert whole_request.count("other") >= 4
    kinds = [type(m) for m in first.messages if isinstance(m, StepDone | ImageDrawn)]
    assert kinds == [StepDone] * 4 + [ImageDrawn] + [StepDone] * 4 + [ImageDrawn]


def test_after_every_image_and_whatever_its_end_the_modules_go_back() -> None:
    model = offloaded("sd15", "model")
    ended: list[int] = []
    send_back = model.pipeline.maybe_free_model_hooks

    def noted() -> None:
        ended.append(len(ended))
        send_back()

    object.__setattr__(model.pipeline, "maybe_free_model_hooks", noted)
    company = Company()
    request = company.join(model, num_images=2, scheduler="ddim")
    company.tick(until=request, steps=3)
    assert ended == []
    company.tick(until=request, steps=4)
    assert ended == [0]
    company.finish()
    after_both = len(ended)
    assert after_both >= 2
    canceled = company.join(model)
    company.tick(until=canceled, steps=1)
    company.cancel(canceled)
    company.finish()
    assert canceled.code == "canceled"
    assert len(ended) > after_both


@pytest.mark.parametrize("how", HOWS)
def test_a_cancel_and_a_lack_of_memory_leave_the_hooks_in_order(how: Offload) -> None:
    model = offloaded("sd15", how)
    expected = Company().draw(model).pixels[0]
    company = Company()
    canceled, waiting = company.join(model, "canceled"), company.join(model, "waiting")
    company.tick(until=canceled, steps=1)
    company.cancel(canceled)
    company.finish()
    assert canceled.code == "canceled"
    assert np.array_equal(waiting.pixels[0], expected)
    handle = model.pipeline.unet.register_forward_pre_hook(_no_memory)
    refused = Company().draw(model)
    handle.remove()
    assert refused.code == FailureCode.OUT_OF_MEMORY
    assert np.array_equal(Company().draw(model).pixels[0], expected)


def _no_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_layer_by_layer_nothing_stays_on_the_device() -> None:
    model = offloaded("sd15", "sequential")
    Company().draw(model)
    devices = {tensor.device.type for module in modules(model) for tensor in module.parameters()}
    assert devices == {"meta"}


def test_how_a_model_is_drawn_follows_from_its_card() -> None:
    assert drawing_class(offloaded("sd15", "model")) is LoneDrawing
    assert drawing_class(plain("pixart")) is WholeDrawing
    assert drawing_class(plain("sd15")) not in (LoneDrawing, WholeDrawing)


def test_an_offloaded_model_counts_for_its_largest_part_or_for_none() -> None:
    sizes = [30, 100, 5]
    assert [taken_bytes(sizes, how) for how in ("none", "model", "sequential")] == [135, 100, 0]
    assert size_bytes(offloaded("sd15", "sequential")) == 0
    whole, largest = size_bytes(plain("sd15")), size_bytes(offloaded("sd15", "model"))
    assert 0 < largest < whole


def test_an_evicted_model_that_was_offloaded_is_forgotten_not_shelved() -> None:
    shelf = Shelf(1 << 40)
    for how in HOWS:
        model = offloaded("sd15", how)
        shelf.put(model, between=lambda: None)
        assert shelf.take(model.card.id, model.card.sha256, between=lambda: None) is None


def test_a_prepared_model_says_what_it_will_take() -> None:
    folder = tiny_model("sd15")
    stamps = {folder / part / "model.safetensors": (size, 0) for part, size in (("unet", 100), ("vae", 30))}
    stamps[folder / "unet" / "config.json"] = (7, 0)
    model = plain("sd15")

    def needed(how: Offload) -> int:
        entry = model.entry.model_copy(update={"options": EngineOptions(offload=how)})
        return Prepared(
            entry=entry,
            card=model.card,
            abilities=None,  # type: ignore[arg-type]
            folder=folder,
            device=model.device,
            dtype=model.dtype,
            stamps=stamps,
        ).weights_bytes

    assert [needed(how) for how in ("none", "model", "sequential")] == [130, 100, 0]
