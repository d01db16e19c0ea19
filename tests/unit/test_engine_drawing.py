"""What a request can run into: each fault ends that request alone, by its name, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from service.contract.catalog import CatalogEntry
from service.contract.engine import Finished, FromEngine, ImageDrawn, StepDone
from service.contract.errors import FailureCode
from service.contract.framing import Buffer
from tests.models import LIBRARY_WARNINGS, tiny_model
from tests.recorder import Rerun
from tests.tiny_requests import tiny_request
from worker.engine.drawing import Drawing
from worker.engine.faults import Fault, classify
from worker.engine.speed import Speed
from worker.pipelines.errors import Refusal
from worker.pipelines.loading import LoadedModel, load
from worker.pipelines.quiet import quiet_libraries

pytestmark = LIBRARY_WARNINGS

SIZE = (64, 64)
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8).tobytes()
MASK = bytes([255]) * (64 * 64)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


def model_of(name: str, **fields: Any) -> LoadedModel:
    """Return a fresh copy, which a test may damage."""
    return load(CatalogEntry(id="tiny", source=str(tiny_model(name)), **fields))


class Agent:
    """Hears what the engine tells, and cancels when asked to."""

    def __init__(self, *, cancel_at_step: int | None = None, canceled: bool = False) -> None:
        self.messages: list[FromEngine] = []
        self.buffers: list[bytes] = []
        self._cancel_at_step = cancel_at_step
        self._canceled = canceled

    def send(self, message: FromEngine, buffers: Sequence[Buffer] = ()) -> None:
        self.messages.append(message)
        self.buffers.extend(bytes(buffer) for buffer in buffers)
        if isinstance(message, StepDone) and message.step == self._cancel_at_step:
            self._canceled = True

    def is_canceled(self) -> bool:
        return self._canceled


def draw(model: LoadedModel, agent: Agent, buffers: Sequence[bytes] = (), **changes: Any) -> Finished:
    if "ddim" not in model.card.schedulers:
        changes = {"scheduler": model.card.scheduler} | changes
    request = tiny_request(sizes_px=(SIZE,) * len(buffers), **changes)
    return Drawing(model, request, buffers, send=agent.send, is_canceled=agent.is_canceled).run()


def picture(model: LoadedModel, **changes: Any) -> bytes:
    agent = Agent()
    draw(model, agent, **changes)
    return agent.buffers[0]


def refusal(model: LoadedModel, agent: Agent | None = None, buffers: Sequence[bytes] = (), **changes: Any) -> Refusal:
    with pytest.raises(Refusal) as refused:
        draw(model, agent or Agent(), buffers, **changes)
    return refused.value


@contextmanager
def failing(module: torch.nn.Module, error: Exception, *, times: int) -> Iterator[list[int]]:
    """Let a module raise on its first calls; gives the list of all calls."""
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error

    handle = module.register_forward_pre_hook(fail)
    try:
        yield calls
    finally:
        handle.remove()


def test_a_picture_that_is_not_finite_is_refused_and_not_sent() -> None:
    model = model_of("sd15")
    model.pipeline.unet.conv_out.weight.data.fill_(float("nan"))
    agent = Agent()
    assert refusal(model, agent).code == FailureCode.NUMERICAL_ERROR
    assert not agent.buffers
    assert not [m for m in agent.messages if isinstance(m, ImageDrawn)]


def test_a_black_picture_is_refused_and_not_sent() -> None:
    model = model_of("sd15")
    model.pipeline.vae.decoder.conv_out.weight.data.zero_()
    model.pipeline.vae.decoder.conv_out.bias.data.fill_(-2.0)
    agent = Agent()
    assert refusal(model, agent).code == FailureCode.NUMERICAL_ERROR
    assert not agent.buffers


def overflowing(layer: torch.nn.Conv2d) -> None:
    """Let a layer's output pass 65504, the largest float16, where a norm right behind it brings it back."""
    layer.weight.data.mul_(200_000.0)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux"])
def test_an_autoencoder_that_overflows_decodes_in_float32_and_the_receipt_says_so(name: str) -> None:
    model = model_of(name, dtype="float16")
    # SDXL's own config would have it decoded in float32 anyway.
    model.pipeline.vae.register_to_config(force_upcast=False)
    assert draw(model, Agent()).receipt.degraded == ()
    overflowing(model.pipeline.vae.decoder.conv_in)
    agent = Agent()
    assert draw(model, agent).receipt.degraded == ("vae-float32",)
    assert len(set(agent.buffers[0])) > 50
    assert model.pipeline.vae.dtype == torch.float16


@pytest.mark.parametrize(("task", "buffers"), [("image-to-image", [PICTURE]), ("inpaint", [PICTURE, MASK])])
@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux"])
def test_an_autoencoder_that_overflows_encodes_in_float32_and_the_receipt_says_so(
    name: str, task: str, buffers: list[bytes]
) -> None:
    model = model_of(name, dtype="float16")
    model.pipeline.vae.register_to_config(force_upcast=False)
    overflowing(model.pipeline.vae.encoder.conv_in)
    agent = Agent()
    finished = draw(model, agent, buffers, task=task, strength=0.6)
    assert finished.receipt.degraded == ("vae-float32",)
    assert len(set(agent.buffers[0])) > 50
    assert model.pipeline.vae.dtype == torch.float16


