"""Pipelines that are not batched draw what plain diffusers draws, one request at a time; other models go on."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from service.contract.catalog import CatalogEntry
from service.contract.errors import FailureCode
from tests.company import Company, Request
from tests.exotic_models import BUILDERS, exotic_model
from tests.models import LIBRARY_WARNINGS, tiny_model
from worker.pipelines.loading import LoadedModel, load

pytestmark = LIBRARY_WARNINGS

EXOTIC = sorted(BUILDERS)
#: Tells by a callback of today's kind, by one of the old kind, not at all.
PAG, PIXART, LDM = "pag", "pixart", "ldm"


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def model_of(name: str) -> LoadedModel:
    """Return a fresh copy, which a test may damage."""
    return load(CatalogEntry(id=name, source=str(exotic_model(name))))


@cache
def shared_model(name: str) -> LoadedModel:
    return model_of(name)


@cache
def batched_model() -> LoadedModel:
    return load(CatalogEntry(id="sd15", source=str(tiny_model("sd15"))))


@cache
def stock_pipeline(name: str) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(exotic_model(name), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_picture(name: str, *, seed: int, **arguments: Any) -> NDArray[np.uint8]:
    """Return what a user of diffusers gets."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return np.asarray(stock_pipeline(name)(prompt="a red apple", generator=generator, **arguments).images[0])


@pytest.mark.parametrize(
    ("name", "asked", "stock"),
    [
        (PIXART, {}, {"guidance_scale": 4.5}),
        (PIXART, {"guidance_scale": 1.0}, {"guidance_scale": 1.0}),
        (
            PIXART,
            {"negative_prompt": "a pear", "width": 256, "height": 192},
            {"negative_prompt": "a pear", "width": 256, "height": 192},
        ),
        (PAG, {}, {"width": 64, "height": 64}),
        (PAG, {"negative_prompt": "a pear", "width": 72}, {"negative_prompt": "a pear", "width": 72, "height": 64}),
        (LDM, {"guidance_scale": 3.0}, {"guidance_scale": 3.0, "width": 64, "height": 64}),
    ],
)
def test_every_image_is_that_of_the_stock_pipeline(name: str, asked: dict[str, Any], stock: dict[str, Any]) -> None:
    drawn = Company().draw(shared_model(name), num_images=2, **asked)
    assert drawn.error is None
    for index in range(2):
        assert np.array_equal(drawn.pixels[index], stock_picture(name, seed=1 + index, num_inference_steps=3, **stock))
    assert not np.array_equal(drawn.pixels[0], drawn.pixels[1])


def test_the_reference_depends_on_prompt_and_negative_prompt() -> None:
    for name in (PIXART, PAG):
        plain = Company().draw(shared_model(name))
        for change in ({"prompt": "a green pear"}, {"negative_prompt": "a blue car"}):
            assert not np.array_equal(plain.pixels[0], Company().draw(shared_model(name), **change).pixels[0]), change


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        (PIXART, [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]),
        (PAG, [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]),
        (LDM, [(3, 6), (6, 6)]),
    ],
)
def test_steps_and_phases_are_told_as_far_as_the_pipeline_tells(name: str, steps: list[tuple[int, int]]) -> None:
    drawn = Company().draw(shared_model(name), num_images=2)
    assert drawn.steps == steps
    assert drawn.phases == (["encode", "denoise"] if name == LDM else ["encode", "denoise", "decode"])
    assert drawn.finished is not None
    assert drawn.finished.denoise_s > 0
    assert drawn.finished.receipt.model_sha256 == shared_model(name).card.sha256
    assert len(drawn.finished.receipt.scheduler_config_sha256) == 64
    assert drawn.strand is not None
    assert drawn.strand.spent_s > 0


@pytest.mark.parametrize("name", EXOTIC)
def test_other_models_go_on_between_its_steps(name: str) -> None:
    company = Company()
    exotic = company.join(shared_model(name), "exotic", steps=8)
    batched = company.join(batched_model(), "batched", steps=8, scheduler="ddim", deterministic=True)
    company.finish()
    told = [who for who, kind in company.told if kind in ("step_done", "ended")]
    if name == LDM:
        # It tells of nothing, but does not keep the other: that one is done first, having less to do.
        assert told.index("batched") < told.index("exotic")
    else:
        changes = sum(one != other for one, other in itertools.pairwise(told))
        assert changes >= 4, told
    assert np.array_equal(exotic.pixels[0], Company().draw(shared_model(name), steps=8).pixels[0])
    alone = Company().draw(batched_model(), steps=8, scheduler="ddim", deterministic=True)
    assert np.array_equal(batched.pixels[0], alone.pixels[0])


def test_requests_to_one_model_are_drawn_in_order_one_at_a_time() -> None:
    company, model = Company(), shared_model(PIXART)
    requests = {name: company.join(model, name, seed=ord(name)) for name in "abc"}
    company.finish()
    assert [who for who, _ in company.told] == sorted(who for who, _ in company.told)
    for name, request in requests.items():
        expected = stock_picture(PIXART, seed=ord(name), num_inference_steps=3)
        assert np.array_equal(request.pixels[0], expected)


