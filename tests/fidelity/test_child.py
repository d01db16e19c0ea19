"""The same pictures leave the real child process over its pipes, raw and whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from service.contract.engine import Finished, Generate, ImageDrawn
from tests.engine_child import EngineChild
from tests.fidelity.cases import ABILITIES, MODELS_AND_TASKS, Case
from tests.fidelity.reference import Reference
from tests.models import LIBRARY_WARNINGS, tiny_model

pytestmark = LIBRARY_WARNINGS


@pytest.fixture(scope="module")
def child() -> Iterator[EngineChild]:
    with EngineChild() as child:
        child.hello()
        for model in ABILITIES:
            child.load(tiny_model(model), model=model)
        yield child


@pytest.mark.parametrize("scheduler", ["euler_a", "dpmpp_2m"])
@pytest.mark.parametrize(("model", "task"), MODELS_AND_TASKS)
def test_the_child_draws_what_diffusers_draws(
    child: EngineChild, reference: Callable[[str], Reference], model: str, task: str, scheduler: str
) -> None:
    case = Case(task=task, scheduler=scheduler, width=72, height=96)
    sizes = ((case.width, case.height),) * len(case.buffers())
    # Deterministic: the two images of a request would else share their calls, and be equal to rounding only.
    spec = case.spec(model, num_images=2).model_copy(update={"deterministic": True})
    request = Generate(execution_id="e", spec=spec, sizes_px=sizes)
    messages = child.draw(request, case.buffers())
    drawn = [(m, buffers) for m, buffers in messages if isinstance(m, ImageDrawn)]
    assert sorted(m.seed for m, _ in drawn) == [case.seed, case.seed + 1]
    for message, (buffer,) in drawn:
        expected = reference(model).draw(case.but(seed=message.seed)).pixels
        assert np.array_equal(np.frombuffer(buffer, np.uint8).reshape(96, 72, 3), expected)
    finished = messages[-1][0]
    assert isinstance(finished, Finished)
    assert finished.receipt.dtype == "float32"
    assert finished.receipt.degraded == ()