def test_sdxl_in_float16_decodes_in_float32_as_its_config_says() -> None:
    model = model_of("sdxl", dtype="float16")
    overflowing(model.pipeline.vae.decoder.conv_in)
    assert draw(model, Agent()).receipt.degraded == ()
    assert model.pipeline.vae.dtype == torch.float16


def test_a_flagged_picture_is_told_and_withheld() -> None:
    agent = Agent()
    draw(model_of("sd15_checked"), agent, num_images=2)
    assert [m.flagged for m in agent.messages if isinstance(m, ImageDrawn)] == [True, True]
    assert not agent.buffers


def test_a_picture_that_the_checker_passes_is_the_picture_without_a_checker() -> None:
    model = model_of("sd15_checked")
    model.pipeline.safety_checker.concept_embeds_weights.data.fill_(5.0)
    model.pipeline.safety_checker.special_care_embeds_weights.data.fill_(5.0)
    assert picture(model) == picture(model_of("sd15"))


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("part", ["unet", "vae.decoder", "text_encoder"])
def test_memory_that_runs_out_once_costs_a_second_try_and_nothing_else(part: str, error: Exception) -> None:
    model = model_of("sd15")
    expected = picture(model)
    with failing(
        model.pipeline.components[part.split(".", maxsplit=1)[0]].get_submodule(part.partition(".")[2]), error, times=1
    ):
        assert picture(model) == expected


def test_recordings_give_their_memory_back_to_whatever_part_finds_none() -> None:
    model, recorder = model_of("sd15"), Rerun()
    model.kept["speed"] = Speed(model, recorder=recorder)
    expected = picture(model, steps=6)
    assert recorder.recorded == 1
    with failing(model.pipeline.vae.decoder, OUT_OF_MEMORY[0], times=1):
        assert picture(model, steps=6) == expected
    assert recorder.recorded == 2


@pytest.mark.parametrize("cast", [1, 2])
def test_memory_that_runs_out_in_the_middle_of_a_cast_leaves_no_autoencoder_of_two_formats(cast: int) -> None:
    model = model_of("sdxl", dtype="float16")
    expected, decoder = picture(model), model.pipeline.vae.decoder
    real, casts = decoder._apply, 0

    def apply(*args: Any, **kwargs: Any) -> Any:
        nonlocal casts
        casts += 1
        if casts == cast:
            raise OUT_OF_MEMORY[0]
        return real(*args, **kwargs)

    decoder._apply = apply
    assert picture(model) == expected
    assert casts > cast
    assert {weight.dtype for weight in model.pipeline.vae.parameters()} == {torch.float16}


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_memory_that_runs_out_twice_ends_the_request_and_the_next_one_is_drawn(error: Exception) -> None:
    model = model_of("sd15")
    expected = picture(model)
    with failing(model.pipeline.unet, error, times=2):
        assert refusal(model).code == FailureCode.OUT_OF_MEMORY
    assert picture(model) == expected


def test_other_errors_are_not_tried_again() -> None:
    model = model_of("sd15")
    with failing(model.pipeline.unet, RuntimeError("shapes"), times=1), pytest.raises(RuntimeError, match="shapes"):
        draw(model, Agent())


