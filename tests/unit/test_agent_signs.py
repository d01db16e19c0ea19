"""What an execution takes for a sign of life, and what its agent learns from it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from service.contract.engine import Finished, FromEngine, ImageDrawn, PhaseStarted, StepDone
from service.contract.generation import Receipt
from service.settings.groups import LogSettings
from service.settings.worker import AgentSettings
from tests.jobs import make_job
from worker.agent.child import EngineChild
from worker.agent.execution import Execution
from worker.agent.tools import Tools
from worker.agent.watch import PhaseClock

PATIENCE_S = 600.0
LOAD_S = 3600.0
PIXELS = 64 * 64


class OnlyOne:
    """A floor with one execution on it."""

    def engine_free(self, execution: Execution) -> None: ...

    def patience_s(self) -> float:
        return 0.0


def listened(*events: FromEngine) -> PhaseClock:
    """Let an execution hear these events; return what it measured by them."""
    engine = EngineChild(
        AgentSettings(), LogSettings(), [], on_change=lambda: None, on_measured=lambda _: None
    )  # never started
    clock = PhaseClock(patience_s=PATIENCE_S, load_s=LOAD_S)
    nothing = cast("Any", None)
    tools = Tools(nothing, nothing, engine, nothing, clock, nothing, nothing)
    execution = Execution(make_job("j", model="m"), "e", tools, OnlyOne())
    for event in events:
        execution._events.put((event, [b""]))
    execution._listen()
    return clock


def phase(name: Any) -> PhaseStarted:
    return PhaseStarted(execution_id="e", phase=name)


STEP = StepDone(execution_id="e", step=1, steps=1)
IMAGE = ImageDrawn(execution_id="e", index=0, seed=1, width_px=64, height_px=64)
END = Finished(
    execution_id="e",
    encode_s=0,
    denoise_s=0,
    decode_s=0,
    receipt=Receipt(model_sha256="0" * 64, scheduler_config_sha256="0" * 64, device="cpu", dtype="float32"),
)


@pytest.mark.parametrize("name", ["encode", "denoise", "decode"])
def test_every_phase_of_a_request_is_measured_the_last_by_its_picture(name: str) -> None:
    clock = listened(phase("encode"), phase("denoise"), STEP, phase("decode"), IMAGE, END)
    assert clock.limit_s("m", name, PIXELS) < PATIENCE_S


def test_a_quick_load_says_nothing_of_the_next_nor_of_a_compilation() -> None:
    quick = phase("load")
    clock = listened(quick, phase("encode"), phase("denoise"), STEP, quick, phase("denoise"), IMAGE, END)
    assert clock.limit_s("m", "load", PIXELS) == LOAD_S
    assert clock.limit_s("m", "denoise", PIXELS) < PATIENCE_S
