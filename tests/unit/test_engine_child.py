"""The engine child as a process: it starts, obeys its pipe, survives what requests do, and never outlives its agent."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from service.contract.catalog import CatalogEntry
from service.contract.engine import (
    Finished,
    ImageDrawn,
    LoadModel,
    ModelLoaded,
    PhaseStarted,
    Refused,
    Shutdown,
    StepDone,
)
from tests.engine_child import EngineChild, Received
from tests.exotic_models import exotic_model
from tests.models import build, tiny_model
from tests.tiny_requests import tiny_request
from worker.engine.loop import suitable_capacity

#: Long enough that a child which does not stop is seen, at some 3 ms a step.
ENDLESS_STEPS = 900


def refusal_of(messages: list[Received]) -> Refused:
    last = messages[-1][0]
    assert isinstance(last, Refused)
    return last


def picture_of(messages: list[Received]) -> bytes:
    (buffer,) = [buffers[0] for message, buffers in messages if isinstance(message, ImageDrawn)]
    return buffer


@pytest.fixture(scope="module")
def child() -> Iterator[EngineChild]:
    with EngineChild() as child:
        hello = child.hello()
        assert hello.pid == child.process.pid
        assert hello.capacity == suitable_capacity(torch.device("cpu"))
        assert {"torch", "diffusers", "transformers"} <= set(hello.versions)
        child.load(tiny_model("sd15"))
        yield child


@pytest.fixture
def own_child() -> Iterator[EngineChild]:
    with EngineChild() as child:
        child.hello()
        child.load(tiny_model("sd15"))
        yield child


def test_one_request_is_answered_by_phases_steps_a_picture_and_an_end(child: EngineChild) -> None:
    messages = [message for message, _ in child.draw(tiny_request())]
    phases = [m.phase for m in messages if isinstance(m, PhaseStarted)]
    assert phases == ["encode", "denoise", "decode"]
    assert [m.step for m in messages if isinstance(m, StepDone)] == [1, 2, 3, 4]
    finished = messages[-1]
    assert isinstance(finished, Finished)
    assert finished.encode_s > 0
    assert finished.denoise_s > 0
    assert finished.decode_s > 0


def test_a_cancel_ends_a_request_within_a_step_and_leaves_the_child_usable(child: EngineChild) -> None:
    before = picture_of(child.draw(tiny_request("before", scheduler="dpmpp_2m")))
    child.send(tiny_request("endless", steps=ENDLESS_STEPS))
    steps = 0
    while steps < 3:
        message, _ = child.receive()
        steps += isinstance(message, StepDone)
    child.cancel("endless")
    messages = child.rest("endless")
    assert refusal_of(messages).code == "canceled"
    assert len(messages) < ENDLESS_STEPS / 2
    assert picture_of(child.draw(tiny_request("after", scheduler="dpmpp_2m"))) == before


def test_one_of_two_that_are_drawn_at_once_can_be_canceled(child: EngineChild) -> None:
    child.send(tiny_request("first", steps=200))
    child.send(tiny_request("second", steps=ENDLESS_STEPS))
    child.cancel("second")
    messages = child.rest("second")
    assert refusal_of(messages).code == "canceled"
    assert len(messages) < ENDLESS_STEPS / 2
    assert isinstance(child.rest("first")[-1][0], Finished)


def test_a_cancel_of_something_unknown_or_ended_is_ignored(child: EngineChild) -> None:
    child.cancel("never heard of")
    child.cancel("e")
    assert isinstance(child.draw(tiny_request("e"))[-1][0], Finished)


def test_ctrl_c_is_the_agents_business(child: EngineChild) -> None:
    os.kill(child.process.pid, signal.SIGINT)
    assert isinstance(child.draw(tiny_request())[-1][0], Finished)


def test_several_models_are_kept_warm_side_by_side(child: EngineChild) -> None:
    card = child.load(tiny_model("sdxl"), model="xl")
    assert card.family == "sdxl"
    small = picture_of(child.draw(tiny_request()))
    assert picture_of(child.draw(tiny_request(model="xl"))) != small
    assert picture_of(child.draw(tiny_request())) == small


def test_a_pipeline_that_is_not_batched_is_drawn_beside_the_others(child: EngineChild) -> None:
    card = child.load(exotic_model("pixart"), model="whole")
    assert (card.family, card.execution) == ("other", "whole")
    whole = {"model": "whole", "width": 256, "height": 256, "guidance_scale": 4.5, "scheduler": card.scheduler}
    expected = picture_of(child.draw(tiny_request("alone", **whole)))
    child.send(tiny_request("canceled", steps=100, **whole))
    child.send(tiny_request("whole", **whole))
    child.send(tiny_request("batched", steps=20))
    child.cancel("canceled")
    assert isinstance(child.rest("batched")[-1][0], Finished)
    assert refusal_of(child.rest("canceled")).code == "canceled"
    assert picture_of(child.rest("whole")) == expected


def test_a_model_that_is_warm_already_is_not_read_again(child: EngineChild) -> None:
    entry = CatalogEntry(id="tiny", source=str(tiny_model("sd15")))
    child.send(LoadModel(entry=entry))
    assert child.expect(ModelLoaded).seconds == 0.0


def test_an_unknown_model_is_refused(child: EngineChild) -> None:
    assert refusal_of(child.draw(tiny_request(model="nowhere"))).code == "model_unavailable"


@pytest.mark.parametrize("source", ["/no/such/folder", "./models/none", "owner/model-that-is-not-cached"])
def test_a_source_that_is_not_there_fails_clearly_and_the_others_go_on(child: EngineChild, source: str) -> None:
    message = child.fail_to_load(CatalogEntry(id="missing", source=source))
    assert source in message
    assert "folder" in message
    assert isinstance(child.draw(tiny_request())[-1][0], Finished)


def test_a_defect_of_a_model_fails_its_request_alone_and_tells_no_secret(tmp_path: Path) -> None:
    """A denoiser made for other prompt embeddings loads, and fails in its first layer."""
    folder = build("sd15", tmp_path)
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(tiny_model("sdxl") / "text_encoder_2", folder / "text_encoder")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"CLIPTextModel"', '"CLIPTextModelWithProjection"'))
    with EngineChild() as child:
        child.hello()
        child.load(folder, model="broken")
        child.load(tiny_model("sd15"))
        refused = refusal_of(child.draw(tiny_request(model="broken", prompt="the secret of the house")))
        assert refused.code == "internal"
        assert str(tmp_path) not in refused.message
        assert isinstance(child.draw(tiny_request())[-1][0], Finished)
        child.send(Shutdown())
        assert child.wait() == 0
        assert "execution_failed" in child.stderr()
        assert "secret" not in child.stderr()
        assert child.stdout() == ""


def test_the_end_of_the_pipe_ends_a_child_that_still_imports() -> None:
    with EngineChild() as child:
        child.hang_up()
        assert child.wait() == 0
        assert child.stderr() == ""


def test_the_end_of_the_pipe_ends_an_idle_child(own_child: EngineChild) -> None:
    own_child.hang_up()
    assert own_child.wait() == 0


def test_the_end_of_the_pipe_ends_a_child_that_draws(own_child: EngineChild) -> None:
    own_child.send(tiny_request(steps=ENDLESS_STEPS))
    while not isinstance(own_child.receive()[0], StepDone):
        pass
    own_child.hang_up()
    assert own_child.wait() == 0


def test_garbage_on_the_pipe_ends_the_child(own_child: EngineChild) -> None:
    os.write(own_child.to_child_fd, b"GET / HTTP/1.1\r\n\r\n")
    assert own_child.wait() == os.EX_PROTOCOL


def test_a_hub_model_is_read_from_the_cache_where_the_hub_is_offline(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--tiny"
    shutil.copytree(tiny_model("sd21"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    with EngineChild(environment={"HF_HUB_CACHE": str(tmp_path)}) as child:
        child.hello()
        assert child.load("owner/tiny").family == "sd2"
        assert isinstance(child.draw(tiny_request())[-1][0], Finished)
        pinned = CatalogEntry(id="pinned", source="owner/tiny", revision="f" * 40)
        assert "owner/tiny" in child.fail_to_load(pinned)