def test_errors_of_the_device_are_told_from_those_of_memory() -> None:
    assert classify(RuntimeError("CUDA error: an illegal memory access was encountered")) is Fault.DEVICE
    assert classify(RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")) is Fault.DEVICE
    assert classify(RuntimeError("CUDA error: out of memory")) is Fault.OUT_OF_MEMORY
    assert classify(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")) is Fault.OUT_OF_MEMORY
    assert classify(torch.OutOfMemoryError("CUDA out of memory")) is Fault.OUT_OF_MEMORY
    assert classify(ValueError("CUDA error")) is Fault.OTHER
    with pytest.raises(RuntimeError) as too_much:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert classify(too_much.value) is Fault.OUT_OF_MEMORY


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_cancel_stops_at_the_very_step_and_leaves_the_model_usable(name: str, step: int) -> None:
    model = model_of(name)
    expected = picture(model, scheduler="dpmpp_2m")
    agent = Agent(cancel_at_step=step)
    assert refusal(model, agent, scheduler="dpmpp_2m").code == "canceled"
    assert [m.step for m in agent.messages if isinstance(m, StepDone)][-1] == step
    assert picture(model, scheduler="dpmpp_2m") == expected


def test_a_request_that_is_canceled_before_its_turn_does_nothing() -> None:
    agent = Agent(canceled=True)
    assert refusal(model_of("sd15"), agent).code == "canceled"
    assert agent.messages == []


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("name", ["sd15", "sdxl", "sdxl_refiner"])
def test_a_prompt_is_drawn_up_to_the_encoders_length_and_refused_beyond(name: str, field: str) -> None:
    model = model_of(name)
    task = {"task": "image-to-image", "strength": 0.8} if name == "sdxl_refiner" else {}
    buffers = [PICTURE] if task else []
    longest = " ".join(["a"] * 75)
    draw(model, Agent(), buffers, **{field: longest}, **task)
    refused = refusal(model, None, buffers, **{field: f"{longest} a"}, **task)
    assert refused.code == FailureCode.PROMPT_TOO_LONG
    assert "76 tokens" in refused.message
    assert "at most 75" in refused.message


@pytest.mark.parametrize(
    ("name", "field", "longest"),
    [
        ("sd3", "prompt", 255),
        ("sd3", "negative_prompt", 255),
        ("sd3_without_t5", "prompt", 75),
        ("flux", "prompt", 511),
        ("flux_schnell", "prompt", 255),
    ],
)
def test_a_prompt_is_drawn_up_to_the_length_that_t5_reads_and_refused_beyond(
    name: str, field: str, longest: int
) -> None:
    model = model_of(name)
    text = " ".join(["a"] * longest)
    draw(model, Agent(), **{field: text})
    refused = refusal(model, **{field: f"{text} a"})
    assert refused.code == FailureCode.PROMPT_TOO_LONG
    assert f"{longest + 1} tokens" in refused.message
    assert f"at most {longest}." in refused.message


@pytest.mark.parametrize(
    ("name", "buffers", "changes", "code"),
    [
        ("sd_inpaint", [], {}, FailureCode.INVALID_REQUEST),
        ("sdxl_refiner", [], {}, FailureCode.INVALID_REQUEST),
        ("sd15", [PICTURE], {"task": "image-to-image", "strength": 0.2}, FailureCode.INVALID_REQUEST),
        ("sd15", [PICTURE], {"task": "image-to-image"}, FailureCode.INVALID_REQUEST),
        ("sd15", [], {"scheduler": "lcm", "steps": 60}, FailureCode.INVALID_REQUEST),
        ("sd15", [], {"scheduler": "unheard of"}, FailureCode.INVALID_REQUEST),
        ("sd15", [], {"sigmas": "karras"}, FailureCode.INVALID_REQUEST),
        ("sd15", [], {"width": 68}, FailureCode.INVALID_REQUEST),
        (
            "sd15",
            [PICTURE],
            {"task": "image-to-image", "strength": 0.8, "guidance_rescale": 0.5},
            FailureCode.INVALID_REQUEST,
        ),
        ("sd3", [], {"guidance_rescale": 0.5}, FailureCode.INVALID_REQUEST),
        ("flux", [], {"width": 72}, FailureCode.INVALID_REQUEST),
        ("sd3", [], {"scheduler": "euler"}, FailureCode.INVALID_REQUEST),
        (
            "sd3",
            [PICTURE],
            {"task": "image-to-image", "strength": 0.8, "scheduler": "flow_unipc"},
            FailureCode.INVALID_REQUEST,
        ),
        ("lcm", [PICTURE, MASK], {"task": "inpaint", "strength": 0.8}, FailureCode.INVALID_REQUEST),
        ("lcm", [PICTURE], {"task": "image-to-image", "strength": 0.05, "steps": 4}, FailureCode.INVALID_REQUEST),
        ("sd15", [], {"task": "image-to-image", "strength": 0.8}, FailureCode.INVALID_INPUT),
        ("sd15", [PICTURE], {}, FailureCode.INVALID_INPUT),
        ("sd15", [PICTURE], {"task": "inpaint", "strength": 0.8}, FailureCode.INVALID_INPUT),
        ("sd15", [PICTURE, PICTURE], {"task": "inpaint", "strength": 0.8}, FailureCode.INVALID_INPUT),
        ("sd15", [PICTURE[:-1]], {"task": "image-to-image", "strength": 0.8}, FailureCode.INVALID_INPUT),
        ("sd15", [PICTURE], {"task": "image-to-image", "strength": 0.8, "width": 72}, FailureCode.INVALID_INPUT),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_runs(
    name: str, buffers: list[bytes], changes: dict[str, Any], code: str
) -> None:
    agent = Agent()
    assert refusal(model_of(name), agent, buffers, **changes).code == code
    assert agent.messages == []


def test_the_receipt_tells_what_it_takes_to_draw_the_same_again() -> None:
    model = model_of("sd15")
    receipt = draw(model, Agent()).receipt
    assert receipt.model_sha256 == model.card.sha256
    assert (receipt.device, receipt.dtype) == ("cpu", "float32")
    assert set(receipt.versions) == {"torch", "diffusers", "transformers"}
    assert (
        receipt.scheduler_config_sha256
        != draw(model, Agent(), sigmas="karras", scheduler="euler").receipt.scheduler_config_sha256
    )
    assert receipt.scheduler_config_sha256 == draw(model, Agent(), seed=2).receipt.scheduler_config_sha256