@pytest.mark.parametrize("canceled", ["a", "b"])
@pytest.mark.parametrize("name", EXOTIC)
def test_a_cancel_ends_who_draws_and_who_waits_and_lets_the_next_begin(name: str, canceled: str) -> None:
    company, model = Company(), shared_model(name)
    requests = {each: company.join(model, each) for each in "abc"}
    for _ in range(2):
        company.tick()
    company.cancel(requests[canceled])
    company.tick()
    assert (canceled, "ended") in company.told
    company.finish()
    assert requests[canceled].code == "canceled"
    assert not requests[canceled].pixels
    expected = Company().draw(model).pixels[0]
    for each, request in requests.items():
        assert each == canceled or np.array_equal(request.pixels[0], expected)


@pytest.mark.parametrize("name", [PIXART, PAG])
def test_a_cancel_that_a_step_sees_leaves_the_model_as_it_was(name: str) -> None:
    model = shared_model(name)
    company = Company()
    request = company.join(model, steps=4)
    request.cancel_at_step = 2
    company.finish()
    assert request.code == "canceled"
    assert request.steps[-1] == (2, 4)
    assert np.array_equal(Company().draw(model).pixels[0], stock_picture(name, seed=1, num_inference_steps=3))


def test_a_pipeline_that_ends_with_its_autoencoder_cast_gets_it_back() -> None:
    model = model_of(PAG)
    company = Company()
    request = company.join(model)
    company.tick(until=request, steps=1)
    model.pipeline.vae.to(dtype=torch.bfloat16)
    company.cancel(request)
    company.finish()
    assert model.pipeline.vae.dtype == torch.float32


def test_what_is_not_finite_or_black_is_no_picture() -> None:
    for value in (float("nan"), -100.0):
        model = model_of(PIXART)
        model.pipeline.vae.decoder.conv_out.bias.data.fill_(value)
        refused = Company().draw(model)
        assert refused.code == FailureCode.NUMERICAL_ERROR
        assert not refused.pixels


@contextmanager
def failing(module: torch.nn.Module, error: Exception, *, times: int) -> Iterator[None]:
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error

    handle = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_memory_that_runs_out_is_tried_for_once_more(part: str) -> None:
    model = shared_model(PIXART)
    expected = stock_picture(PIXART, seed=1, num_inference_steps=3)
    error = torch.OutOfMemoryError("CUDA out of memory.")
    with failing(model.pipeline.components[part], error, times=1):
        assert np.array_equal(Company().draw(model).pixels[0], expected)
    with failing(model.pipeline.components[part], error, times=2):
        assert Company().draw(model).code == FailureCode.OUT_OF_MEMORY
    assert np.array_equal(Company().draw(model).pixels[0], expected)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (PIXART, {"guidance_rescale": 0.5}, "guidance_rescale does nothing"),
        (PIXART, {"eta": 0.5}, "eta does nothing"),
        (PIXART, {"sigmas": "karras"}, "sigmas does nothing"),
        (LDM, {"negative_prompt": "a pear"}, "negative_prompt does nothing"),
        (PIXART, {"scheduler": "euler"}, "scheduler dpmpp_2m"),
        (PIXART, {"width": 264}, "multiples of 16 px"),
        (PIXART, {"task": "image-to-image", "strength": 0.5}, "takes 1 pictures"),
        (PIXART, {"prompt": "a" * 119}, "119 tokens; the model pixart reads at most 118"),
        (LDM, {"prompt": " ".join(["a"] * 76)}, "76 tokens; the model ldm reads at most 75"),
    ],
)
def test_what_it_cannot_draw_is_refused_before_anything_runs(name: str, changes: dict[str, Any], said: str) -> None:
    company = Company()
    refused = company.draw(shared_model(name), **changes)
    assert refused.code in (FailureCode.INVALID_REQUEST, FailureCode.INVALID_INPUT, FailureCode.PROMPT_TOO_LONG)
    assert said in str(refused.error)
    assert refused.messages == []


def test_what_the_pipeline_itself_refuses_is_told_without_its_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(exotic_model(PIXART), tmp_path / "model")
    config = folder / "transformer" / "config.json"
    # Of a size that the pipeline's table does not know: it says so once it is called.
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 30}))
    refused: Request = Company().draw(load(CatalogEntry(id="odd", source=str(folder))), prompt="the house secret")
    assert refused.code == FailureCode.INVALID_REQUEST
    assert "does not take this request" in str(refused.error)
    log = capsys.readouterr().out
    assert "Invalid sample size" in log
    assert "secret" not in log


def test_a_model_that_draws_alone_in_half_precision_keeps_its_format() -> None:
    model = load(CatalogEntry(id="half", source=str(exotic_model(PAG)), dtype="bfloat16"))
    drawn = Company().draw(model)
    assert drawn.finished is not None
    assert drawn.finished.receipt.dtype == "bfloat16"
    assert len(np.unique(drawn.pixels[0])) > 50
